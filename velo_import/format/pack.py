# SPDX-License-Identifier: Apache-2.0
"""The bytes of a pack (FORMAT.md, section 4): many payloads in one immutable file, with an index at its end.

Pure: bytes in, plain data out. Files are store/packs.py's. Its surprise: two index records may share one
payload, because two sources can compile to the same bytecode.
"""

from __future__ import annotations

from operator import add, lt
from struct import Struct
from typing import Any, NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt
from . import cbor

MAGIC = b"VELOPACK"
TAIL_MAGIC = b"VELOTAIL"
VERSION = 1
# A reader refuses a pack with a mandatory bit it does not know, and ignores optional ones.
COMPRESSED = 1  # payloads may be zstd frames
MANDATORY_KNOWN = COMPRESSED
ALIGNMENT = 16

BYTECODE, FILE = 1, 2  # kinds of entry
KINDS = {"bytecode": BYTECODE, "content": FILE}  # kinds of pack, and what they hold
COPIES = "start:"  # label of packs in the order of a start, which repeat what other packs hold
KIND_NAMES = {number: name for name, number in KINDS.items()}
PLAIN, ZSTD = 0, 1  # codecs; codec.py applies them
# Compressed payloads are unpacked in one piece; larger content stays a file of its own.
MAX_EXPANDED = 64 << 20
NO_SOURCE = bytes(32)
MAX_BUILD, MAX_LEVEL = 64, 2  # a build tag has to fit into a key of the catalogue

# All little-endian; the tables are in FORMAT.md, sections 4.1 to 4.5.
HEADER = Struct("<8sIIIIB39x")
ENTRY = Struct("<32s32sQQBBB5x8s")
RECORD = Struct("<32s32sQQQBBB5x")
TAIL = Struct("<8sQQQQQ32s16x")
assert (HEADER.size, ENTRY.size, RECORD.size, TAIL.size) == (64, 96, 96, 96)


class UnknownFormat(StoreCorrupt):
    """A later Velo wrote this; for us it is missing, but it is not damaged."""


class Entry(NamedTuple):
    """One index record, in the order of its fields on disk."""

    digest: bytes
    source: bytes
    offset: int
    length: int
    size: int
    codec: int
    kind: int
    optimisation: int


class Tail(NamedTuple):
    """Where the index and the metadata of a pack are, and their checksum, which is also the pack's id."""

    index_offset: int
    records: int
    metadata_offset: int
    metadata_length: int
    file_size: int
    checksum: bytes


def padding(length: int) -> bytes:
    return bytes(-length % ALIGNMENT)


def encode_header(kind: int, features: int = 0) -> bytes:
    return HEADER.pack(MAGIC, VERSION, features, 0, ALIGNMENT, kind)


def encode_entry(entry: Entry, stored: bytes | None = None) -> bytes:
    """The header before a payload; `stored` is the payload as it stands there if it is compressed."""
    # A flipped bit can leave what a frame unpacks to as it was; the digest would not tell.
    check = bytes(8) if stored is None else blake3(stored).digest(8)
    return ENTRY.pack(
        entry.digest,
        entry.source,
        entry.length,
        entry.size,
        entry.codec,
        entry.kind,
        entry.optimisation,
        check,
    )


def encode_end(
    header: bytes, entries: list[Entry], metadata: dict[str, Any], index_offset: int
) -> tuple[bytes, bytes]:
    """Index, metadata and tail as they follow the last payload; and the id of the pack."""
    described(metadata)  # nothing is written that could not be read
    index = b"".join(RECORD.pack(*entry) for entry in sorted(entries))
    details = cbor.encode(metadata)
    pack_id = blake3(header + index + details).digest()
    metadata_offset = index_offset + len(index)
    size = metadata_offset + len(details) + TAIL.size
    tail = TAIL.pack(TAIL_MAGIC, index_offset, len(entries), metadata_offset, len(details), size, pack_id)
    return index + details + tail, pack_id


def decode_header(data: bytes) -> int:
    """The kind of a pack, out of its first 64 bytes."""
    if len(data) != HEADER.size:
        raise StoreCorrupt("pack is shorter than its header")
    magic, version, mandatory, optional, _, kind = HEADER.unpack(data)
    if magic != MAGIC:
        raise StoreCorrupt("file is no pack")
    if version != VERSION or mandatory & ~MANDATORY_KNOWN:
        raise UnknownFormat(f"pack has version {version} and features {mandatory:#x}, unknown to this Velo")
    if data != HEADER.pack(MAGIC, VERSION, mandatory, optional, ALIGNMENT, kind) or kind not in KIND_NAMES:
        raise StoreCorrupt("pack header is damaged")
    return int(kind)


def features(header: bytes) -> int:
    """The mandatory feature bits of a header that `decode_header` has accepted."""
    return int(HEADER.unpack(header)[2])


def decode_tail(data: bytes, file_size: int) -> Tail:
    """The last 96 bytes of a pack, checked against the size of the file."""
    if len(data) != TAIL.size:
        raise StoreCorrupt("pack is shorter than its tail")
    magic, *fields = TAIL.unpack(data)
    tail = Tail(*fields)
    if magic != TAIL_MAGIC or data != TAIL.pack(TAIL_MAGIC, *tail):
        raise StoreCorrupt("pack has no end: it was cut or never sealed")
    if (
        tail.file_size != file_size
        or tail.index_offset < HEADER.size
        or tail.index_offset % ALIGNMENT
        or tail.index_offset + tail.records * RECORD.size != tail.metadata_offset
        or tail.metadata_length > cbor.LIMIT
        or tail.metadata_offset + tail.metadata_length + TAIL.size != file_size
    ):
        raise StoreCorrupt("pack has another size than its end says")
    return tail


def decode_end(header: bytes, data: bytes, tail: Tail) -> tuple[tuple[Entry, ...], dict[str, Any]]:
    """Index and metadata, out of the bytes between the payloads and the tail; every offset is checked."""
    if blake3(header + data).digest() != tail.checksum:
        raise StoreCorrupt("pack index does not match its checksum")
    split = tail.records * RECORD.size
    entries = tuple(map(Entry._make, RECORD.iter_unpack(data[:split])))
    _check_entries(entries, decode_header(header), features(header), tail.index_offset)
    return entries, cbor.decode(data[split:])


def _check_entries(entries: tuple[Entry, ...], kind: int, features: int, end: int) -> None:
    """Raise unless every record makes sense. Column by column: a rebuild reads millions of records."""
    if not entries:
        return
    digests, sources, offsets, lengths, sizes, codecs, kinds, _ = zip(*entries, strict=True)
    if set(kinds) != {kind}:
        raise StoreCorrupt("pack has an entry of an unknown kind")
    if (
        min(offsets) < HEADER.size + ENTRY.size
        or any(map((ALIGNMENT - 1).__and__, offsets))
        or max(map(add, offsets, lengths)) > end
    ):
        raise StoreCorrupt("pack has an entry outside of the file")
    keys = list(zip(digests, sources, strict=True))
    if not all(map(lt, keys, keys[1:])):
        raise StoreCorrupt("pack index is not sorted")
    if set(codecs) == {PLAIN}:
        if lengths != sizes:
            raise StoreCorrupt("pack has an entry of two sizes")
    elif kind != FILE or not features & COMPRESSED:
        raise StoreCorrupt("pack has an entry with a codec that it does not announce")
    else:
        for entry in entries:
            if not (
                entry.length == entry.size
                if entry.codec == PLAIN
                else entry.codec == ZSTD and 0 < entry.length < entry.size <= MAX_EXPANDED
            ):
                raise StoreCorrupt("pack has an entry with an unknown codec")


def described(metadata: dict[str, Any]) -> tuple[str, str, int]:
    """Label, build tag and optimisation level, out of the metadata."""
    label = metadata.get("label", "")
    build = metadata.get("build", "")
    level = metadata.get("optimisation", 0)
    if (
        type(label) is not str
        or type(build) is not str
        or len(build.encode()) > MAX_BUILD
        or type(level) is not int
        or level not in range(MAX_LEVEL + 1)
    ):
        raise StoreCorrupt("pack has metadata that make no sense")
    return label, build, level

# SPDX-License-Identifier: Apache-2.0
"""The bytes of the blob index (FORMAT.md, section 8): where each packed blob is, to be looked up in place.

Pure: bytes in, plain data out. `_native/blobindex.h` reads the same bytes in C. Its surprise: there is no
search. BLAKE3 spreads digests evenly, so a table over their first bits leads to two or three records.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from struct import Struct
from typing import NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt

MAGIC = b"VELOBIDX"
VERSION = 1
MOST_BITS = 24
MOST_ENTRIES = (1 << 32) - 1

HEADER = Struct("<8sIIQQQQ16x32s")
ENTRY = Struct("<32sIBB2xQQQ")
FAN = Struct("<II")
assert (HEADER.size, ENTRY.size) == (96, 64)
_RECORD = Struct("<32sI28s")  # an entry, of which only the pack's number is to change
_PIECE = ENTRY.size << 14
_CHECKED = 64  # bytes of the header before its checksum
_PACK_ID = 32


class Place(NamedTuple):
    """Where the content of one digest is: a pack by number, and a range of it."""

    pack: int
    codec: int
    kind: int
    offset: int
    length: int
    size: int


class Layout(NamedTuple):
    """Where the parts of an index begin, in bytes, and how many of each there are."""

    packs: int
    entries: int
    bits: int
    fan_at: int
    entries_at: int


def bits_for(entries: int) -> int:
    """How many leading bits the table looks at: about two records for each of its slots."""
    return min(max(entries.bit_length() - 1, 0), MOST_BITS)


def encode(packs: Sequence[bytes], entries: Sequence[tuple[bytes, Place]]) -> bytes:
    """An index over these packs (raw ids) and entries, which ascend by digest; no digest occurs twice."""
    bits = bits_for(len(entries))
    counts = array("Q", bytes(8 * ((1 << bits) + 1)))
    for digest, _ in entries:
        counts[_slot(digest, bits) + 1] += 1
    body = [ENTRY.pack(digest, *place) for digest, place in entries]
    return b"".join((*_head(packs, counts, bits), *body))


def without(data: memoryview, layout: Layout, gone: set[int]) -> Iterator[bytes]:
    """The same index without the packs of these numbers and what is in them, piece by piece."""
    ids = pack_ids(data, layout)
    numbers = {old: new for new, old in enumerate(old for old in range(len(ids)) if old not in gone)}
    counts = array("Q", bytes(8 * ((1 << layout.bits) + 1)))
    for digest, number, _ in _records(data, layout):
        if number in numbers:
            counts[_slot(digest, layout.bits) + 1] += 1
    yield from _head([ids[old] for old in numbers], counts, layout.bits)
    piece = bytearray()
    for digest, number, rest in _records(data, layout):
        if number in numbers:
            piece += _RECORD.pack(digest, numbers[number], rest)
            if len(piece) >= _PIECE:
                yield bytes(piece)
                piece.clear()
    yield bytes(piece)


def _records(data: memoryview, layout: Layout) -> Iterator[tuple[bytes, int, bytes]]:
    end = layout.entries_at + layout.entries * ENTRY.size
    for start in range(layout.entries_at, end, _PIECE):
        yield from _RECORD.iter_unpack(data[start : min(start + _PIECE, end)])


def _head(packs: Sequence[bytes], counts: array[int], bits: int) -> tuple[bytes, bytes, bytes]:
    """Everything that stands before the entries; `counts[i + 1]` of them are in slot i."""
    fan = array("I", accumulate(counts))
    if sys.byteorder != "little":
        fan.byteswap()
    spread = fan.tobytes()
    spread += bytes(-len(spread) % 64)
    table = b"".join(packs)
    entries = sum(counts)
    size = HEADER.size + len(table) + len(spread) + entries * ENTRY.size
    start = HEADER.pack(MAGIC, VERSION, 0, size, len(packs), entries, bits, bytes(32))[:_CHECKED]
    return start + blake3(start + table).digest(), table, spread


def decode_header(data: bytes | memoryview, file_size: int) -> Layout:
    """The layout, out of the header and the pack table, checked against the size of the file."""
    if len(data) < HEADER.size:
        raise StoreCorrupt("blob index is shorter than its header")
    magic, version, mandatory, size, packs, entries, bits, checksum = HEADER.unpack(data[: HEADER.size])
    if magic != MAGIC or version != VERSION or mandatory:
        raise StoreCorrupt("file is no blob index that this Velo knows")
    fan_at = HEADER.size + packs * _PACK_ID
    fan_size = ((1 << min(bits, MOST_BITS)) + 1) * 4
    entries_at = fan_at + fan_size + -fan_size % 64
    if (
        bits > MOST_BITS
        or entries > MOST_ENTRIES
        or size != file_size
        or entries_at + entries * ENTRY.size != size
        or len(data) < fan_at
    ):
        raise StoreCorrupt("blob index has another size than it says")
    if blake3(bytes(data[:_CHECKED]) + bytes(data[HEADER.size : fan_at])).digest() != checksum:
        raise StoreCorrupt("blob index does not match its checksum")
    return Layout(packs, entries, bits, fan_at, entries_at)


def pack_ids(data: bytes | memoryview, layout: Layout) -> list[bytes]:
    """The raw ids of the packs that the index covers, by number."""
    table = bytes(data[HEADER.size : layout.fan_at])
    return [table[at : at + _PACK_ID] for at in range(0, len(table), _PACK_ID)]


def find(data: memoryview, layout: Layout, digest: bytes) -> Place | None:
    """The place of one digest; None when it is not there, or where bytes make no sense."""
    first, end = FAN.unpack_from(data, layout.fan_at + 4 * _slot(digest, layout.bits))
    if end > layout.entries:
        return None
    for at in range(layout.entries_at + first * ENTRY.size, layout.entries_at + end * ENTRY.size, ENTRY.size):
        if data[at : at + 32] == digest:
            place = Place._make(ENTRY.unpack_from(data, at)[1:])
            return place if place.pack < layout.packs else None
    return None


def _slot(digest: bytes, bits: int) -> int:
    return int.from_bytes(digest[:4], "big") >> (32 - bits)

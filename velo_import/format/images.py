# SPDX-License-Identifier: Apache-2.0
"""Images: code objects as they lie in an interpreter's memory (FORMAT.md, section 13).

Encodes and reads the bytes; the images are made by ingest/image_worker.py and mapped by _native/images.c. The
surprise: the file says when it was last written and which inode it has, so that a reader sees that nobody
wrote to it since, without reading it. So it is encoded first, and stamped once it lies on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from ..errors import StoreCorrupt
from .manifest import siphash

MAGIC = b"VELOIMAG"
VERSION = 1

# FORMAT.md, section 13: magic, version, features, size, checksum, identity's length, slots, their number,
# number of names, where data begin, mtime, inode, basic sizes of code, tuple, bytes and str.
HEADER = Struct("<8sIIQQQQQQQ8xqQ4I16x")
SLOT = Struct("<QQQQ")  # Check of the source, check of the bytecode, offsets of the chunk and of its data.
# Bytes of data, internal and external pointers, names, bodies, holes, bytes of names, other objects,
# marshalled bytes; checksums of these counts with what follows, and of the data.
CHUNK = Struct("<9I4xQQ")
COUNTS = 40
NAME = Struct("<II")  # Its number in this file, and bytes of its text.
assert (HEADER.size, SLOT.size, CHUNK.size) == (128, 32, 56)
STAMPED = slice(32, None)  # What the checksum covers ends with the identity, where the slots begin.

PAGE = 4096
Key = tuple[int, int]  # Check of the source and of the bytecode, as in a module's record.


class Image(NamedTuple):
    """The functions of one module. Four fields are arrays of u32: where pointers within the image stand, and
    those to other objects; where bodies stand (body, index), and functions in them (body, index, place).
    `marshalled` is a tuple: the module's code with holes, then `others` other objects. `names` are interned
    strings in UTF-8.
    """

    data: bytes
    internal: bytes
    external: bytes
    bodies: bytes
    holes: bytes
    others: int
    marshalled: bytes
    names: tuple[bytes, ...]


class Images(NamedTuple):
    """All images of one interpreter, the oldest first. None: this module never gets one."""

    identity: bytes
    sizes: tuple[int, int, int, int]  # Basic sizes of code, tuple, bytes and str.
    images: Mapping[Key, Image | None]


def encode_images(kept: Images) -> bytearray:
    """The file, still to be stamped."""
    slots_at = _padded(HEADER.size + len(kept.identity), 8)
    count = 2
    while count < 2 * len(kept.images):
        count *= 2
    names: dict[bytes, int] = {}
    for image in kept.images.values():
        for name in image.names if image is not None else ():
            names.setdefault(name, len(names))
    data = bytearray(slots_at + SLOT.size * count)
    data[HEADER.size : HEADER.size + len(kept.identity)] = kept.identity
    chunks = {}
    for key, image in kept.images.items():
        data += bytes(-len(data) % 8)
        chunks[key] = len(data)
        data += bytes(CHUNK.size) if image is None else _chunk(image, names)
    data += bytes(-len(data) % PAGE)
    begin = len(data)
    for key, image in kept.images.items():
        slot = key[1]
        while SLOT.unpack_from(data, slots_at + slot % count * SLOT.size)[2]:
            slot += 1
        SLOT.pack_into(data, slots_at + slot % count * SLOT.size, *key, chunks[key], len(data))
        data += image.data if image is not None else b""
    head = MAGIC, VERSION, 0, len(data), 0, len(kept.identity), slots_at, count, len(names), begin
    HEADER.pack_into(data, 0, *head, 0, 0, *kept.sizes)
    return data


def stamped_header(data: bytes | bytearray, mtime_ns: int, ino: int) -> bytes:
    """What belongs at the start of the file, up to its slots, once it has this stamp."""
    fields = list(HEADER.unpack_from(data))
    fields[10:12] = mtime_ns, ino
    slots_at = fields[6]
    rest = HEADER.pack(*fields)[32:] + data[HEADER.size : slots_at]
    fields[4] = siphash(rest)
    return HEADER.pack(*fields)[:32] + rest


def decode_images(data: bytes) -> Images:
    """Read a whole file; its stamp is not looked at.

    Raises:
        StoreCorrupt: the bytes are not one of this version, or contradict themselves.
    """
    try:
        magic, version, features, size, check, identity_size, *rest = HEADER.unpack_from(data)
    except StructError as error:
        raise StoreCorrupt("file of images is shorter than its header") from error
    slots_at, count, _, _, _, _, *sizes = rest
    if magic != MAGIC or version != VERSION or features:
        raise StoreCorrupt("not a file of images of this version")
    if size != len(data) or not HEADER.size + identity_size <= slots_at <= size:
        raise StoreCorrupt("file of images has another length than it says")
    if siphash(data[32:slots_at]) != check:
        raise StoreCorrupt("checksum of a file of images differs")
    try:
        slots = [SLOT.unpack_from(data, slots_at + SLOT.size * index) for index in range(count)]
        return Images(
            data[HEADER.size : HEADER.size + identity_size],
            (sizes[0], sizes[1], sizes[2], sizes[3]),
            dict(_images(data, sorted((slot for slot in slots if slot[2]), key=lambda slot: slot[2]))),
        )
    except (StructError, IndexError) as error:
        raise StoreCorrupt("file of images ends within a table") from error


def places(data: bytes) -> tuple[int, dict[Key, tuple[int, int]]]:
    """Where the tables of a whole file end, and where the data of each image lies: offset and length."""
    slots_at, count, _, begin = HEADER.unpack_from(data)[6:10]
    slots = [SLOT.unpack_from(data, slots_at + SLOT.size * index) for index in range(count)]
    sizes = [int.from_bytes(data[at : at + 4], "little") if at else 0 for _, _, at, _ in slots]
    found = zip(slots, sizes, strict=True)
    return begin, {(source, bytecode): (place, size) for (source, bytecode, _, place), size in found if size}


def _images(data: bytes, slots: list[tuple[int, ...]]) -> Iterator[tuple[Key, Image | None]]:
    for source, bytecode, at, place in slots:
        *counts, check, data_check = CHUNK.unpack_from(data, at)
        data_size, internals, externals, named, bodies, holes, texts, others, marshalled = counts
        if not data_size:
            yield (source, bytecode), None
            continue
        parts = [4 * internals, 4 * externals, 8 * bodies, 12 * holes, 8 * named, texts, marshalled]
        at += CHUNK.size
        if at + sum(parts) > len(data) or place + data_size > len(data):
            raise StoreCorrupt("an image has another length than it says")
        objects = data[place : place + data_size]
        counted = data[at - CHUNK.size : at - CHUNK.size + COUNTS]
        if siphash(counted + data[at : at + sum(parts)]) != check or siphash(objects) != data_check:
            raise StoreCorrupt("checksum of an image differs")
        found = []
        for part in parts:
            found.append(data[at : at + part])
            at += part
        names = []
        text = 0
        for _, size in NAME.iter_unpack(found[4]):
            names.append(found[5][text : text + size])
            text += size
        yield (
            (source, bytecode),
            Image(objects, found[0], found[1], found[2], found[3], others, found[6], tuple(names)),
        )


def _chunk(image: Image, names: Mapping[bytes, int]) -> bytes:
    named = b"".join(NAME.pack(names[name], len(name)) for name in image.names)
    texts = b"".join(image.names)
    arrays = image.internal, image.external, named, image.bodies, image.holes
    counts = [len(part) // each for part, each in zip(arrays, (4, 4, 8, 8, 12), strict=True)]
    body = b"".join(
        (image.internal, image.external, image.bodies, image.holes, named, texts, image.marshalled)
    )
    sizes = len(image.data), *counts, len(texts), image.others, len(image.marshalled)
    counted = CHUNK.pack(*sizes, 0, 0)[:COUNTS]
    return CHUNK.pack(*sizes, siphash(counted + body), siphash(image.data)) + body


def _padded(size: int, step: int) -> int:
    return (size + step - 1) // step * step

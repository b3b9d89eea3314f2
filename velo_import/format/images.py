# SPDX-License-Identifier: Apache-2.0
"""Images: code objects as they lie in an interpreter's memory (FORMAT.md, section 13).

Encodes and reads the bytes; the images are made by ingest/image_worker.py and mapped by _native/images.c. The
surprise: the file says when it was last written and which inode it has, so that a reader sees that nobody
wrote to it since, without reading it. So it is encoded first, and stamped once it lies on the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from ..errors import StoreCorrupt
from .manifest import siphash

MAGIC = b"VELOIMAG"
VERSION = 3

# FORMAT.md, section 13: magic, version, features, size, checksum, identity's length, slots, their number,
# number of names, where data begin, mtime, inode, basic sizes of code, tuple and bytes, place of versions.
HEADER = Struct("<8sIIQQQQQQQ8xqQ4I16x")
SLOT = Struct("<II")  # Upper half of the check of the bytecode, and the chunk's offset in units of 8.
# Bytes of data, internal and external pointers, names, bodies, holes, bytes of names, other objects,
# marshalled bytes; where its data are, in units of 16; checks of the source and of the bytecode; checksums of
# all this with what follows, and of the data.
CHUNK = Struct("<10IQQQQ")
CHECKED = 56
NAME = Struct("<II")  # Its number in this file, and bytes of its text.
ALONE = (1 << 32) - 1  # The number of names that no other image has.
assert (HEADER.size, SLOT.size, CHUNK.size) == (128, 8, 72)
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


NEVER = Image(b"", b"", b"", b"", b"", 0, b"", ())


class Images(NamedTuple):
    """All images of one interpreter, the oldest first. None: this module never gets one."""

    identity: bytes
    layout: tuple[int, ...]  # Basic sizes of code, tuple and bytes; where code has its version, or 0.
    images: Mapping[Key, Image | None]


def encode_images(kept: Images) -> bytearray:
    """The file, still to be stamped."""
    slots_at = _padded(HEADER.size + len(kept.identity), 8)
    count = 2
    while count < 2 * len(kept.images):
        count *= 2
    used = Counter(name for image in kept.images.values() if image is not None for name in image.names)
    # Readers have a table of these; what most images need comes first, so that few pages of it are touched.
    shared = [name for name, count in used.most_common() if count > 1]
    names = {name: number for number, name in enumerate(shared)}
    data = bytearray(slots_at + SLOT.size * count)
    data[HEADER.size : HEADER.size + len(kept.identity)] = kept.identity
    place = 0
    for key, image in kept.images.items():
        data += bytes(-len(data) % 8)
        slot = key[1]
        while any(SLOT.unpack_from(data, slots_at + slot % count * SLOT.size)):
            slot += 1
        SLOT.pack_into(data, slots_at + slot % count * SLOT.size, key[1] >> 32, len(data) // 8)
        data += _chunk(key, NEVER if image is None else image, names, place)
        place += len(image.data) if image is not None else 0
    data += bytes(-len(data) % PAGE)
    begin = len(data)
    for image in kept.images.values():
        data += image.data if image is not None else b""
    head = MAGIC, VERSION, 0, len(data), 0, len(kept.identity), slots_at, count, len(names), begin
    HEADER.pack_into(data, 0, *head, 0, 0, *kept.layout)
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
    slots_at, count, _, begin, _, _, *layout = rest
    if magic != MAGIC or version != VERSION or features:
        raise StoreCorrupt("not a file of images of this version")
    if size != len(data) or not HEADER.size + identity_size <= slots_at <= size:
        raise StoreCorrupt("file of images has another length than it says")
    if siphash(data[32:slots_at]) != check:
        raise StoreCorrupt("checksum of a file of images differs")
    try:
        return Images(
            data[HEADER.size : HEADER.size + identity_size],
            tuple(layout),
            {key: _image(data, at, begin) for key, at in _chunks(data, slots_at, count)},
        )
    except (StructError, IndexError) as error:
        raise StoreCorrupt("file of images ends within a table") from error


def places(data: bytes) -> tuple[int, dict[Key, tuple[int, int]]]:
    """Where the tables of a whole file end, and where the data of each image lies: offset and length."""
    slots_at, count, _, begin = HEADER.unpack_from(data)[6:10]
    found = {}
    for key, at in _chunks(data, slots_at, count):
        size, *_, place = CHUNK.unpack_from(data, at)[:10]
        if size:
            found[key] = begin + 16 * place, size
    return begin, found


def _chunks(data: bytes, slots_at: int, count: int) -> list[tuple[Key, int]]:
    """What each image is of, and where its chunk is; the oldest first."""
    slots = [SLOT.unpack_from(data, slots_at + SLOT.size * index) for index in range(count)]
    found = []
    for upper, at in sorted(slots, key=lambda slot: slot[1]):
        if at:
            source, bytecode = CHUNK.unpack_from(data, 8 * at)[10:12]
            if bytecode >> 32 != upper:
                raise StoreCorrupt("a slot of a file of images leads elsewhere")
            found.append(((source, bytecode), 8 * at))
    return found


def _image(data: bytes, at: int, begin: int) -> Image | None:
    *fields, _, _, check, data_check = CHUNK.unpack_from(data, at)
    size, internals, externals, named, bodies, holes, texts, others, marshalled, place = fields
    place = begin + 16 * place
    parts = [4 * internals, 4 * externals, 8 * bodies, 12 * holes, 8 * named, texts, marshalled]
    checked = data[at : at + CHECKED]
    at += CHUNK.size
    if at + sum(parts) > len(data) or place + size > len(data):
        raise StoreCorrupt("an image has another length than it says")
    objects = data[place : place + size]
    if siphash(checked + data[at : at + sum(parts)]) != check or siphash(objects) != data_check:
        raise StoreCorrupt("checksum of an image differs")
    if not size:
        return None
    found = []
    for part in parts:
        found.append(data[at : at + part])
        at += part
    names = []
    text = 0
    for _, length in NAME.iter_unpack(found[4]):
        names.append(found[5][text : text + length])
        text += length
    return Image(objects, found[0], found[1], found[2], found[3], others, found[6], tuple(names))


def _chunk(key: Key, image: Image, names: Mapping[bytes, int], place: int) -> bytes:
    named = b"".join(NAME.pack(names.get(name, ALONE), len(name)) for name in image.names)
    texts = b"".join(image.names)
    arrays = image.internal, image.external, named, image.bodies, image.holes
    counts = [len(part) // each for part, each in zip(arrays, (4, 4, 8, 8, 12), strict=True)]
    body = b"".join(
        (image.internal, image.external, image.bodies, image.holes, named, texts, image.marshalled)
    )
    fields = len(image.data), *counts, len(texts), image.others, len(image.marshalled), place // 16, *key
    checked = CHUNK.pack(*fields, 0, 0)[:CHECKED]
    return CHUNK.pack(*fields, siphash(checked + body), siphash(image.data)) + body


def _padded(size: int, step: int) -> int:
    return (size + step - 1) // step * step

# SPDX-License-Identifier: Apache-2.0
"""The table of distributions: what `importlib.metadata` said about each folder (FORMAT.md, section 12).

Encodes and reads the bytes; what stands in them is found out by ingest/metadata_worker.py and used by
hook/answers.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import StoreCorrupt
from .manifest import siphash

MAGIC = b"VELOMETA"
VERSION = 1
MOST_ROOTS = 256
# Magic, version, features, size, checksum, identity's length, roots, zeros.
HEADER = struct.Struct("<8sIIQQQQ16x")
assert HEADER.size == 64
ROOT = struct.Struct("<QQQQqqQ")
RECORD = struct.Struct("<qqQQqqQQQ")
CHECK_AT, LEFT = 32, 1 << 40
ANY_SIZE = (1 << 64) - 1

Stamp = tuple[int, int, int, int]  # mtime, ctime, inode, size


class Distribution(NamedTuple):
    """One distribution: its entry points are group, name, value, group, name, value, ..."""

    child: str
    normalized: str
    name: str
    version: str
    metadata: Stamp
    entry_points_file: Stamp
    entry_points: tuple[str, ...]


class Root(NamedTuple):
    """One folder; `left` says that Python is to look for itself."""

    path: str
    check: int
    left: bool
    mtime_ns: int
    ctime_ns: int
    ino: int
    distributions: Sequence[Distribution]


class Table(NamedTuple):
    """All folders of one environment, the ones learned first in front."""

    identity: bytes
    roots: Sequence[Root]


def encode_distributions(table: Table) -> bytes:
    """The table as a file.

    Raises:
        ValueError: a text holds a NUL, or there are too many roots.
    """
    if len(table.roots) > MOST_ROOTS:
        raise ValueError("too many roots")
    roots = b"".join(map(_encode_root, table.roots))
    start = HEADER.size + len(table.identity)
    rest = struct.pack("<QQ16x", len(table.identity), len(table.roots))
    rest += table.identity + bytes(-start % 8)
    size = 32 + len(rest) + len(roots)
    return struct.pack("<8sIIQQ", MAGIC, VERSION, 0, size, siphash(rest)) + rest + roots


def _encode_root(root: Root) -> bytes:
    texts = [root.path, *(each[column] for column in range(4) for each in root.distributions)]
    stamps = b""
    for each in root.distributions:
        texts += each.entry_points
        stamps += RECORD.pack(*each.metadata, *each.entry_points_file, len(each.entry_points) // 3)
    if any("\0" in text for text in texts):
        raise ValueError("a text holds a NUL")
    text = "".join(f"{text}\0" for text in texts).encode("utf-8", "surrogateescape")
    size = ROOT.size + len(stamps) + len(text) + -len(text) % 8
    head = len(text) | root.check << CHECK_AT | (LEFT if root.left else 0)
    rest = ROOT.pack(0, 0, len(root.distributions), head, *root[3:6])[16:]
    rest += stamps + text + bytes(-len(text) % 8)
    return struct.pack("<QQ", size, siphash(rest)) + rest


def decode_distributions(data: bytes) -> Table:
    """Read a whole table.

    Raises:
        StoreCorrupt: the bytes are not one of this version, or contradict themselves.
    """
    try:
        return _decode(data)
    except (struct.error, ValueError, IndexError) as error:
        raise StoreCorrupt(f"table of distributions is damaged: {error}") from error


def _decode(data: bytes) -> Table:
    magic, version, features, size, check, identity_size, count = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or features:
        raise ValueError("not one of this version")
    at = (HEADER.size + identity_size + 7) // 8 * 8
    if size != len(data) or at > size or count > MOST_ROOTS or siphash(data[32:at]) != check:
        raise ValueError("its header is wrong")
    roots = []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        roots.append(_decode_root(data[at : at + length], length))
        at += length
    if at != size:
        raise ValueError("it does not end with its last root")
    return Table(data[HEADER.size : HEADER.size + identity_size], tuple(roots))


def _decode_root(data: bytes, length: int) -> Root:
    _, check, count, head, mtime, ctime, ino = ROOT.unpack_from(data)
    texts_at = ROOT.size + count * RECORD.size
    texts_size = head & 0xFFFFFFFF
    if len(data) != length or length % 8 or texts_at + texts_size > length or siphash(data[16:]) != check:
        raise ValueError("a root is damaged")
    texts = data[texts_at : texts_at + texts_size].decode("utf-8", "surrogateescape").split("\0")
    records = list(RECORD.iter_unpack(data[ROOT.size : texts_at]))
    at = 1 + 4 * count
    if len(texts) != at + 3 * sum(record[8] for record in records) + 1:
        raise ValueError("a root has another number of texts")
    distributions = []
    for number, record in enumerate(records):
        child, normalized, name, version = texts[1 + number : 1 + 4 * count : count]
        points = tuple(texts[at : at + 3 * record[8]])
        at += len(points)
        distributions.append(Distribution(child, normalized, name, version, record[:4], record[4:8], points))
    flags = bool(head & LEFT)
    return Root(texts[0], head >> CHECK_AT & 0xFF, flags, mtime, ctime, ino, tuple(distributions))

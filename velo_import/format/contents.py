# SPDX-License-Identifier: Apache-2.0
"""The table of what the files of distributions say, page by page (FORMAT.md, section 12.1).

Encodes and reads the bytes; what stands in a page is found out by ingest/metadata_worker.py and used by
hook/contents.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import StoreCorrupt
from .distributions import Stamp
from .manifest import siphash

MAGIC = b"VELOINFO"
VERSION = 1
# Magic, version, features, size, checksum, identity's length, pages, zeros.
HEADER = struct.Struct("<8sIIQQQQ16x")
assert HEADER.size == 64
ENTRY = struct.Struct("<QQQ")
PAGE = struct.Struct("<QqqQQqqQQQ")
NO_STAMP: Stamp = (0, 0, 0, 0)
# The kinds of pages.
MESSAGE, FILES, TOPS = "M", "F", "T"


class Page(NamedTuple):
    """What one file of a distribution says; with `second`, what two of them say together."""

    kind: str
    path: str  # of the distribution's folder
    first: Stamp
    second: Stamp
    texts: tuple[str, ...]


class Contents(NamedTuple):
    """The pages of one environment."""

    identity: bytes
    pages: Sequence[Page]


def encode_contents(contents: Contents) -> bytes:
    """The table as a file.

    Raises:
        ValueError: a text holds a NUL.
    """
    pages = [_encode_page(page) for page in contents.pages]
    identity_end = HEADER.size + len(contents.identity)
    at = (identity_end + 7) // 8 * 8 + ENTRY.size * len(pages)
    index = []
    for page, data in zip(contents.pages, pages, strict=True):
        index.append((siphash(_encoded(page.kind + page.path)), at, len(data)))
        at += len(data)
    rest = struct.pack("<QQ16x", len(contents.identity), len(pages))
    rest += contents.identity + bytes(-identity_end % 8)
    rest += b"".join(ENTRY.pack(*entry) for entry in sorted(index))
    head = struct.pack("<8sIIQQ", MAGIC, VERSION, 0, at, siphash(rest))
    return b"".join((head, rest, *pages))


def _encode_page(page: Page) -> bytes:
    texts = (page.kind + page.path, *page.texts)
    if any("\0" in text for text in texts):
        raise ValueError("a text holds a NUL")
    data = b"".join(_encoded(text) + b"\0" for text in texts)
    rest = PAGE.pack(0, *page.first, *page.second, len(data))[8:] + data + bytes(-len(data) % 8)
    return struct.pack("<Q", siphash(rest)) + rest


def decode_contents(data: bytes) -> Contents:
    """Read a whole table.

    Raises:
        StoreCorrupt: the bytes are not one of this version, or contradict themselves.
    """
    try:
        return _decode(data)
    except (struct.error, ValueError, IndexError) as error:
        raise StoreCorrupt(f"table of contents is damaged: {error}") from error


def _decode(data: bytes) -> Contents:
    magic, version, features, size, check, identity_size, count = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or features:
        raise ValueError("not one of this version")
    start = (HEADER.size + identity_size + 7) // 8 * 8
    at = start + count * ENTRY.size
    if size != len(data) or at > size or siphash(data[32:at]) != check:
        raise ValueError("its header is wrong")
    index = list(ENTRY.iter_unpack(data[start:at]))
    if index != sorted(index):
        raise ValueError("its index is not sorted")
    pages = []
    for key, offset, length in sorted(index, key=lambda entry: entry[1]):
        if offset != at:
            raise ValueError("its pages leave gaps")
        at += length
        page = _decode_page(data[offset:at], length)
        if siphash(_encoded(page.kind + page.path)) != key:
            raise ValueError("its index names another page")
        pages.append(page)
    if at != size:
        raise ValueError("it does not end with its last page")
    return Contents(data[HEADER.size : HEADER.size + identity_size], tuple(pages))


def _decode_page(data: bytes, length: int) -> Page:
    check, *stamps, size = PAGE.unpack_from(data)
    if len(data) != length or length != PAGE.size + size + -size % 8 or siphash(data[8:]) != check:
        raise ValueError("a page is damaged")
    texts = data[PAGE.size : PAGE.size + size].decode("utf-8", "surrogateescape").split("\0")
    if len(texts) < 2 or texts[-1] or not texts[0]:
        raise ValueError("a page has no path")
    first, second = stamps[:4], stamps[4:]
    return Page(texts[0][0], texts[0][1:], tuple(first), tuple(second), tuple(texts[1:-1]))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

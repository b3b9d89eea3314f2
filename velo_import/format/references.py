# SPDX-License-Identifier: Apache-2.0
"""What a manifest needs of the store: its packs, and the digests of its paths (FORMAT.md, section 3); and the
packs that a Node index needs (section 14).

Of a manifest it reads the preamble and the vnodes and nothing else, some at a time: whoever cleans up asks
hundreds of manifests, and the whole of one may be larger than the memory it may take. The surprise: it is
stricter than it has to be, because who cannot read what a manifest needs must not remove anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from struct import error as StructError
from typing import NamedTuple

from ..errors import StoreCorrupt
from . import node
from .manifest import (
    FEATURES,
    HEADER,
    MAGIC,
    NO_DIGEST,
    PACK,
    PREAMBLE_START,
    SECTION,
    SECTIONS,
    TABLES_START,
    VERSION,
    VNODE,
    siphash,
)

Read = Callable[[int, int], bytes]
_STEP = 8192 * VNODE.size


class References(NamedTuple):
    """The environment a manifest is for, the names of its packs, step by step the digests of its paths."""

    prefix: str
    packs: list[str]
    steps: Iterator[list[bytes]]


def references(read: Read, size: int) -> References:
    """Ask a manifest, or an index; `read(offset, length)` gives bytes of the file.

    Raises:
        StoreCorrupt: the bytes are neither, not of this version, or contradict themselves.
    """
    if read(0, len(node.MAGIC)) == node.MAGIC:
        subject, names = node.pack_names(read(0, size))
        return References(subject, names, iter(()))
    try:
        preamble = _preamble(read, size)
        prefix = _table(preamble, "identity").partition(b"\0")[2]
        packs = _pack_names(preamble)
        at, length = _section(preamble, "vnodes", size)
        if length % VNODE.size:
            raise ValueError("the vnodes are cut short")
    except (StructError, IndexError, ValueError, OverflowError) as error:
        raise StoreCorrupt(f"manifest is damaged: {error}", hint="run `velo ingest` again") from error
    return References(os.fsdecode(prefix), packs, _digests(read, at, at + length))


def _preamble(read: Read, size: int) -> bytes:
    head = read(0, TABLES_START)
    magic, version, features, said, check = HEADER.unpack_from(head)
    if magic != MAGIC or version != VERSION or features & ~FEATURES:
        raise ValueError("not a manifest of this version")
    end = int.from_bytes(head[PREAMBLE_START : PREAMBLE_START + 8], "little")
    if said != size or not TABLES_START <= end <= size:
        raise ValueError(f"says {said} bytes, has {size}")
    preamble = read(0, end)
    if siphash(preamble[PREAMBLE_START:]) != check:
        raise ValueError("checksum of the preamble differs")
    return preamble


def _section(preamble: bytes, name: str, end: int) -> tuple[int, int]:
    place = PREAMBLE_START + 8 + SECTION.size * SECTIONS.index(name)
    at, length = SECTION.unpack_from(preamble, place)
    if at + length > end:
        raise ValueError(f"section {name} lies outside the file")
    return at, length


def _table(preamble: bytes, name: str) -> bytes:
    at, length = _section(preamble, name, len(preamble))
    return preamble[at : at + length]


def _pack_names(preamble: bytes) -> list[str]:
    names = []
    strings = _table(preamble, "strings")
    for at, length, *_ in PACK.iter_unpack(_table(preamble, "packs")):
        if at + length > len(strings):
            raise ValueError("a string lies outside its table")
        names.append(os.fsdecode(strings[at : at + length]))
    return names


def _digests(read: Read, at: int, end: int) -> Iterator[list[bytes]]:
    for start in range(at, end, _STEP):
        length = min(_STEP, end - start)
        data = read(start, length)
        if len(data) != length:
            raise StoreCorrupt("manifest was cut short", hint="run `velo ingest` again")
        digests = [data[place : place + 32] for place in range(0, len(data), VNODE.size)]
        yield [digest for digest in digests if digest != NO_DIGEST]

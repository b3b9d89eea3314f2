# SPDX-License-Identifier: Apache-2.0
"""Salvage: what can still be read out of a damaged pack, and the same pack written again.

Knows the bytes of one pack; where lost payloads can be had from is repair.py's. Its surprise: an index is not
needed. Every payload stands behind a header that names its digest, so a pack that lost its end is read from
the front, and where a header is damaged the next one is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt
from ..format import codec, pack
from ..format.pack import Entry
from ..host.files import read_file
from .packs import PackFile


class Payload(NamedTuple):
    """A payload as it stands in the pack, and all records that share it; empty bytes and no `found`: lost."""

    sharing: list[Entry]
    stored: bytes
    found: bool

    def content(self) -> bytes:
        first = self.sharing[0]
        return codec.expanded(self.stored, first.codec, first.size)

    def replaced(self, content: bytes) -> Payload:
        """With content that was found elsewhere, stored as it was here."""
        stored = content if self.sharing[0].codec == pack.PLAIN else codec.compressed(content)
        first = self.sharing[0]
        if stored is None or len(stored) != first.length:
            # Another compressor: the place of everything behind it would be another.
            changed = [entry._replace(codec=pack.PLAIN, length=len(content)) for entry in self.sharing]
            return Payload(changed, content, True)
        return self._replace(stored=stored, found=True)


def payloads_of(file: PackFile) -> list[Payload]:
    """All payloads of a pack whose index is whole, in their order."""
    places: dict[int, list[Entry]] = {}
    for entry in file.entries:
        places.setdefault(entry.offset, []).append(entry)
    return [_payload(file, sharing) for _, sharing in sorted(places.items())]


def scanned_payloads(path: Path) -> list[Payload]:
    """The payloads that are whole in a pack without a usable index."""
    data = read_file(path)
    found = []
    at = pack.HEADER.size
    while at + pack.ENTRY.size <= len(data):
        payload = _payload_at(data, at)
        if payload is None:
            at += pack.ALIGNMENT
        else:
            found.append(payload)
            length = len(payload.stored)
            at += pack.ENTRY.size + length + len(pack.padding(length))
    return found


def written_again(file: PackFile, payloads: list[Payload]) -> Iterator[bytes] | None:
    """The pack as it was before it was damaged; None if its payloads no longer fit into their places."""
    at = pack.HEADER.size
    for payload in payloads:
        first = payload.sharing[0]
        at += pack.ENTRY.size
        if not payload.found or first.offset != at or first.length != len(payload.stored):
            return None
        at += first.length + len(pack.padding(first.length))
    entries = [entry for payload in payloads for entry in payload.sharing]
    end, digest = pack.encode_end(file.header, entries, file.metadata, at)
    return _pieces(file.header, payloads, end) if digest.hex() == file.id else None


def _pieces(header: bytes, payloads: list[Payload], end: bytes) -> Iterator[bytes]:
    yield header
    for sharing, stored, _ in payloads:
        yield pack.encode_entry(sharing[0], None if sharing[0].codec == pack.PLAIN else stored)
        yield stored
        yield pack.padding(len(stored))
    yield end


def _payload(file: PackFile, sharing: list[Entry]) -> Payload:
    first = sharing[0]
    try:
        stored = file.stored(first)
        if _is_right(first, stored):
            return Payload(sharing, stored, True)
    except (StoreCorrupt, OSError):
        pass
    return Payload(sharing, b"", False)


def _payload_at(data: bytes, at: int) -> Payload | None:
    digest, source, length, size, coded, kind, level, _ = pack.ENTRY.unpack_from(data, at)
    offset = at + pack.ENTRY.size
    if kind not in pack.KIND_NAMES or offset + length > len(data):
        return None
    entry = Entry(digest, source, offset, length, size, coded, kind, level)
    stored = data[offset : offset + length]
    return Payload([entry], stored, True) if _is_right(entry, stored) else None


def _is_right(entry: Entry, stored: bytes) -> bool:
    try:
        content = codec.expanded(stored, entry.codec, entry.size)
    except StoreCorrupt:
        return False
    return len(content) == entry.size and blake3(content).digest() == entry.digest

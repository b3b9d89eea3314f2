# SPDX-License-Identifier: Apache-2.0
"""Units of Node modules (FORMAT.md, section 14.2): whether one is of this very source, and keeping them.

Knows which of two units for one source is better: one that a program captured has the functions that were
called compiled in it. The surprise: the text in a unit is compared with the file to the last byte, because V8
itself looks at nothing but its length.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from blake3 import blake3

from velo_import.errors import StoreCorrupt
from velo_import.format.manifest import PackRecord
from velo_import.format.node import CAPTURED, CRC, SCRIPT, TEXT, UNIT, UNIT_STEP, has_checksum
from velo_import.format.pack import COPIES, Entry
from velo_import.host.files import Stamp, open_quietly
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import PackFile, PackWriter, SealedPack, open_pack, seal_all

from ..codes import pack_id, pack_record

MOST_PACKS = 4  # In one index; each costs a start some system calls.
BEFORE = b"(function (exports, require, module, __filename, __dirname) {\n"
AFTER = b"\n})"


class Candidate(NamedTuple):
    """A source and a unit of it. `digest` names the source."""

    digest: bytes
    unit: bytes


class Place(NamedTuple):
    """Where a unit is, and which source it is of."""

    digest: bytes
    pack: PackRecord
    offset: int
    length: int


def is_of(unit: bytes, source: bytes, *, is_foreign: bool) -> bool:
    """Whether a unit is whole, and its text that of this source. A foreign one was written by a program."""
    if len(unit) < UNIT.size or len(unit) % UNIT_STEP:
        return False
    first, second, kind, is_wide, length, place, size, _ = UNIT.unpack_from(unit)
    if kind not in (SCRIPT, TEXT) or is_wide > 1 or UNIT.size + length > len(unit):
        return False
    if place and (place % UNIT_STEP or place < UNIT.size + length or place + size > len(unit)):
        return False
    try:
        text = source.decode("utf-8")
    except UnicodeDecodeError:
        return False
    if kind == SCRIPT:
        body = f"//{text[2:]}" if text.startswith("#!") else text
        text = f"{BEFORE.decode()}{body}{AFTER.decode()}"
    try:
        expected = text.encode("utf-16-le" if is_wide else "latin-1")
    except UnicodeEncodeError:
        return False
    if unit[UNIT.size : UNIT.size + length] != expected:
        return False
    return not is_foreign or has_checksum(unit[8:], first, second)


def is_captured(unit: bytes) -> bool:
    return bool(UNIT.unpack_from(unit)[7] & CAPTURED)


class Keeper:
    """Keeps units: where one of that source is in the store already, and nothing better comes, there it
    stays; the others go into one new pack. A context manager, because it writes from the first one on.
    """

    def __init__(self, tag: str, store: Store, catalog: Catalog, *, label: str) -> None:
        self._tag = tag
        self._store = store
        self._catalog = catalog
        self._writer = PackWriter(store, label=label, kind="bytecode", build=tag)
        self._places: dict[bytes, Place] = {}
        self._entries: dict[bytes, Entry] = {}

    def add(self, candidates: Iterable[Candidate]) -> None:
        wanted = {candidate.digest: candidate.unit for candidate in candidates}
        for digest, variant in self._catalog.variants_of(wanted, self._tag, 0).items():
            record = self._catalog.pack(variant.pack_id)
            if record is not None and digest not in self._places:
                pack = _named(f"{record.id[:2]}/{record.id}.pack", record.stamp)
                place = Place(digest, pack, variant.offset, variant.length)
                if not _is_better(wanted[digest], place, variant.digest, self._store):
                    self._places[digest] = place
        for digest, unit in wanted.items():
            if digest not in self._places and digest not in self._entries:
                self._entries[digest] = self._writer.add(unit, source=digest)

    def finish(self) -> tuple[dict[bytes, Place], list[SealedPack]]:
        """Where each unit is, by digest of its source; and the new pack, unknown to the catalogue."""
        sealed = seal_all([self._writer])
        for digest, entry in self._entries.items():
            self._places[digest] = Place(digest, _named_as(sealed[0]), entry.offset, entry.length)
        return self._places, sealed

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.abandon()


def _is_better(unit: bytes, known: Place, digest: bytes, store: Store) -> bool:
    """Whether a unit is to take the place of one in the store, which may be damaged."""
    try:
        descriptor = open_quietly(store.packs / known.pack.name)
        try:
            there = os.pread(descriptor, known.length, known.offset)
        finally:
            os.close(descriptor)
    except OSError:
        return True
    # It is what was stored; the second check says whether that is what a program takes for a unit.
    if blake3(there).digest() != digest or not has_checksum(there[8:], *UNIT.unpack_from(there)[:2]):
        return True
    if (UNIT.unpack_from(unit)[1] == CRC) != (UNIT.unpack_from(there)[1] == CRC):
        return True  # An older Velo's, of the kind that this Node was not known to do without.
    if is_captured(unit) != is_captured(there):
        return is_captured(unit)
    return is_captured(unit) and len(unit) > len(there)


def gathered(
    places: Mapping[str, Place], tag: str, store: Store, *, label: str
) -> tuple[dict[str, Place], list[SealedPack]]:
    """The same units in few packs: if there are more than MOST_PACKS, all are copied into one, in this order.

    A unit that cannot be read is left out: its module is Node's until it is learned again.
    """
    if len({place.pack for place in places.values()}) <= MOST_PACKS:
        return dict(places), []
    files: dict[PackRecord, _Opened | None] = {}
    entries = {}
    with PackWriter(store, label=f"{COPIES}{label}", kind="bytecode", build=tag) as writer:
        try:
            for path, place in places.items():
                unit = _unit_at(place, store, files)
                if unit is not None:
                    entries[path] = writer.add(unit, source=place.digest)
        finally:
            for opened in files.values():
                if opened is not None:
                    opened.file.close()
        sealed = seal_all([writer])
    return {
        path: Place(places[path].digest, _named_as(sealed[0]), entry.offset, entry.length)
        for path, entry in entries.items()
    }, sealed


class _Opened(NamedTuple):
    """A pack, and its entries by source, offset and length."""

    file: PackFile
    entries: dict[tuple[bytes, int, int], Entry]


def _unit_at(place: Place, store: Store, files: dict[PackRecord, _Opened | None]) -> bytes | None:
    """A unit, verified."""
    try:
        if place.pack not in files:
            files[place.pack] = None
            file = open_pack(store.pack_path(pack_id(place.pack)))
            entries = {(each.source, each.offset, each.length): each for each in file.entries}
            files[place.pack] = _Opened(file, entries)
        opened = files[place.pack]
        entry = opened and opened.entries.get((place.digest, place.offset, place.length))
        return opened.file.read(entry) if opened and entry else None
    except (OSError, StoreCorrupt):
        return None


def _named_as(sealed: SealedPack) -> PackRecord:
    return _named(pack_record(sealed).name, sealed.stamp)


def _named(name: str, stamp: Stamp) -> PackRecord:
    """A pack as an index has it, which knows no labels."""
    return PackRecord(name, "", *stamp)


def digest_of(source: bytes) -> bytes:
    return blake3(source).digest()

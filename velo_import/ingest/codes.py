# SPDX-License-Identifier: Apache-2.0
"""Bytecode for a set of sources: found in the store, taken over from `__pycache__`, or compiled; then packed.

Knows the order in which it is sought and the packs it goes into (one per distribution). The surprise: even
bytecode that the store has is not used before a look into `__pycache__`. A cached file that asks not to be
checked is what Python runs, whatever the source says, so such a module stays Python's.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from blake3 import blake3

from velo_import.errors import StoreCorrupt
from velo_import.format.manifest import Build, PackRecord, siphash
from velo_import.format.pack import Entry
from velo_import.host.files import open_quietly
from velo_import.store.catalog import Catalog, Variant
from velo_import.store.layout import Store
from velo_import.store.packs import PackFile, PackWriter, SealedPack, open_pack, seal_all

from .bytecode import HEADER, Cached, Source, cached_name, compile_all, judge_cached
from .content import Changing, Contents, entry_of, read_steadily, read_whole
from .distributions import Labels
from .plan import Code, Draft, Plan
from .scan import CACHE, FileEntry, Trouble

MOST_OPEN = 64
LEAST_COMPILED = 16  # However late it is.
MOST_PACKS = 4  # Of one label in one manifest; each costs a start some system calls.


class Wanted(NamedTuple):
    """A source whose bytecode is wanted, its name in the store, and the label of the pack it belongs into."""

    path: str
    entry: FileEntry
    digest: bytes
    source_check: int
    label: str


class Provided(NamedTuple):
    """What came of it."""

    codes: dict[str, Code]
    deferred: set[str]
    packs: list[SealedPack]
    found: int
    taken_over: int
    compiled: int
    changed: list[str]
    unreadable: list[Trouble]


def provide_codes(
    wanted: list[Wanted],
    store: Store,
    catalog: Catalog,
    build: Build,
    executable: str,
    *,
    jobs: int,
    advance: Callable[[int], None],
    deadline: float = math.inf,
) -> Provided:
    """Bytecode for every source that can have one; past the (monotonic) deadline hardly more is compiled.

    New packs are on the disk when this returns, and unknown to the catalogue.

    Raises:
        VeloError: the interpreter does not work, or the store cannot be written.
    """
    work = _Providing(store, catalog, build, advance)
    try:
        rest = work.look_around(wanted)
        work.compile(rest, executable, jobs, deadline)
        return work.finish()
    finally:
        work.abandon()


class _Pending(NamedTuple):
    """Bytecode that is in a pack being written."""

    path: str
    label: str
    entry: Entry
    source_check: int
    bytecode_check: int


class _Providing:
    """The state of one `provide_codes`."""

    def __init__(self, store: Store, catalog: Catalog, build: Build, advance: Callable[[int], None]) -> None:
        self.store = store
        self.catalog = catalog
        self.build = build
        self.advance = advance
        self.writers: dict[str, PackWriter] = {}
        self.pending: list[_Pending] = []
        self.result = Provided({}, set(), [], 0, 0, 0, [], [])
        self.found = self.taken_over = self.compiled = 0

    def look_around(self, wanted: list[Wanted]) -> list[Wanted]:
        """Serve what needs no compiler; returns the rest, sorted so that packs fill one after another."""
        readers = _Readers(self.store, self.catalog)
        variants = self.catalog.variants_of(
            {item.digest for item in wanted}, self.build.tag, self.build.optimisation
        )
        caches: dict[str, frozenset[str]] = {}
        rest = []
        for item in wanted:
            variant = variants.get(item.digest)
            code = None
            if variant is not None:
                self._take_over(item, caches, probe_only=True)
                code = readers.code(variant, item.source_check)
            payload = b"" if code is not None else self._take_over(item, caches)
            if item.path in self.result.deferred:
                pass
            elif code is not None:
                self.result.codes[item.path] = code
                self.found += 1
            elif payload:
                self._add(item, payload)
                self.taken_over += 1
            else:
                rest.append(item)
                continue
            self.advance(1)
        readers.close()
        return sorted(rest, key=lambda item: (item.label, item.path))

    def compile(self, rest: list[Wanted], executable: str, jobs: int, deadline: float) -> None:
        # Equal sources are compiled once: every empty __init__.py is one of them.
        twins: dict[bytes, list[int]] = {}
        for ticket, item in enumerate(rest):
            twins.setdefault(item.digest, []).append(ticket)
        firsts = [tickets[0] for tickets in twins.values()]
        jobs = min(jobs, len(firsts))
        texts = self._texts(rest, firsts, deadline)
        for ticket, code in compile_all(texts, executable, self.build, jobs):
            same = [rest[number] for number in twins[rest[ticket].digest]]
            for item in same:
                if code is None:
                    self.result.deferred.add(item.path)
                else:
                    self._add(item, code)
            self.compiled += len(same) if code is not None else 0
            self.advance(len(same))

    def finish(self) -> Provided:
        sealed = seal_all(self.writers.values())
        records = {pack.label: pack_record(pack) for pack in sealed}
        for path, label, entry, source_check, bytecode_check in self.pending:
            self.result.codes[path] = Code(
                records[label], entry.offset, entry.length, source_check, bytecode_check
            )
        return self.result._replace(
            packs=sealed, found=self.found, taken_over=self.taken_over, compiled=self.compiled
        )

    def abandon(self) -> None:
        for writer in self.writers.values():
            writer.abandon()

    def _texts(self, rest: list[Wanted], tickets: list[int], deadline: float) -> Iterator[Source]:
        """The sources to compile, read again: holding them since they were hashed could take gigabytes."""
        for number, ticket in enumerate(tickets):
            # Never nothing: on a machine that is always busy, nothing would be learned for ever.
            if number >= LEAST_COMPILED and time.monotonic() > deadline:
                return
            item = rest[ticket]
            text = self._text(item)
            if text is None:
                self.result.changed.append(item.path)
            else:
                yield Source(ticket, item.path, text)

    def _text(self, item: Wanted) -> bytes | None:
        try:
            text, _ = read_steadily(item.path, item.entry, read_whole)
        except (OSError, Changing):
            return None
        return text if blake3(text).digest() == item.digest else None

    def _take_over(
        self, item: Wanted, caches: dict[str, frozenset[str]], *, probe_only: bool = False
    ) -> bytes:
        """The bytecode in `__pycache__` if it may be believed; notes a module that Python runs unchecked."""
        folder, _, name = item.path.rpartition("/")
        cache = f"{folder}/{CACHE}"
        if cache not in caches:
            caches[cache] = _names(cache)
        cached = cached_name(name.removesuffix(".py"), self.build.cache_tag, self.build.optimisation)
        if cached not in caches[cache]:
            return b""
        path = f"{cache}/{cached}"
        try:
            descriptor = open_quietly(path)
            try:
                entry = entry_of(cached, os.fstat(descriptor), False)
                # Enough to tell an unchecked file when the bytecode itself is in the store already.
                data = os.pread(descriptor, HEADER.size + 1, 0) if probe_only else read_whole(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            return b""
        verdict, payload = judge_cached(
            data, entry, lambda: self._text(item) or b"", item.entry, self.build.magic
        )
        if verdict is Cached.UNCHECKED:
            self.result.deferred.add(item.path)
        return payload

    def _add(self, item: Wanted, payload: bytes) -> None:
        writer = self.writers.get(item.label)
        if writer is None:
            writer = self.writers[item.label] = bytecode_writer(self.store, item.label, self.build)
        entry = writer.add(payload, source=item.digest)
        self.pending.append(_Pending(item.path, item.label, entry, item.source_check, siphash(payload)))


def bytecode_writer(store: Store, label: str, build: Build) -> PackWriter:
    return PackWriter(store, label=label, kind="bytecode", build=build.tag, optimisation=build.optimisation)


def pack_record(sealed: SealedPack) -> PackRecord:
    return PackRecord(f"{sealed.id[:2]}/{sealed.id}.pack", sealed.label, *sealed.stamp)


def pack_id(record: PackRecord) -> str:
    return os.path.basename(record.name).removesuffix(".pack")


def usable_packs(store: Store, records: Mapping[PackRecord, object]) -> set[PackRecord]:
    """Those packs of a manifest whose files are still the ones that were recorded."""
    usable = set()
    for record in records:
        try:
            status = os.stat(store.packs / record.name)
        except OSError:
            continue
        if (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino) == record[2:]:
            usable.add(record)
    return usable


def forget_damaged(draft: Draft, paths: Iterable[str], store: Store) -> None:
    """Drop from a draft the bytecode of those paths that is no longer what its checksum says."""
    by_pack: dict[PackRecord, list[str]] = {}
    for path in paths:
        if path in draft.codes:
            by_pack.setdefault(draft.codes[path].pack, []).append(path)
    for pack, sources in by_pack.items():
        try:
            descriptor = open_quietly(store.packs / pack.name)
        except OSError:
            continue
        try:
            for path in sources:
                code = draft.codes[path]
                if siphash(os.pread(descriptor, code.length, code.offset)) != code.bytecode_check:
                    del draft.codes[path]
        finally:
            os.close(descriptor)


class _Readers:
    """Open packs of the store, for reading bytecode that other environments have brought."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self.store = store
        self.catalog = catalog
        self.files: dict[str, tuple[PackFile, PackRecord] | None] = {}
        self.checks: dict[tuple[str, int], int] = {}

    def code(self, variant: Variant, source_check: int) -> Code | None:
        """The bytecode's place, once its bytes have been verified; None if they are damaged."""
        opened = self._open(variant.pack_id)
        if opened is None:
            return None
        file, record = opened
        place = variant.pack_id, variant.offset
        if place not in self.checks:
            entry = file.find(variant.digest)
            try:
                if entry is None or (entry.offset, entry.length) != (variant.offset, variant.length):
                    return None
                self.checks[place] = siphash(file.read(entry))
            except (OSError, StoreCorrupt):
                return None
        return Code(record, variant.offset, variant.length, source_check, self.checks[place])

    def _forget_oldest(self) -> None:
        opened = self.files.pop(next(iter(self.files)))
        if opened is not None:
            opened[0].close()

    def close(self) -> None:
        for opened in self.files.values():
            if opened is not None:
                opened[0].close()
        self.files.clear()

    def _open(self, name: str) -> tuple[PackFile, PackRecord] | None:
        if name not in self.files:
            self.files[name] = None
            known = self.catalog.pack(name)
            if known is not None:
                try:
                    file = open_pack(self.store.pack_path(name))
                except (OSError, StoreCorrupt):
                    return None
                if (
                    len(self.files) > MOST_OPEN
                ):  # Sources come folder by folder: the oldest is not needed soon.
                    self._forget_oldest()
                self.files[name] = file, PackRecord(f"{name[:2]}/{name}.pack", known.label, *file.stamp)
        return self.files[name]


def merge_packs(draft: Draft, store: Store, build: Build) -> list[SealedPack]:
    """Give each label of a draft at most MOST_PACKS packs: the bytecode in use of more is written into one.

    Changes the draft's codes; returns the new packs. The old packs stay: other manifests may name them.
    """
    by_label: dict[str, set[PackRecord]] = {}
    for code in draft.codes.values():
        by_label.setdefault(code.pack.label, set()).add(code.pack)
    crowded = {label for label, packs in by_label.items() if len(packs) > MOST_PACKS}
    if not crowded:
        return []
    writers: dict[str, PackWriter] = {}
    moved: dict[str, tuple[str, Entry]] = {}
    files: dict[PackRecord, tuple[PackFile, dict[tuple[int, int, bytes], Entry]]] = {}
    try:
        for path, code in draft.codes.items():
            label = code.pack.label
            if label not in crowded:
                continue
            digest = draft.files[path].digest
            try:
                if code.pack not in files:
                    opened = open_pack(store.packs / code.pack.name)
                    places = {(entry.offset, entry.length, entry.source): entry for entry in opened.entries}
                    files[code.pack] = opened, places
                file, places = files[code.pack]
                payload = file.read(places[code.offset, code.length, digest])
            except (OSError, StoreCorrupt, KeyError):
                continue
            writer = writers.setdefault(label, bytecode_writer(store, label, build))
            moved[path] = label, writer.add(payload, source=digest)
        sealed = seal_all(writers.values())
    finally:
        for file, _ in files.values():
            file.close()
        for writer in writers.values():
            writer.abandon()
    records = {pack.label: pack_record(pack) for pack in sealed}
    for path, (label, entry) in moved.items():
        draft.codes[path] = draft.codes[path]._replace(
            pack=records[label], offset=entry.offset, length=entry.length
        )
    return sealed


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def wanted_sources(plan: Plan, contents: Contents, labels: Labels) -> list[Wanted]:
    """The sources that still need bytecode, with what is known of them by now."""
    wanted = []
    for path in plan.uncompiled:
        read = contents.read.get(path)
        if read is not None:
            wanted.append(Wanted(path, read.entry, read.digest, read.source_check, labels.of(path)))
    return wanted


def merge_into(draft: Draft, provided: Provided) -> None:
    for path, code in provided.codes.items():
        if path in draft.files:
            draft.codes[path] = code
    draft.deferred.update(provided.deferred)

# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: what nothing needs any more goes; what it would be is known before.

Knows the rules (grace, unused environments, the size limit) and the order of removal; who needs what is
survey.py's. Its surprise: nothing is locked while it looks. Only the removal itself holds the store alone, a
second at a time, and looks again at every root that is new or has changed, so ingests and programs go on.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreCorrupt, UsageFault, VeloError
from ..format import pack as pack_format
from ..host.files import remove_quietly
from . import leases
from .catalog import LOOSE, Catalog, Writing, variant_key
from .layout import Store
from .names import TREE, is_name, resolve
from .packs import PackFile, PackWriter, open_pack, seal_all
from .roots import ENVIRONMENT, Root, needs, prefix_of, remove_environment, roots, unregister
from .survey import Amount, Demand, Loose, Pack, Progress, Survey, total

GRACE = 3600.0
# For an ingest to end: minutes are no reason to give up what was found.
PATIENCE = 600.0
# What was damaged is kept for whoever wants to know what happened.
ASIDE_FOR = 30 * 86400.0
# A pack is written again when more than this part of it is unused, and that frees at least so many bytes.
_SPARSE_FROM = 0.5
_WORTH_BYTES = 256 << 10
_PACK_BYTES = 64 << 20
# One removal holds the store alone; these take well under a second.
_BATCH_FILES = 4096
_BATCH_ENTRIES = 50_000


class Wish(NamedTuple):
    """What the user asks for. Seconds and bytes; `forget` names environments (key or folder), written
    manifests and kept trees that shall not protect anything any more."""

    grace: float = GRACE
    unused_for: float | None = None
    max_size: int | None = None
    forget: tuple[str, ...] = ()


class RootReport(NamedTuple):
    """One root: what it needs, what only it needs, and whether it stays. `reason` is empty if it does."""

    kind: str
    name: str
    path: str
    exists: bool
    last_use: float
    needs: Amount
    alone: Amount
    reason: str


@dataclass
class Report:
    """What a collection finds, or found and did. Bytes are bytes on disk."""

    roots: list[RootReport] = field(default_factory=list)
    packs: Amount = field(default_factory=Amount)
    loose: Amount = field(default_factory=Amount)
    rewritten: Amount = field(default_factory=Amount)
    manifests: Amount = field(default_factory=Amount)
    leftovers: int = 0
    aside: Amount = field(default_factory=Amount)  # quarantine and the last damaged catalogue, when old
    aside_kept: Amount = field(default_factory=Amount)
    young: Amount = field(default_factory=Amount)
    unused_in_packs: int = 0  # bytes that nobody needs in packs that stay
    damaged: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    size_before: int = 0
    max_size: int | None = None
    trouble: list[str] = field(default_factory=list)

    @property
    def freed(self) -> int:
        found = (self.packs, self.loose, self.rewritten, self.manifests, self.aside)
        return sum(amount.bytes for amount in found)

    def put_aside(self, amount: Amount, is_old: bool) -> None:
        if is_old:
            self.aside += amount
        else:
            self.aside_kept += amount

    @property
    def over(self) -> int:
        """Bytes above the limit that stay all the same."""
        if self.max_size is None:
            return 0
        return max(0, self.size_before - self.freed - self.max_size)


def ignore(phase: str, done: int, total: int) -> None:
    """Nobody is watching."""


def preview(store: Store, wish: Wish, *, now: float | None = None, progress: Progress = ignore) -> Report:
    """What `collect` would remove now. Locks nothing and changes nothing.

    Raises:
        StoreCorrupt: a root cannot be read, so nobody knows what it protects.
    """
    with Catalog.open(store) as catalog, _Plan(store, catalog, wish, now, progress) as plan:
        return plan.report()


def collect(
    store: Store,
    wish: Wish,
    *,
    now: float | None = None,
    progress: Progress = ignore,
    patience: float = PATIENCE,
) -> Report:
    """Remove what nobody needs, and say what that was. `patience` is for ingests to end, in seconds.

    Raises:
        StoreLocked: another collection is at work, or an ingest did not end in time.
        StoreCorrupt: a root cannot be read, so nobody knows what it protects.
    """
    with (
        leases.maintenance(store),
        Catalog.open(store) as catalog,
        _Plan(store, catalog, wish, now, progress) as plan,
    ):
        return _Collection(plan, progress, patience).run()


class _Plan:
    """Which roots go, and what nobody needs then."""

    def __init__(
        self, store: Store, catalog: Catalog, wish: Wish, now: float | None, progress: Progress
    ) -> None:
        self.store = store
        self.catalog = catalog
        self.wish = wish
        self.now = time.time() if now is None else now
        self.size = sum(store.size_report().values())
        found = roots(store)
        self.forgotten = _named(found, wish.forget)
        # In use a moment ago: such an environment never goes, whatever the limit.
        free = [
            root
            for root in found
            if root not in self.forgotten
            and root.kind == ENVIRONMENT
            and root.last_use <= self.now - wish.grace
        ]
        free.sort(key=lambda root: root.last_use)
        fixed = [root for root in found if root not in self.forgotten and root not in free]
        self.survey = Survey(
            store, catalog, [*free, *fixed], young_since=self.now - wish.grace, progress=progress
        )
        self.unused = 0
        if wish.unused_for is not None:
            limit = self.now - wish.unused_for
            self.unused = sum(root.last_use < limit for root in free)
        self.threshold = self._threshold(len(free))

    def __enter__(self) -> _Plan:
        return self

    def __exit__(self, *exception: object) -> None:
        self.survey.close()

    @property
    def leaving(self) -> list[Root]:
        return [*self.forgotten, *self.survey.order[: self.threshold]]

    def dead_packs(self, threshold: int) -> list[Pack]:
        return [found for found in self.survey.packs if found.rank < threshold and not found.is_young]

    def sparse_packs(self, threshold: int) -> list[Pack]:
        return [
            found
            for found in self.survey.packs
            if found.kind != "bytecode"
            and found.named < threshold <= found.rank
            and not found.is_young
            and _is_sparse(found, threshold)
        ]

    def report(self) -> Report:
        """What would be removed."""
        threshold = self.threshold
        survey = self.survey
        dead = self.dead_packs(threshold)
        report = Report(size_before=self.size, max_size=self.wish.max_size)
        report.roots = self._roots()
        for found in dead:
            report.packs.add(found.bytes)
        report.loose = _below(survey.loose_by_rank, threshold)
        for found in self.sparse_packs(threshold):
            report.rewritten.add(found.unused(threshold))
        for root in self.leaving:
            report.manifests.add(root.bytes)
        report.leftovers = len(self.store.leftovers())
        self.note_kept(report)
        for path in _aside(self.store):
            report.put_aside(_amount_of(path), self._is_old(path))
        return report

    def note_kept(self, report: Report) -> None:
        """What stays although nobody needs it, and why."""
        threshold = self.threshold
        report.young = _below(self.survey.young_loose_by_rank, threshold)
        leaving = {found.id for found in (*self.dead_packs(threshold), *self.sparse_packs(threshold))}
        for found in self.survey.packs:
            if found.rank < threshold and found.is_young:
                report.young.add(found.bytes)
            elif found.id not in leaving and found.named < threshold:
                report.unused_in_packs += found.unused(threshold)
        report.damaged = self.survey.damaged
        report.unknown = self.survey.unknown

    def remove_aside(self, report: Report) -> None:
        """Quarantined files and damaged catalogues that nobody has asked about for long."""
        for path in _aside(self.store):
            amount, is_old = _amount_of(path), self._is_old(path)
            if is_old and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif is_old:
                remove_quietly(path)
            report.put_aside(amount, is_old)

    def _threshold(self, most: int) -> int:
        """The number of environments that go, least recently used first."""
        threshold = self.unused
        limit = self.wish.max_size
        while limit is not None and threshold < most and self.size - self._freed(threshold) > limit:
            threshold += 1
        return threshold

    def _freed(self, threshold: int) -> int:
        packs = sum(found.bytes for found in self.dead_packs(threshold))
        sparse = sum(found.unused(threshold) for found in self.sparse_packs(threshold))
        loose = _below(self.survey.loose_by_rank, threshold).bytes
        leaving = (*self.forgotten, *self.survey.order[:threshold])
        return packs + sparse + loose + sum(root.bytes for root in leaving)

    def _roots(self) -> list[RootReport]:
        reports = [_report_of(root, Demand(), "asked for") for root in self.forgotten]
        for rank, (root, demand) in enumerate(zip(self.survey.order, self.survey.demands, strict=True)):
            reason = "" if rank >= self.threshold else "unused" if rank < self.unused else "over the limit"
            reports.append(_report_of(root, demand, reason))
        return reports

    def _is_old(self, path: Path) -> bool:
        status = path.lstat()
        return max(status.st_mtime, status.st_ctime) < self.now - ASIDE_FOR


class _Fresh:
    """What roots need that the survey has not seen."""

    def __init__(self, store: Store, seen: Iterable[Root]) -> None:
        self._store = store
        self._seen = {(root.kind, root.name): root.files for root in seen}
        self.packs: set[str] = set()
        self.digests: set[bytes] = set()

    def look(self) -> None:
        """Ask every root that is new or has changed. Hold the exclusive lease."""
        for root in roots(self._store):
            if self._seen.get((root.kind, root.name)) != root.files:
                with needs(root) as (packs, steps):
                    self.packs.update(raw_id.hex() for raw_id in packs)
                    for step in steps:
                        self.digests.update(step)
                self._seen[root.kind, root.name] = root.files

    def needs_pack(self, file: PackFile) -> bool:
        if file.id in self.packs:
            return True
        return bool(self.digests) and any(entry.digest in self.digests for entry in file.entries)


class _Collection:
    """One collection at work."""

    def __init__(self, plan: _Plan, progress: Progress, patience: float) -> None:
        self.plan = plan
        self.patience = patience
        self.store = plan.store
        self.catalog = plan.catalog
        self.progress = progress
        self.fresh = _Fresh(plan.store, plan.survey.order[plan.threshold :])
        self.report = Report(size_before=plan.size, max_size=plan.wish.max_size)

    def run(self) -> Report:
        plan, report = self.plan, self.report
        report.roots = plan._roots()
        self._remove_roots()
        for each in self._remove_packs(plan.dead_packs(plan.threshold)):
            report.packs.add(each.bytes)
        for number, found in enumerate(plan.survey.loose_below(plan.threshold)):
            self.progress("loose", number, 0)
            for start in range(0, len(found), _BATCH_FILES):
                self._remove_loose(found[start : start + _BATCH_FILES])
        self._rewrite(plan.sparse_packs(plan.threshold))
        report.leftovers = self.store.remove_leftovers()
        plan.note_kept(report)
        plan.remove_aside(report)
        return report

    def _remove_roots(self) -> None:
        """Take away what protected, unless it was used or written again since we looked."""
        if not self.plan.leaving:
            return
        with leases.exclusive(self.store, wait=self.patience):
            now = {(root.kind, root.name): root for root in roots(self.store)}
            gone = []
            for root in self.plan.leaving:
                present = now.get((root.kind, root.name))
                if present is None or (present != root and root not in self.plan.forgotten):
                    continue
                if root.kind == ENVIRONMENT:
                    remove_environment(self.store, root.name)
                    gone.append(root.name)
                else:
                    unregister(self.store, root.name)
                self.report.manifests.add(root.bytes)
            self._removing(partial(_drop_manifests, keys=gone), ())

    def _remove_packs(self, found: Sequence[Pack]) -> list[Pack]:
        """Remove packs unless a new or changed root needs something in them; gives those that went."""
        removed: list[Pack] = []
        batch: list[Pack] = []
        entries = 0
        for done, each in enumerate(found, 1):
            batch.append(each)
            entries += each.entries
            if entries >= _BATCH_ENTRIES or done == len(found):
                self.progress("remove", done, len(found))
                removed += self._remove_batch(batch)
                batch, entries = [], 0
        return removed

    def _remove_batch(self, batch: list[Pack]) -> list[Pack]:
        removed: list[Pack] = []
        rows = _Rows()
        with leases.exclusive(self.store, wait=self.patience):
            self.fresh.look()
            for each in batch:
                with suppress(FileNotFoundError), open_pack(each.path) as file:
                    if file.stamp == each.stamp and not self.fresh.needs_pack(file):
                        rows.add(file, self.catalog)
                        removed.append(each)
            self._removing(rows.drop, [each.path for each in removed])
        return removed

    def _remove_loose(self, batch: Sequence[Loose]) -> None:
        with leases.exclusive(self.store, wait=self.patience):
            self.fresh.look()
            found = {blob.digest: blob for blob in batch if blob.digest not in self.fresh.digests}
            recorded = self.catalog.locations(found)
            rows = [digest for digest, location in recorded.items() if location.where == LOOSE]
            self._removing(partial(_drop_blobs, digests=rows), map(self.store.loose_path, found))
        for blob in found.values():
            self.report.loose.add(blob.bytes)

    def _removing(self, drop: Callable[[Writing], None], paths: Iterable[Path]) -> None:
        """First the rows, then the files. Hold the exclusive lease.

        On a full disk the rows have to wait for the space that the files give; until then they say of
        something missing where it was, and that counts as missing.
        """
        is_full = False
        try:
            with self.catalog.write() as writing:
                drop(writing)
        except StoreCorrupt:
            raise
        except VeloError:
            is_full = True
        folders = set()
        for path in paths:
            remove_quietly(path)
            folders.add(path.parent)
        for folder in folders:
            with suppress(OSError):  # others are in it
                folder.rmdir()
        if is_full:
            with self.catalog.write() as writing:
                drop(writing)

    def _rewrite(self, found: Sequence[Pack]) -> None:
        """Copy what is needed out of packs that are mostly unused, then remove those."""
        writers: dict[tuple[str, bool], list[PackWriter]] = {}
        copied: list[Pack] = []
        try:
            for done, each in enumerate(found):
                self.progress("rewrite", done, len(found))
                try:
                    self._copy(each, writers)
                except StoreCorrupt:
                    self.report.damaged.append(each.path)
                except FileNotFoundError:
                    continue
                else:
                    copied.append(each)
            sealed = seal_all(chain(*writers.values()))
        except VeloError as error:  # a full disk: they stay as they are
            self.report.trouble.append(error.message)
            return
        finally:
            for writer in chain(*writers.values()):
                writer.abandon()
        with self.catalog.write() as writing:
            for new in sealed:
                writing.put_pack(new)
        # A pack of which everything is needed is equal to its copy, and so it is the copy.
        written = {new.id for new in sealed}
        for each in self._remove_packs([each for each in copied if each.id not in written]):
            self.report.rewritten.add(each.unused(self.plan.threshold))

    def _copy(self, found: Pack, writers: dict[tuple[str, bool], list[PackWriter]]) -> None:
        needed = self.plan.survey.kept_in(found.number, self.plan.threshold)
        alike = writers.setdefault((found.kind, found.compressed), [])
        with open_pack(found.path) as file:
            for entry in sorted(file.entries, key=attrgetter("offset")):
                if entry.digest in needed:
                    if not alike or alike[-1].size >= _PACK_BYTES:
                        alike.append(
                            PackWriter(
                                self.store, label=found.label, kind=found.kind, compress=found.compressed
                            )
                        )
                    alike[-1].add(file.read(entry), source=entry.source, digest=entry.digest)


class _Rows:
    """What the catalogue says of packs that go, as far as it says it of these very packs."""

    def __init__(self) -> None:
        self.packs: list[str] = []
        self.blobs: list[bytes] = []
        self.variants: list[bytes] = []

    def add(self, file: PackFile, catalog: Catalog) -> None:
        raw_id = bytes.fromhex(file.id)
        self.packs.append(file.id)
        recorded = catalog.locations({entry.digest for entry in file.entries})
        self.blobs += [digest for digest, location in recorded.items() if location.pack_id == raw_id]
        sources = [entry.source for entry in file.entries if entry.kind == pack_format.BYTECODE]
        known = catalog.variants_of(sources, file.build, file.optimisation)
        self.variants += [
            variant_key(source, file.build, file.optimisation)
            for source, variant in known.items()
            if variant.pack_id == file.id
        ]

    def drop(self, writing: Writing) -> None:
        for pack_id in self.packs:
            writing.remove_pack(pack_id)
        writing.remove_blobs(self.blobs)
        writing.remove_variants(self.variants)


def _drop_manifests(writing: Writing, *, keys: list[str]) -> None:
    for key in keys:
        writing.remove_manifest(key)


def _drop_blobs(writing: Writing, *, digests: list[bytes]) -> None:
    writing.remove_blobs(digests)


def _named(found: Sequence[Root], names: Iterable[str]) -> list[Root]:
    """The roots that a user means: by key, folder of the environment, file written to, or id of a tree."""
    chosen = []
    for name in names:
        name = _in_full(name, found)
        path = os.path.abspath(name)
        matching = [root for root in found if root.name in (name, path)] or [
            root for root in found if root.kind == ENVIRONMENT and prefix_of(root) == path
        ]
        if not matching:
            raise UsageFault(f"nothing in the store is for {name}", hint="`velo gc` lists what there is")
        chosen += [root for root in matching if root not in chosen]
    return chosen


def _in_full(name: str, found: Sequence[Root]) -> str:
    """The id of a tree that is kept, if these are its first digits; other names as they are."""
    if not is_name(name, TREE):
        return name
    kept = [root.name for root in found if is_name(root.name, TREE)]
    digests = [bytes.fromhex(each.removeprefix(f"{TREE}:")) for each in kept]
    digest = resolve(name, TREE, lambda digits: (each for each in digests if each.hex().startswith(digits)))
    return f"{TREE}:{digest.hex()}"


def _is_sparse(found: Pack, threshold: int) -> bool:
    unused = found.unused(threshold)
    return unused > found.payload * _SPARSE_FROM and unused >= _WORTH_BYTES


def _report_of(root: Root, demand: Demand, reason: str) -> RootReport:
    path = prefix_of(root) if root.kind == ENVIRONMENT else root.name
    return RootReport(
        root.kind,
        root.name,
        path,
        os.path.exists(path) or not os.path.isabs(path),
        root.last_use,
        demand.all,
        demand.alone,
        reason,
    )


def _below(amounts: dict[int, Amount], threshold: int) -> Amount:
    return total(amount for rank, amount in amounts.items() if rank < threshold)


def _aside(store: Store) -> Iterator[Path]:
    """What was put aside: every file in the quarantine, and the last damaged catalogue."""
    for path in sorted(store.quarantine.rglob("*")):
        if not path.is_dir() or path.is_symlink():
            yield path
    damaged = store.catalogue.with_name("meta.db.damaged")
    if damaged.exists():
        yield damaged


def _amount_of(path: Path) -> Amount:
    """A file, or a folder and the files in it, as one."""
    files = path.iterdir() if path.is_dir() else [path]
    return Amount(1, sum(file.lstat().st_blocks * 512 for file in files))

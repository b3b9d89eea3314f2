# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: what nothing needs any more goes; what it would be is known before.

Knows the order of removal; what goes is gcplan.py's to say, and who needs what survey.py's. Its surprise:
nothing is locked while it looks. Only the removal itself holds the store alone, a second at a time, and looks
again at every root that is new or has changed, so ingests and programs go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from operator import attrgetter
from pathlib import Path

from ..errors import StoreCorrupt, VeloError
from ..format import pack as pack_format
from ..host.files import flush_all, remove_quietly
from . import index, leases
from .catalog import LOOSE, Catalog, Writing, variant_key
from .compaction import compact
from .gcplan import Plan, Report, Wish, ignore
from .layout import Store
from .packs import PackFile, PackWriter, open_pack, seal_all
from .roots import ENVIRONMENT, Root, needs, remove_environment, roots, unregister
from .survey import Loose, Pack, Progress

# For an ingest to end: minutes are no reason to give up what was found.
PATIENCE = 600.0
_PACK_BYTES = 64 << 20
# One removal holds the store alone; these take well under a second.
_BATCH_FILES = 4096
_BATCH_ENTRIES = 50_000


def preview(store: Store, wish: Wish, *, now: float | None = None, progress: Progress = ignore) -> Report:
    """What `collect` would remove now. Locks nothing and changes nothing.

    Raises:
        StoreCorrupt: a root cannot be read, so nobody knows what it protects.
    """
    with Catalog.open(store) as catalog, Plan(store, catalog, wish, now, progress) as plan:
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
        Plan(store, catalog, wish, now, progress) as plan,
    ):
        report = _Collection(plan, progress, patience).run()
    compact(store)
    return report


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

    def __init__(self, plan: Plan, progress: Progress, patience: float) -> None:
        self.plan = plan
        self.patience = patience
        self.store = plan.store
        self.catalog = plan.catalog
        self.progress = progress
        self.fresh = _Fresh(plan.store, plan.survey.order[plan.threshold :])
        self.report = Report(size_before=plan.size, max_size=plan.wish.max_size)

    def run(self) -> Report:
        plan, report = self.plan, self.report
        report.roots = plan.roots()
        self._remove_roots()
        for each in self._remove_packs(plan.dead_packs(plan.threshold)):
            report.packs.add(each.bytes)
        for number, found in enumerate(plan.survey.loose_below(plan.threshold)):
            self.progress("loose", number, 0)
            for start in range(0, len(found), _BATCH_FILES):
                self._remove_loose(found[start : start + _BATCH_FILES])
        self._rewrite(plan.sparse_packs(plan.threshold))
        index.forget_gone(self.store)
        report.leftovers = self.store.remove_leftovers()
        plan.note_kept(report)
        plan.remove_aside(report)
        return report

    def _alone(self) -> AbstractContextManager[None]:
        """The store for us alone, once the ingests that are at work have ended."""

        def waiting() -> None:
            self.progress("wait for an ingest or a learner to end", 0, 0)

        return leases.exclusive(self.store, wait=self.patience, waiting=waiting)

    def _remove_roots(self) -> None:
        """Take away what protected, unless it was used or written again since we looked."""
        if not self.plan.leaving:
            return
        with self._alone():
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
            # A power cut must not bring back a manifest whose content has gone.
            flush_all([folder for folder in (self.store.manifests, self.store.roots) if folder.exists()])
            self._removing(partial(_drop_manifests, keys=gone), ())

    def _remove_packs(self, found: Sequence[Pack]) -> list[Pack]:
        """Remove packs unless a new or changed root needs something in them; gives those that went."""
        removed: list[Pack] = []
        done = 0
        for batch in _batches(found):
            self.progress("remove", done, len(found))
            removed += self._remove_batch(batch)
            done += len(batch)
        return removed

    def _remove_batch(self, batch: list[Pack]) -> list[Pack]:
        removed: list[Pack] = []
        rows = _Rows()
        with self._alone():
            self.fresh.look()
            for each in batch:
                with suppress(FileNotFoundError), open_pack(each.path) as file:
                    if file.stamp == each.stamp and not self.fresh.needs_pack(file):
                        rows.add(file, self.catalog)
                        removed.append(each)
            self._removing(rows.drop, [each.path for each in removed])
        return removed

    def _remove_loose(self, batch: Sequence[Loose]) -> None:
        with self._alone():
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
        """Copy what is needed out of packs that are mostly unused, then remove those; some at a time, so that
        little is needed twice, on the disk and in memory."""
        for number, batch in enumerate(_batches(found)):
            self.progress("rewrite", number, 0)
            try:
                copied = self._copy(batch)
            except VeloError as error:  # a full disk: they stay as they are
                self.report.trouble.append(error.message)
                return
            for each in self._remove_packs(copied):
                self.report.rewritten.add(each.unused(self.plan.threshold))

    def _copy(self, batch: Sequence[Pack]) -> list[Pack]:
        """Store what is needed from these packs once more; gives those of which that is all there."""
        writers: dict[tuple[str, bool], PackWriter] = {}
        copied: list[Pack] = []
        try:
            for each in batch:
                alike = each.kind, each.compressed
                if alike not in writers:
                    writers[alike] = PackWriter(
                        self.store, label=each.label, kind=each.kind, compress=each.compressed
                    )
                with suppress(FileNotFoundError):
                    if self._copy_into(writers[alike], each):
                        copied.append(each)
            sealed = seal_all(writers.values())
        finally:
            for writer in writers.values():
                writer.abandon()
        with self.catalog.write() as writing:
            for new in sealed:
                writing.put_pack(new)
        return copied

    def _copy_into(self, writer: PackWriter, found: Pack) -> bool:
        needed = self.plan.survey.kept_in(found.number, self.plan.threshold)
        try:
            with open_pack(found.path) as file:
                for entry in sorted(file.entries, key=attrgetter("offset")):
                    if entry.digest in needed:
                        writer.copy(file, entry)
        except StoreCorrupt:
            self.report.damaged.append(found.path)
            return False
        return True


def _batches(found: Iterable[Pack]) -> Iterator[list[Pack]]:
    """Some packs at a time: together about one large one."""
    batch: list[Pack] = []
    size = entries = 0
    for each in found:
        batch.append(each)
        size += each.payload
        entries += each.entries
        if size >= _PACK_BYTES or entries >= _BATCH_ENTRIES:
            yield batch
            batch, size, entries = [], 0, 0
    if batch:
        yield batch


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

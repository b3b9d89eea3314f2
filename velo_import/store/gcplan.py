# SPDX-License-Identifier: Apache-2.0
"""The plan of a collection: which roots go, what nobody needs then, and what is kept for whom.

Knows the rules: grace, unused environments, the size limit, packs that are worth being written again. Who
needs what is survey.py's, removing it is gc.py's. Its surprise: the size limit only chooses how many of the
least recently used environments go; everything else follows from the survey, which is made once.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageFault
from ..host.files import remove_quietly
from .catalog import Catalog
from .layout import Store
from .names import TREE, is_name, resolve
from .roots import ENVIRONMENT, Root, prefix_of, roots
from .survey import Amount, Demand, Pack, Progress, Survey, total

GRACE = 3600.0
# What was damaged is kept for whoever wants to know what happened.
ASIDE_FOR = 30 * 86400.0
# A pack is written again when more than this part of it is unused, and that frees at least so many bytes.
_SPARSE_FROM = 0.5
_WORTH_BYTES = 256 << 10


class Wish(NamedTuple):
    """What the user asks for. Seconds and bytes; `forget` names environments (key or folder), written
    manifests and kept trees that shall not protect anything any more."""

    grace: float = GRACE
    unused_for: float | None = None
    max_size: int | None = None
    forget: tuple[str, ...] = ()


class RootReport(NamedTuple):
    """One root: what it needs, what only it needs, and whether it stays. `reason` is empty if it does; `kept`
    says then why, where that is not simply because somebody may use it.
    """

    kind: str
    name: str
    path: str
    exists: bool
    last_use: float
    needs: Amount
    alone: Amount
    reason: str
    kept: str


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


class Plan:
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
        order = [*self.forgotten, *free, *fixed]
        self.survey = Survey(store, catalog, order, young_since=self.now - wish.grace, progress=progress)
        self.unused = len(self.forgotten)  # the rank from which on roots are used
        if wish.unused_for is not None:
            limit = self.now - wish.unused_for
            self.unused += sum(root.last_use < limit for root in free)
        self.threshold = self._threshold(len(self.forgotten) + len(free))

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *exception: object) -> None:
        self.survey.close()

    @property
    def leaving(self) -> list[Root]:
        return self.survey.order[: self.threshold]

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
        report.roots = self.roots()
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
        report.damaged += self.survey.damaged
        report.unknown += self.survey.unknown

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
        """The number of roots that go: those asked for, then the least recently used."""
        threshold = self.unused
        limit = self.wish.max_size
        while limit is not None and threshold < most and self.size - self._freed(threshold) > limit:
            threshold += 1
        return threshold

    def _freed(self, threshold: int) -> int:
        packs = sum(found.bytes for found in self.dead_packs(threshold))
        sparse = sum(found.unused(threshold) for found in self.sparse_packs(threshold))
        loose = _below(self.survey.loose_by_rank, threshold).bytes
        leaving = sum(root.bytes for root in self.survey.order[:threshold])
        return packs + sparse + loose + leaving

    def roots(self) -> list[RootReport]:
        """What each root needs, and whether it stays."""
        return [
            _report_of(root, demand, self._reason(rank), self._kept(rank))
            for rank, (root, demand) in enumerate(zip(self.survey.order, self.survey.demands, strict=True))
        ]

    def _reason(self, rank: int) -> str:
        if rank < len(self.forgotten):
            return "asked for"
        if rank < self.unused:
            return "unused"
        return "over the limit" if rank < self.threshold else ""

    def _kept(self, rank: int) -> str:
        root = self.survey.order[rank]
        if rank < self.threshold:
            return ""
        if root.kind != ENVIRONMENT:
            return "until it is forgotten"
        is_more_wanted = self.wish.unused_for is not None or self.wish.max_size is not None
        return (
            "used within the grace" if is_more_wanted and root.last_use > self.now - self.wish.grace else ""
        )

    def _is_old(self, path: Path) -> bool:
        status = path.lstat()
        return max(status.st_mtime, status.st_ctime) < self.now - ASIDE_FOR


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


def _report_of(root: Root, demand: Demand, reason: str, kept: str) -> RootReport:
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
        kept,
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

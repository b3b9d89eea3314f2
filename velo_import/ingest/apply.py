# SPDX-License-Identifier: Apache-2.0
"""`ingest`: a whole environment or project, ahead of time, into the store and one published manifest.

Knows the order of the steps, and that nothing is published before all it refers to is on the disk: packs
and blobs, then the catalogue, then the manifest. The surprise: an unchanged tree is recognised by a receipt
(receipt.py), before it is walked or any old manifest is read, because either takes longer than the answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from velo_import.errors import StoreMissing, VeloError
from velo_import.format.manifest import (
    NO_DIGEST,
    SITE,
    STDLIB,
    TREE,
    Manifest,
    encode,
    manifest_key,
)
from velo_import.host.files import make_folders, publish, put_unflushed, read_file
from velo_import.host.filesystems import filesystem_of
from velo_import.host.locks import exclusive
from velo_import.host.processes import available_cores, without_collector
from velo_import.host.stamps import stamps_of
from velo_import.store import leases
from velo_import.store.catalog import LOOSE, MARK, Catalog
from velo_import.store.compaction import compact
from velo_import.store.layout import Store
from velo_import.store.roots import register

from . import hookcode, startup
from .codes import Provided, merge_into, merge_packs, provide_codes, usable_packs, wanted_sources
from .content import Contents, read_contents, settle_files
from .distributions import INFO_SUFFIX, Labels
from .interpreter import Interpreter, Probe
from .links import note_links
from .metadata import Inventory
from .notes import forget_attempts
from .owner import find_python, in_full
from .plan import (
    Draft,
    Plan,
    Unread,
    assemble,
    carry_over,
    default_check,
    entry_of_record,
    keep_content,
    outermost,
    plan_ingest,
    with_other,
)
from .publish import (
    BASE,
    UPPER,
    expect_base,
    is_hook_current,
    manifest_record,
    publish_manifest,
    published_draft,
    root_checks,
    shown,
    trim_upper,
)
from .receipt import (
    INODE,
    KIND,
    LENGTH,
    WHOLE,
    Receipt,
    drop_oldest,
    find,
    joined,
    name_of,
    paths_of,
)
from .receipt import (
    encode as encode_receipt,
)
from .scan import SLOW_WALKERS, Area, Scan, Trouble, area_kind, scan
from .selection import Selection

LOCK_PATIENCE = 10.0
LONG_WAIT = 0.05
MOST_TROUBLES = 1000  # That a receipt remembers.
MOST_RECEIPTS = 16  # Of one environment; half a megabyte each.


class Progress(NamedTuple):
    """How far one phase has come; `total` is 0 while it is not known."""

    phase: str
    done: int
    total: int


class IngestSummary(NamedTuple):
    """What an ingest found and did. Bytes count content; `new_` is what the store did not have before."""

    target: str
    manifest: str
    key: str
    unchanged: bool
    files: int
    folders: int
    modules: int
    compiled: int
    taken_over: int
    reused: int  # Bytecode that the store had already.
    deferred: int
    blobs: int
    new_blobs: int
    bytes: int
    new_bytes: int
    seconds: float
    files_per_second: float
    phases: dict[str, float]
    unreadable: list[Trouble]
    changed_during: list[str]
    excluded: int  # Files left out: secrets, and what the user excludes.
    secrets: list[str]  # Left out of the store because they look like secrets.
    roots: list[dict[str, str]]


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began

    def total(self) -> float:
        return time.perf_counter() - self.began


def ingest(
    target: Path,
    *,
    store: Store,
    python: str | None = None,
    output: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    jobs: int | None = None,
    optimisation: int = 0,
    force: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> IngestSummary:
    """Ingest a virtual environment, a site-packages or a project; publish `base.velo` of its environment.

    Args:
        python: the interpreter; by default the one that the folder belongs to.
        output: where to put another copy of the manifest, for `velo run --manifest`.
        jobs: processes that compile; by default one for each core.
        force: read every file again, and publish even if nothing seems changed.
        include: patterns for what is taken in though it is left out by default; see selection.py.
        exclude: patterns for what is left out; of the store and of what is served.

    Raises:
        VeloError: with a hint, for every input and every disk that cannot be used; nothing is published then.
    """
    work = _Ingest(target, store, progress or _ignore, jobs, optimisation, force, include, exclude)
    with without_collector():
        return work.run(python, output)


def _ignore(progress: Progress) -> None:
    """Nobody is watching."""


class _Ingest:
    """The state of one ingest."""

    def __init__(
        self,
        target: Path,
        store: Store,
        progress: Callable[[Progress], None],
        jobs: int | None,
        optimisation: int,
        force: bool,
        include: Sequence[str],
        exclude: Sequence[str],
    ) -> None:
        self.target = os.path.abspath(target)
        self.store = store
        self.progress = progress
        self.jobs = jobs or available_cores()
        self.optimisation = optimisation
        self.force = force
        self.patterns = [[shown(pattern) for pattern in patterns] for patterns in (include, exclude)]
        self.selection = Selection(self.target, include, exclude)
        self.clock = Clock()

    def run(self, python: str | None, output: Path | None) -> IngestSummary:
        if self.store.readonly:
            raise VeloError(
                "the store is read-only", hint="unset VELO_READONLY, or set VELO_HOME to another folder"
            )
        python = in_full(python) if python else find_python(self.target)
        if not os.path.isdir(self.target):
            raise VeloError(
                f"not a folder: {self.target}", hint="give an environment, site-packages or project"
            )
        if not os.access(self.target, os.R_OK | os.X_OK):
            raise VeloError(
                f"cannot read {shown(self.target)}: permission denied",
                hint="check its owner and its permissions",
            )
        with leases.shared(self.store, waiting=self._waiting), Catalog.open(self.store) as self.catalog:
            summary = self._ask(python)
            if not is_hook_current(self.store, self.build):
                with self.clock.phase("hook"):
                    hookcode.write(self.store, self.interpreter)
            if summary is None:
                summary = self._ingest_alone()
            if output is not None:
                with self.clock.phase("publish"):
                    place = Path(os.path.abspath(output))
                    _copy_manifest(self.path, place)
                    register(self.store, place)
        if summary.new_blobs or summary.compiled or summary.taken_over:
            with self.clock.phase("publish"):
                compact(self.store)
        seconds = self.clock.total()
        return summary._replace(
            seconds=seconds, files_per_second=summary.files / seconds, phases=dict(self.clock.phases)
        )

    def _waiting(self) -> None:
        self.progress(Progress("wait for a removal (velo gc)", 0, 0))

    # -- nothing to do -----------------------------------------------------------------------------

    def _ask(self, python: str) -> IngestSummary | None:
        """Ask the interpreter who it is, and look meanwhile whether everything is as an earlier ingest left
        it; that one's summary if so.
        """
        self.python = python
        asked = Probe(python)
        try:
            with self.clock.phase("scan"):
                receipt = self._receipt()
        except BaseException:
            asked.abandon()
            raise
        with self.clock.phase("interpreter"):
            self.interpreter = asked.answer()
        self.said = asked.said
        self.build = self.interpreter.build(self.optimisation)
        self.key = manifest_key(self.build, self.interpreter.prefix)
        self.path = self.store.manifest_folder(self.key) / f"{BASE}.velo"
        return self._as_before(receipt)

    def _receipt(self) -> Receipt | None:
        if self.force:
            return None
        found = find(str(self.store.home), self.target, self.python, self.optimisation, self.patterns)
        return next(filter(Receipt.holds, found), None)

    def _as_before(self, receipt: Receipt | None) -> IngestSummary | None:
        if receipt is None or receipt.said != self.said:
            return None
        try:
            unreadable = [Trouble(*fields) for fields in receipt.summary["unreadable"]]
            return IngestSummary(**{**receipt.summary, "unreadable": unreadable})
        except (KeyError, TypeError):
            return None

    # -- everything else ---------------------------------------------------------------------------

    def _ingest_alone(self) -> IngestSummary:
        asked = time.monotonic()
        with exclusive(self.store.run / f"{self.key}.lock", wait=LOCK_PATIENCE):
            if time.monotonic() - asked > LONG_WAIT:  # Somebody else was at it, and is done.
                with self.clock.phase("scan"):
                    summary = self._as_before(self._receipt())
                if summary is not None:
                    return summary
            with self.clock.phase("scan"):
                scanned = self._scan(areas_of(self.target, self.interpreter))
            installed = self._ask_what_is_installed()  # It looks while we store.
            try:
                summary = self._ingest(scanned, installed)
            finally:
                if installed is not None:
                    installed.abandon()
            forget_attempts(self.store, self.key)
        return summary

    def _scan(self, areas: Sequence[Area]) -> Scan:
        self.progress(Progress("scan", 0, 0))
        slow = any(filesystem_of(area.path).network for area in areas)
        return scan(areas, slow=slow, avoid=str(self.store.home), selection=self.selection)

    def _ingest(self, scanned: Scan, installed: Inventory | None) -> IngestSummary:
        with self.clock.phase("plan"):
            self.progress(Progress("plan", 0, 0))
            previous = published_draft(self.store, self.key, BASE)
            known = with_other(previous, published_draft(self.store, self.key, UPPER))
            plan = plan_ingest(
                scanned,
                known,
                self.build,
                content_below=self.target,
                checks={
                    area.path: default_check(area.kind, filesystem_of(area.path))
                    for area in scanned.areas
                    if area.kind is not None
                },
                force=self.force or not self._is_chosen_as_before(previous),
                selection=self.selection,
            )
            plan = self._with_lost_content(plan)
        with self.clock.phase("store"):
            contents = self._read(plan)
            with self.catalog.write() as writing:  # Now: compiling may take minutes, and be interrupted.
                for pack in contents.packs:
                    writing.put_pack(pack)
                for blob in contents.loose:
                    writing.put_loose(blob.digest, blob.size)
        draft = plan.draft
        settle_files(draft, plan, contents)
        note_links(draft, scanned, self.target, self.selection)
        keep_content(draft, previous, scanned, self.target)
        with self.clock.phase("bytecode"):
            provided = self._provide(scanned, plan, contents)
            merge_into(draft, provided)
        own_files = [record for record in draft.files.values() if record.path in plan.content]
        with self.clock.phase("publish"):
            self.progress(Progress("publish", 0, 0))
            still_there = list(filter(os.path.isdir, {*previous.roots, *outermost(previous)}))
            carry_over(draft, previous, [area.path for area in scanned.areas], still_there)
            merged = merge_packs(draft, self.store, self.build)
            startup.place_in_packs(draft, startup.kept(self.store, self.key), self.store)
            with self.catalog.write() as writing:
                for pack in (*provided.packs, *merged):
                    writing.put_pack(pack)
            manifest = assemble(draft, self.build, self.interpreter.prefix)
            expect_base(self.store, self.key)
            changed = publish_manifest(self.path, encode(manifest))
            trim_upper(self.store, self.key, self.build, {folder.path for folder in scanned.folders})
            startup.write_notes(self.store, self.key, draft.codes)
        with self.clock.phase("distributions"):
            if installed is not None:
                with suppress(VeloError, OSError):  # The programs ask Python, as ever, and have it learned.
                    installed.keep()
        secrets = [shown(path) for path in sorted(plan.secrets + contents.secrets)]
        counts = {
            "files": scanned.file_count(),
            "folders": len(scanned.folders),
            "modules": sum(path.endswith(".py") for path in draft.codes),
            "deferred": len(draft.deferred),
            "blobs": len({record.digest for record in own_files} - {NO_DIGEST}),
            "bytes": sum(record.size for record in own_files),
            "excluded": plan.excluded + len(secrets),
        }
        troubles = [
            Trouble(shown(path), reason)
            for path, reason in (*scanned.unreadable, *contents.unreadable, *provided.unreadable)
        ]
        changing = *scanned.unsettled, *sorted(scanned.changing), *contents.changed, *provided.changed
        changed_during = [shown(path) for path in changing]
        with self.clock.phase("publish"):
            self._remember(manifest)
        summary = IngestSummary(
            target=shown(self.target),
            manifest=str(self.path),
            key=self.key,
            unchanged=not changed,
            **counts,
            compiled=provided.compiled,
            taken_over=provided.taken_over,
            reused=provided.found,
            new_blobs=contents.new_blobs,
            new_bytes=contents.new_bytes,
            seconds=0.0,
            files_per_second=0.0,
            phases={},
            unreadable=troubles,
            secrets=secrets,
            changed_during=changed_during,
            roots=root_checks(manifest),
        )
        if not changed_during and not scanned.unreadable:
            with self.clock.phase("publish"):
                self._leave_receipt(summary, manifest, scanned, {record.digest for record in own_files})
        return summary

    def _with_lost_content(self, plan: Plan) -> Plan:
        """Read also what is recorded but not stored: lost, or recorded before its content was wanted."""
        unread = {item.path for item in plan.unread}
        recorded = {path: plan.draft.files[path] for path in plan.content if path not in unread}
        present = self.catalog.has_blobs({record.digest for record in recorded.values()})
        lost = tuple(
            Unread(path, entry_of_record(record), True, False, plan.content[path])
            for path, record in recorded.items()
            if record.digest not in present
        )
        return plan._replace(unread=plan.unread + lost)

    def _read(self, plan: Plan) -> Contents:
        report = Reporter(self.progress, "store", len(plan.unread))
        return read_contents(
            plan.unread,
            self.store,
            self.catalog,
            label=f"content:{shown(os.path.basename(self.target))}",
            threads=min(self.jobs, 8),
            slow=filesystem_of(self.target).network,
            advance=report.advance,
        )

    def _provide(self, scanned: Scan, plan: Plan, contents: Contents) -> Provided:
        labels = Labels(scanned, self.build)
        wanted = wanted_sources(plan, contents, labels)
        report = Reporter(self.progress, "bytecode", len(wanted))
        return provide_codes(
            wanted,
            self.store,
            self.catalog,
            self.build,
            self.interpreter.executable,
            jobs=self.jobs,
            advance=report.advance,
        )

    def _is_chosen_as_before(self, previous: Draft) -> bool:
        """Whether the patterns are those of last time; if not, what was taken in then may be a secret now.

        A catalogue that was made again does not know; then everything is looked at once more.
        """
        last = _scan_record(self.catalog.manifests().get(self.key, {}), self.target)
        if last is not None:
            return last.get("patterns") == self.patterns
        below = self.target.rstrip("/") + "/"
        return not any(
            path.startswith(below) and record.digest != NO_DIGEST for path, record in previous.files.items()
        )

    def _ask_what_is_installed(self) -> Inventory | None:
        """What programs ask `importlib.metadata` for; None if the interpreter cannot be asked."""
        python = self.interpreter
        try:
            return Inventory(
                self.store, self.key, self.build, python.executable, python.sys_path, python.stdlib
            )
        except (VeloError, OSError):
            return None

    def _remember(self, manifest: Manifest) -> None:
        """Note in the catalogue what was published, and which files were chosen."""
        record = self.catalog.manifests().get(self.key, {})
        scans = record.get("scans")
        record = manifest_record(manifest)
        record["scans"] = scans if isinstance(scans, dict) else {}
        record["scans"][shown(self.target)] = {"patterns": self.patterns}
        with self.catalog.write() as writing:
            writing.put_manifest(self.key, record)

    # -- for the next one --------------------------------------------------------------------------

    def _leave_receipt(
        self, summary: IngestSummary, manifest: Manifest, scanned: Scan, digests: set[bytes]
    ) -> None:
        """Note what the next ingest has to find unchanged; without a receipt it looks for itself."""
        digests.discard(NO_DIGEST)
        if self.catalog.has_blobs(digests) != digests or usable_packs(
            self.store, dict.fromkeys(manifest.packs)
        ) != set(manifest.packs):
            return  # Something has gone already: the next ingest shall find out.
        names, stamps, kinds = scanned.watched()
        # Folders of the search path that are none yet.
        missing = set(self.interpreter.sys_path) - {area.path for area in scanned.areas}
        watched = self._relied_on(manifest, digests)
        watched[KIND] += kinds + paths_of(map(os.fsencode, sorted(missing)))
        found = {what: stamps_of(paths, 1) for what, paths in watched.items()}
        watched[WHOLE] += names
        found[WHOLE] += stamps
        data = encode_receipt(
            said=self.said,
            patterns=self.patterns,
            summary=_of_next_time(summary),
            watched=watched,
            digest=joined(found),
            threads=SLOW_WALKERS if filesystem_of(self.target).network else available_cores(),
        )
        folder = self.path.parent
        with suppress(OSError):  # It costs the next ingest a second, and nothing else.
            put_unflushed(folder / name_of(self.target, self.python, self.optimisation), data)
            drop_oldest(str(folder), MOST_RECEIPTS)

    def _relied_on(self, manifest: Manifest, digests: set[bytes]) -> dict[str, bytes]:
        """What an ingest relies on in the store, by what counts of it: one path for each pack and each large
        file, however many files of the tree are in it.
        """
        packs = {self.store.packs / pack.name for pack in manifest.packs}
        loose = set()
        for digest, place in self.catalog.locations(digests).items():
            if place.where == LOOSE:
                loose.add(self.store.loose_path(digest))
            else:
                packs.add(self.store.pack_path(place.pack_id.hex()))
        code = hookcode.place(self.store, self.build)
        relied_on = {
            WHOLE: [self.path, code, hookcode.HOOK / "__init__.py", *sorted(packs)],
            LENGTH: sorted(loose),
            # Made again, it does not know what this ingest told it.
            INODE: [self.store.catalogue / MARK],
            KIND: [self.store.catalogue / "data.mdb"],
        }
        return {what: paths_of(map(os.fsencode, paths)) for what, paths in relied_on.items()}


def _of_next_time(summary: IngestSummary) -> dict[str, Any]:
    """What an ingest will say that finds nothing to do."""
    nothing = dict.fromkeys(("compiled", "taken_over", "reused", "new_blobs", "new_bytes"), 0)
    return {
        **summary._asdict(),
        **nothing,
        "unchanged": True,
        "unreadable": [list(trouble) for trouble in summary.unreadable[:MOST_TROUBLES]],
        "secrets": summary.secrets[:MOST_TROUBLES],
    }


class Reporter:
    """Counts one phase and tells whoever is watching, at most some fifty times a second."""

    def __init__(self, progress: Callable[[Progress], None], phase: str, total: int) -> None:
        self._progress = progress
        self._phase = phase
        self._total = total
        self._done = 0
        self._last = 0.0
        progress(Progress(phase, 0, total))

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last >= 0.02 or self._done == self._total:
            self._last = now
            self._progress(Progress(self._phase, self._done, self._total))


def areas_of(target: str, interpreter: Interpreter) -> tuple[Area, ...]:
    """What to walk: every search-path folder of the interpreter, and the target unless it is one of them."""
    areas = [
        Area(path, area_kind(path, interpreter.stdlib))
        for path in interpreter.sys_path
        if os.path.isdir(path)
    ]
    paths = {area.path for area in areas}
    if target in paths or any(target.startswith(f"{area.path}/") for area in areas if area.kind != STDLIB):
        return tuple(areas)
    kind = kind_of(target)
    if kind is None or target not in (interpreter.prefix, interpreter.base_prefix):
        areas.append(Area(target, kind))
    return tuple(areas)


def kind_of(target: str) -> int | None:
    """What a folder is taken for that is on no search path: an environment (None), packages or a project."""
    if os.path.isfile(f"{target}/pyvenv.cfg"):
        return None
    return SITE if _holds_distributions(target) else TREE


def _holds_distributions(folder: str) -> bool:
    try:
        return any(name.endswith(INFO_SUFFIX) for name in os.listdir(folder))
    except OSError:
        return False


def _scan_record(record: Mapping[str, Any], target: str) -> dict[str, Any] | None:
    scans = record.get("scans")
    found = scans.get(shown(target)) if isinstance(scans, dict) else None
    return found if isinstance(found, dict) else None


def _copy_manifest(source: Path, target: Path) -> None:
    try:
        data = read_file(source)
    except FileNotFoundError:
        raise StoreMissing(f"{source} has gone", hint="run `velo ingest` again") from None
    try:
        if read_file(target) == data:
            return
    except OSError:
        pass
    try:
        make_folders(target.parent)
        publish(target, [data])
    except (OSError, VeloError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        reason = os.strerror(cause.errno or 0).lower()
        raise VeloError(
            f"could not write {shown(str(target))}: {reason}", hint="give --output a file in another folder"
        ) from error

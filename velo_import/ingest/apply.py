# SPDX-License-Identifier: Apache-2.0
"""`ingest`: a whole environment or project, ahead of time, into the store and one published manifest.

Knows the order of the steps, and that nothing is published before all it refers to is on the disk: packs
and blobs, then the catalogue, then the manifest. The surprise: an unchanged tree is recognised by one
digest over all stamps, before any old manifest is read, because reading the manifest would take as long as
looking at the tree.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from velo_import import __version__
from velo_import.errors import StoreMissing, VeloError
from velo_import.format.manifest import (
    NO_DIGEST,
    SITE,
    STDLIB,
    TREE,
    VERSION,
    Manifest,
    PackRecord,
    encode,
    manifest_key,
)
from velo_import.host.files import explained, make_folders, publish, read_file, stamp_of
from velo_import.host.filesystems import filesystem_of
from velo_import.host.locks import exclusive
from velo_import.host.processes import available_cores
from velo_import.store import leases
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.roots import register

from . import hookcode
from .codes import Provided, merge_into, merge_packs, provide_codes, usable_packs, wanted_sources
from .content import Contents, read_contents, settle_files
from .distributions import INFO_SUFFIX, Labels
from .interpreter import Interpreter, Probe, find_python
from .links import note_links
from .notes import forget_attempts
from .plan import (
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
    is_hook_current,
    manifest_record,
    publish_manifest,
    published_draft,
    root_checks,
    shown,
    trim_upper,
)
from .scan import Area, Scan, Trouble, area_kind, scan
from .selection import Selection

LOCK_PATIENCE = 10.0
LONG_WAIT = 0.05
MOST_TROUBLES = 1000  # That the catalogue remembers.


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
    was_collecting = gc.isenabled()
    gc.disable()  # Many small records and no cycles: looking for some costs a fifth of the time.
    try:
        work = _Ingest(target, store, progress or _ignore, jobs, optimisation, force, include, exclude)
        return work.run(python, output)
    finally:
        if was_collecting:
            gc.enable()


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
        python = python or find_python(Path(self.target))
        if not os.path.isdir(self.target):
            raise VeloError(
                f"not a folder: {self.target}", hint="give an environment, site-packages or project"
            )
        with leases.shared(self.store), Catalog.open(self.store) as self.catalog:
            interpreter, scanned = self._look(python)
            self.interpreter = interpreter
            self.build = interpreter.build(self.optimisation)
            self.key = manifest_key(self.build, interpreter.prefix)
            self.path = self.store.manifest_folder(self.key) / f"{BASE}.velo"
            summary = self._unchanged(scanned) or self._ingest_alone(scanned)
            if output is not None:
                with self.clock.phase("publish"):
                    place = Path(os.path.abspath(output))
                    _copy_manifest(self.path, place)
                    register(self.store, place)
        if not (summary.unchanged and is_hook_current(self.store, self.build)):
            with self.clock.phase("hook"):
                hookcode.write(self.store, interpreter)
        seconds = self.clock.total()
        return summary._replace(
            seconds=seconds, files_per_second=summary.files / seconds, phases=dict(self.clock.phases)
        )

    # -- looking -----------------------------------------------------------------------------------

    def _look(self, python: str) -> tuple[Interpreter, Scan]:
        """Ask the interpreter and walk the tree, both at once where an earlier ingest tells what to walk."""
        asked = Probe(python)
        try:
            guess = self._areas_of_last_time()
            with self.clock.phase("scan"):
                scanned = self._scan(guess) if guess else None
        except BaseException:
            asked.abandon()
            raise
        with self.clock.phase("interpreter"):
            interpreter = asked.answer()
        areas = areas_of(self.target, interpreter)
        if scanned is None or scanned.areas != areas:
            with self.clock.phase("scan"):
                scanned = self._scan(areas)
        return interpreter, scanned

    def _areas_of_last_time(self) -> tuple[Area, ...]:
        for record in self.catalog.manifests().values():
            last = _scan_record(record, self.target)
            if last is not None and record.get("optimisation") == self.optimisation:
                try:
                    return tuple(Area(os.fsdecode(path), kind) for path, kind in last["areas"])
                except (KeyError, TypeError, ValueError):
                    continue
        return ()

    def _scan(self, areas: Sequence[Area]) -> Scan:
        self.progress(Progress("scan", 0, 0))
        slow = any(filesystem_of(area.path).network for area in areas)
        return scan(areas, slow=slow, avoid=str(self.store.home), selection=self.selection)

    # -- nothing to do -----------------------------------------------------------------------------

    def _unchanged(self, scanned: Scan) -> IngestSummary | None:
        """The summary of last time if everything is as it was, what was published included."""
        if self.force:
            return None
        record = self.catalog.manifests().get(self.key)
        last = None if record is None else _scan_record(record, self.target)
        if record is None or last is None or last.get("fingerprint") != self._fingerprint(scanned):
            return None
        try:
            if list(stamp_of(os.stat(self.path))) != record["stamp"]:
                return None
            packs = {PackRecord(*fields): None for fields in record["packs"]}
            if usable_packs(self.store, packs) != set(packs):
                return None
            return IngestSummary(
                target=shown(self.target),
                manifest=str(self.path),
                key=self.key,
                unchanged=True,
                **{
                    **last["counts"],
                    "compiled": 0,
                    "taken_over": 0,
                    "reused": 0,
                    "new_blobs": 0,
                    "new_bytes": 0,
                },
                seconds=0.0,
                files_per_second=0.0,
                phases={},
                unreadable=[Trouble(*fields) for fields in last["unreadable"]],
                secrets=last["secrets"],
                changed_during=[],
                roots=[dict(root) for root in record["root_checks"]],
            )
        except (OSError, KeyError, TypeError, ValueError):
            return None

    # -- everything else ---------------------------------------------------------------------------

    def _ingest_alone(self, scanned: Scan) -> IngestSummary:
        asked = time.monotonic()
        with exclusive(self.store.run / f"{self.key}.lock", wait=LOCK_PATIENCE):
            summary = None
            if time.monotonic() - asked > LONG_WAIT:
                # Somebody else was at it, and is done: what we saw may be older than what is published.
                with self.clock.phase("scan"):
                    scanned = self._scan(scanned.areas)
                summary = self._unchanged(scanned)
            if summary is None:
                summary = self._ingest(scanned)
            forget_attempts(self.store, self.key)
        return summary

    def _ingest(self, scanned: Scan) -> IngestSummary:
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
                force=self.force or not self._is_chosen_as_before(),
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
            with self.catalog.write() as writing:
                for pack in (*provided.packs, *merged):
                    writing.put_pack(pack)
            manifest = assemble(draft, self.build, self.interpreter.prefix)
            changed = publish_manifest(self.path, encode(manifest))
            trim_upper(self.store, self.key, self.build, {folder.path for folder in scanned.folders})
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
        changed_during = [shown(path) for path in (*scanned.unsettled, *contents.changed, *provided.changed)]
        with self.clock.phase("publish"):
            self._remember(manifest, scanned, not changed_during, counts, troubles, secrets)
        return IngestSummary(
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

    def _fingerprint(self, scanned: Scan) -> str:
        """One digest for all that a scan saw, and for all that decides what becomes of it."""
        maker = f"{__version__} {VERSION} {self.patterns}\n".encode()
        return blake3(maker + scanned.fingerprint_source()).hexdigest()

    def _is_chosen_as_before(self) -> bool:
        """Whether the patterns are those of last time; if not, what was taken in then may be a secret now."""
        last = _scan_record(self.catalog.manifests().get(self.key, {}), self.target)
        return last is None or last.get("patterns") == self.patterns

    def _remember(
        self,
        manifest: Manifest,
        scanned: Scan,
        is_whole: bool,
        counts: Mapping[str, int],
        troubles: Sequence[Trouble],
        secrets: Sequence[str],
    ) -> None:
        """Note in the catalogue what was published, so that an unchanged tree is recognised by its digest."""
        record = self.catalog.manifests().get(self.key, {})
        scans = record.get("scans")
        record = manifest_record(manifest)
        record["stamp"] = list(stamp_of(os.stat(self.path)))
        record["packs"] = [list(pack) for pack in manifest.packs]
        record["scans"] = scans if isinstance(scans, dict) else {}
        record["scans"][shown(self.target)] = {
            "fingerprint": self._fingerprint(scanned) if is_whole else "",
            "patterns": self.patterns,
            "areas": [[os.fsencode(area.path), area.kind] for area in scanned.areas],
            "counts": dict(counts),
            "unreadable": [list(trouble) for trouble in troubles[:MOST_TROUBLES]],
            "secrets": list(secrets[:MOST_TROUBLES]),
        }
        with self.catalog.write() as writing:
            writing.put_manifest(self.key, record)


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
    with explained(target.parent, "create"):
        make_folders(target.parent)
    publish(target, [data])

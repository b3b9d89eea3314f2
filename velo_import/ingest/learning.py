# SPDX-License-Identifier: Apache-2.0
"""`learn`: the folders that one program imported from, into the environment's upper manifest.

Knows the notes that the hook leaves, and how to add to what earlier programs taught without touching the
base. Only folders are learned, one by one; nothing is walked. The surprise: failure is recorded before the
work begins. A learner that the kernel ends for using too much time must not be started again by the next
program.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple

from velo_import.errors import StoreLocked, VeloError
from velo_import.format.manifest import ROOT_ONLY, encode, manifest_key
from velo_import.host.filesystems import filesystem_of
from velo_import.host.locks import exclusive, held, release
from velo_import.host.processes import available_cores
from velo_import.store import leases
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store

from . import hookcode, startup
from .codes import forget_damaged, merge_into, merge_packs, provide_codes, wanted_sources
from .content import read_contents, settle_files
from .distributions import Labels
from .imaging import image
from .imported import look
from .interpreter import Interpreter
from .metadata import learn_distributions
from .notes import Notes, joined, left_notes, names_of_left_notes, note_attempt, note_gain, parse_notes
from .plan import Code, Draft, FolderDraft, assemble, default_check, only_folders, plan_ingest, with_other
from .publish import BASE, UPPER, is_hook_current, publish_manifest, published_draft, shown
from .remembering import remember, remembered_path

LOCK_DESCRIPTOR = 3
MOST_ROUNDS = 8  # Of programs that end while we learn; what is left then waits for the next learner.
MOST_JOBS = 2  # Somebody may be working at this machine.
GONE = (os.strerror(errno.ENOENT), os.strerror(errno.ENOTDIR))  # Removed since, or inside of a zip file.
PATIENCE_SECONDS = 45.0  # Of compiling; what is left is learned next time.


class LearnSummary(NamedTuple):
    """What a learning run found and did."""

    key: str
    prefix: str
    manifest: str
    published: bool
    folders: int  # In the upper manifest now.
    modules: int  # With bytecode, in those folders.
    compiled: int
    taken_over: int
    reused: int
    deferred: int
    unreadable: list[str]
    seconds: float
    cpu_seconds: float
    remembered: int = 0  # Patterns and texts that the program asked for.


def learn(
    notes: bytes,
    store: Store,
    *,
    patience: float = PATIENCE_SECONDS,
    report: Callable[[LearnSummary], None] | None = None,
) -> LearnSummary:
    """Publish what one program imported, so that its next start is served.

    `report` is told how it went before the environment's lock is given back, so that who waits for the lock
    finds everything written.

    Raises:
        VeloError: the notes, the environment or the store cannot be used; StoreLocked while another is at it.
    """
    began = time.monotonic()
    parsed = parse_notes(notes)
    if manifest_key(parsed.build, parsed.prefix) != parsed.key:
        raise VeloError(
            "the notes are of another environment than they say", hint="run `velo doctor` in that environment"
        )

    def finish(summary: LearnSummary) -> LearnSummary:
        used = os.times()
        cpu = used.user + used.system + used.children_user + used.children_system
        summary = summary._replace(seconds=time.monotonic() - began, cpu_seconds=cpu)
        if report is not None:
            report(summary)
        return summary

    summary = _learn_locked(store, parsed.key, [parsed], began + patience, finish)
    for _ in range(MOST_ROUNDS):
        # A program that ended after our last look, but before we gave the lock back, could start nobody.
        if not names_of_left_notes(store, parsed.key):
            break
        try:
            summary = _learn_locked(store, parsed.key, [], began + patience, finish) or summary
        except StoreLocked:
            break  # Whoever holds it now will look as well.
    assert summary is not None  # There were notes to begin with.
    return summary


def _learn_locked(
    store: Store,
    key: str,
    given: list[Notes],
    deadline: float,
    finish: Callable[[LearnSummary], LearnSummary],
) -> LearnSummary | None:
    """Learn these notes and all that other programs leave meanwhile, under the environment's lock."""
    with _lock(store, key):
        waiting = given or list(left_notes(store, key))
        if not waiting:
            return None
        parsed, *waiting = waiting
        note_attempt(store, key, parsed.marks)
        if not is_hook_current(store, parsed.build):
            hookcode.write(store, _interpreter(parsed))
        with leases.shared(store), Catalog.open(store) as catalog:
            waiting += left_notes(store, key)
            for _ in range(MOST_ROUNDS):
                noted = parsed.marks
                parsed = joined(parsed, waiting)
                note_attempt(store, key, tuple(mark for mark in parsed.marks if mark not in noted))
                summary = _Learning(parsed, store, catalog, deadline).run()
                summary = summary._replace(remembered=_remember(store, parsed))
                if _learn_distributions(store, parsed) or summary.published:
                    note_gain(store, key, parsed.marks)
                waiting = list(left_notes(store, key))
                if not waiting:
                    break
        return finish(summary)


def _remember(store: Store, notes: Notes) -> int:
    """Do what the program did at its start once more, to be kept; how much of it there was.

    Not counted as a gain: a program that makes other patterns at each start must not be learned from each
    time.
    """
    if not notes.remember or not (
        notes.inputs or notes.remember == "again" or not remembered_path(store, notes.key).exists()
    ):
        return 0
    try:
        remember(store, notes.key, notes.build, notes.executable, notes.inputs)
    except (VeloError, OSError):
        return 0  # Only this is not learned: the hook asks for it again, less and less often.
    return len(notes.inputs)


def _learn_distributions(store: Store, notes: Notes) -> bool:
    """Look at what is installed, if the program asked for that in vain; whether it was anything new."""
    if not notes.metadata:
        return False
    try:
        return learn_distributions(store, notes.key, notes.build, notes.executable, notes.path, notes.stdlib)
    except (VeloError, OSError):
        return False  # Only this is not learned: the hook asks for it again, less and less often.


def _interpreter(notes: Notes) -> Interpreter:
    """The interpreter as far as the notes tell; asking it would cost as much as learning a small program."""
    build = notes.build
    return Interpreter(
        executable=notes.executable,
        prefix=notes.prefix,
        base_prefix=notes.base_prefix,
        version="",
        implementation="cpython",
        cache_tag=build.cache_tag,
        magic=build.magic,
        abiflags=build.abiflags,
        suffixes=build.suffixes,
        gil_disabled="t" in build.abiflags,
        stdlib=notes.stdlib,
        sys_path=notes.path,
    )


@contextmanager
def _lock(store: Store, key: str) -> Iterator[None]:
    """The environment's lock: the one the hook took for us if there is one, else our own."""
    path = store.run / f"{key}.lock"
    try:
        if os.path.samestat(os.fstat(LOCK_DESCRIPTOR), os.stat(path)) and held(LOCK_DESCRIPTOR):
            inherited = True
        else:
            inherited = False
    except OSError:
        inherited = False
    if inherited:
        try:
            yield
        finally:
            release(LOCK_DESCRIPTOR)
        return
    with exclusive(path):
        yield


class _Learning:
    """The state of one learning run."""

    def __init__(self, notes: Notes, store: Store, catalog: Catalog, deadline: float) -> None:
        self.notes = notes
        self.store = store
        self.catalog = catalog
        self.deadline = deadline
        self.base = published_draft(store, notes.key, BASE)
        self.upper = published_draft(store, notes.key, UPPER)

    def run(self) -> LearnSummary:
        scanned, carried = look(self.notes, self.upper)
        known = with_other(self.base, self.upper)
        # One of these may be here because the hook found its bytecode damaged.
        forget_damaged(known, {origin for _, origin in self.notes.modules}, self.store)
        plan = plan_ingest(
            scanned,
            known,
            self.notes.build,
            checks={
                area.path: default_check(area.kind, filesystem_of(area.path))
                for area in scanned.areas
                if area.kind is not None
            },
            wanted=[origin for _, origin in self.notes.modules],
        )
        contents = read_contents(plan.unread, self.store, self.catalog, label="", threads=1, advance=_ignore)
        draft = plan.draft
        settle_files(draft, plan, contents)
        provided = provide_codes(
            wanted_sources(plan, contents, Labels(scanned, self.notes.build)),
            self.store,
            self.catalog,
            self.notes.build,
            self.notes.executable,
            jobs=min(available_cores(), MOST_JOBS),
            advance=_ignore,
            deadline=self.deadline,
        )
        merge_into(draft, provided)
        starts = {each.start[:2]: each.pack for each in startup.kept(self.store, self.notes.key)}
        new = (startup.Kept(start, starts.get(start[:2], "")) for start in self.notes.starts)
        startup.keep(self.store, self.notes.key, new)
        upper = self._upper(draft, carried)
        merged = merge_packs(upper, self.store, self.notes.build)
        with self.catalog.write() as writing:
            for pack in (*provided.packs, *merged):
                writing.put_pack(pack)
        path = self.store.manifest_folder(self.notes.key) / f"{UPPER}.velo"
        if upper.folders:
            manifest = assemble(upper, self.notes.build, self.notes.prefix)
            manifest = manifest._replace(alone=not path.with_name(f"{BASE}.velo").exists())
            published = publish_manifest(path, encode(manifest))
        else:
            published = path.exists()
            path.unlink(missing_ok=True)
        codes = {**self.base.codes, **upper.codes}
        self._image(codes)
        startup.write_notes(self.store, self.notes.key, codes)
        return LearnSummary(
            key=self.notes.key,
            prefix=self.notes.prefix,
            manifest=str(path),
            published=published,
            folders=len(upper.folders),
            modules=len(upper.codes),
            compiled=provided.compiled,
            taken_over=provided.taken_over,
            reused=provided.found,
            deferred=len(provided.deferred),
            unreadable=[
                shown(trouble.path)
                for trouble in (*scanned.unreadable, *contents.unreadable)
                if trouble.reason not in GONE
            ],
            seconds=0.0,
            cpu_seconds=0.0,
        )

    def _image(self, codes: Mapping[str, Code]) -> None:
        """Make images of what these programs start with. Not counted as a gain, as what is remembered."""
        notes = self.notes
        if not notes.images or time.monotonic() > self.deadline:
            return
        starts = [each.start for each in startup.kept(self.store, notes.key)]
        starts = starts if notes.images == "again" else [*notes.starts]
        wanted = dict.fromkeys(origin for start in starts for origin in start.origins)
        with suppress(VeloError, OSError), startup.Payloads(self.store) as payloads:
            image(
                self.store,
                notes.key,
                notes.build,
                notes.executable,
                [codes[origin] for origin in wanted if origin in codes],
                payloads.of,
                anew=notes.images == "again",
            )

    def _upper(self, draft: Draft, carried: dict[str, FolderDraft]) -> Draft:
        """What the upper manifest has to say: all that was learned, less what the base says just as well."""
        both = Draft(
            {**self.upper.roots, **draft.roots},
            {**carried, **draft.folders},
            {**self.upper.files, **draft.files},
            {**self.upper.codes, **draft.codes},
            draft.deferred | {path for path in self.upper.deferred if path not in draft.files},
        )
        for path in draft.files:  # What this run has looked at counts, also where it found less than before.
            if path not in draft.codes:
                both.codes.pop(path, None)
        startup.place_in_packs(both, startup.kept(self.store, self.notes.key), self.store)
        folders = {
            path: folder
            for path, folder in sorted(both.folders.items())
            if folder.root in both.roots and not says_the_same(self.base, both, folder)
        }
        return only_folders(both, folders)


def says_the_same(base: Draft, draft: Draft, folder: FolderDraft) -> bool:
    """Whether the base serves a folder exactly as the draft would."""
    known = base.folders.get(folder.path)
    if known is None or known[2:] != folder[2:]:
        return False
    ours, theirs = draft.roots[folder.root], base.roots[known.root]
    if ours.check != theirs.check or (ours.check == ROOT_ONLY and ours[3:5] != theirs[3:5]):
        return False
    return all(
        draft.codes.get(path) == base.codes.get(path)
        and (path in draft.deferred) == (path in base.deferred)
        and _stamp(draft, path) == _stamp(base, path)
        for path in (module.path for module in folder.modules)
        if path
    )


def _stamp(draft: Draft, path: str) -> tuple[object, ...]:
    record = draft.files.get(path)
    return () if record is None else (record.size, record.mtime_ns, record.ctime_ns, record.ino)


def _ignore(count: int) -> None:
    """Nobody is watching."""

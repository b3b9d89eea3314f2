# SPDX-License-Identifier: Apache-2.0
"""`learn` for Node: what programs of one subject load, into that subject's index; and the same for a tree.

Knows the order: a Node that runs none of the modules reads, compiles and resolves them, then each answer is
asked for once more here, for the facts by which it holds. The surprise: nothing of the last index is believed
but its list of questions. What it says is worked out again, so an index is as fresh as its youngest learner.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from velo_import.errors import StoreCorrupt, VeloError
from velo_import.format.manifest import SITE, TREE, PackRecord
from velo_import.format.node import (
    START,
    File,
    Frame,
    Index,
    Resolution,
    Stamp,
    Tree,
    build_tag,
    decode_index,
    encode,
    index_name,
)
from velo_import.host.files import create_temporary, publish, read_file, remove_quietly
from velo_import.host.filesystems import filesystem_of
from velo_import.host.locks import exclusive
from velo_import.store import leases
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import open_pack

from .codes import usable_packs
from .content import Changing, entry_of, read_steadily, read_whole
from .nodenotes import Notes, take_notes
from .noderesolve import MODULES, Questions, Resolver, Unclear, stamp_of
from .nodes import plain_environment, worker_script
from .notes import note_attempt, note_gain
from .plan import default_check
from .scan import FINE_TICK_NS
from .units import Candidate, Place, digest_of, gathered, is_of, keep_units

MAIN = ""  # The folder of what a program's command line leads to.
MOST_ROUNDS = 8
ATTEMPTS = 4  # At a tree that somebody is writing to.
MOST_FILES = 100_000  # In one index.
WORKER_SECONDS = 600.0
# What installers write last into a `node_modules`.
_MARKS = (".package-lock.json", ".yarn-integrity", ".yarn-state.yml", ".modules.yaml")
_BY_TYPE = (".js", "")  # Suffixes of files that are CommonJS only if a package.json does not say otherwise.


class NodeSummary(NamedTuple):
    """What a learning run found and did."""

    key: str
    prefix: str  # The subject.
    build: str
    published: bool
    files: int
    resolutions: int
    compiled: int
    captured: int
    left: dict[str, str]  # Files that are left to Node, and why.
    unclear: int  # Requests that are left to Node.
    seconds: float


class Answers(NamedTuple):
    """What a Node said about files and requests, having run none of them."""

    tag: str
    identity: str
    executable: str
    frames: tuple[Frame, ...]
    files: dict[str, Learned]
    left: dict[str, str]
    resolved: dict[tuple[str, str], str]  # Folder and request; empty where it leads nowhere.


class Learned(NamedTuple):
    """One file: its kind, and the unit that was made of it."""

    kind: int
    unit: bytes


class _File(NamedTuple):
    """A file of an index in the making."""

    kind: int
    stamp: Stamp
    place: Place


def learn_node(
    name: str, store: Store, *, report: Callable[[NodeSummary], None] = lambda summary: None
) -> NodeSummary | None:
    """Publish what programs of one index have loaded; None if nobody left anything.

    Raises:
        StoreLocked: another learner is at it, and will find what was left.
        VeloError: that Node or the store cannot be used.
    """
    summary = None
    started = store.node_notes / f"{name}.started"
    try:
        with exclusive(store.run / f"{name}.lock"):
            for _ in range(MOST_ROUNDS):
                notes = take_notes(store, name)
                if notes is None and not started.exists():
                    break
                if notes is None:
                    remove_quietly(started)  # From here on programs start somebody else; so look once more.
                    continue
                note_attempt(store, name, notes.marks)
                with leases.shared(store), Catalog.open(store) as catalog:
                    summary = learn_from(notes, store, catalog)
                if summary.published:
                    note_gain(store, name, notes.marks)
                report(summary)
    finally:
        remove_quietly(started)
    return summary


def learn_from(notes: Notes, store: Store, catalog: Catalog, kind: str = START) -> NodeSummary:
    """Learn what these notes name, on top of what is known. Hold the lease and the index's lock."""
    began = time.monotonic()
    name = index_name(kind, notes.identity, notes.subject)
    known = published_index(store, name)
    answers = ask_node(notes, store)
    if answers.identity != notes.identity:
        raise VeloError(
            f"{notes.executable} is not the Node that the program ran under", hint="run the program once more"
        )
    work = _Learning(notes, answers, known, store, catalog)
    index, compiled, captured = work.run()
    data = encode(index)
    path = store.index_path(name)
    with suppress(OSError):
        if read_file(path) == data:
            return work.summary(name, index, False, compiled, captured, time.monotonic() - began)
    publish(path, [data])
    return work.summary(name, index, True, compiled, captured, time.monotonic() - began)


def published_index(store: Store, name: str) -> Index | None:
    """What is published under that name; None if there is nothing usable."""
    try:
        return decode_index(read_file(store.index_path(name)))
    except (OSError, StoreCorrupt):
        return None


def ask_node(notes: Notes, store: Store) -> Answers:
    """Have that Node read, compile and resolve what notes name, in a process of its own.

    Raises:
        VeloError: it cannot be run, or does not answer as our worker does.
    """
    descriptor, out = create_temporary(store.run)
    os.close(descriptor)
    records = [f"out={out}"]
    records += [f"main={path}" for path in notes.mains]
    records += [f"file={path}" for path in notes.files]
    records += [f"request={path}\t{request}" for path, request in notes.requests]
    hint = "programs run unchanged; `velo doctor` says more"
    script = worker_script()
    if script is None:
        raise VeloError("this Velo was installed without its part for Node", hint="install Velo again")
    try:
        done = subprocess.run(
            [notes.executable, *notes.options, str(script)],
            input="".join(f"{record}\0" for record in records).encode(),
            capture_output=True,
            env=plain_environment(os.environ),
            cwd="/",
            timeout=WORKER_SECONDS,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise VeloError(f"{notes.executable} could not look at the modules: {said}", hint=hint)
        return _answers(done.stdout, read_file(out))
    except (OSError, ValueError, KeyError, subprocess.TimeoutExpired) as error:
        raise VeloError(f"{notes.executable} does not answer: {error}", hint=hint) from error
    finally:
        remove_quietly(out)


def _answers(output: bytes, units: bytes) -> Answers:
    first, *others = map(json.loads, output.splitlines())
    files: dict[str, Learned] = {}
    left: dict[str, str] = {}
    resolved: dict[tuple[str, str], str] = {}
    for each in others:
        if "from" in each:
            resolved[os.path.dirname(each["from"]), each["request"]] = each["path"] or ""
        elif "main" in each:
            resolved[MAIN, each["main"]] = each["path"] or ""
        elif "left" in each:
            left[each["file"]] = str(each["left"])
        else:
            offset, length = each["unit"]
            files[each["file"]] = Learned(each["kind"], units[offset : offset + length])
            folder = os.path.dirname(each["file"])
            resolved |= {(folder, request): path for request, path in each["requests"].items()}
    _, version, architecture, *_ = first["identity"].split("\n")
    status = os.stat(first["execPath"])
    return Answers(
        build_tag(version, architecture, first["tag"], status.st_size, status.st_mtime_ns),
        first["identity"],
        first["execPath"],
        tuple(Frame(*frame) for frame in first["frames"]),
        files,
        left,
        resolved,
    )


class _Learning:
    """The state of one learning run."""

    def __init__(
        self, notes: Notes, answers: Answers, known: Index | None, store: Store, catalog: Catalog
    ) -> None:
        self.notes = notes
        self.answers = answers
        self.known = known
        self.store = store
        self.catalog = catalog
        self.label = os.path.basename(notes.subject.rstrip("/-")) or "node"
        self.unclear = 0

    def run(self) -> tuple[Index, int, int]:
        """The new index, and how many units were compiled and how many had been captured by programs."""
        files = self._carried_files()
        sources, captured = self._sources()
        candidates = [Candidate(digest, unit) for _, _, digest, unit in sources.values()]
        places, packs = keep_units(
            candidates, self.answers.tag, self.store, self.catalog, label=f"node:{self.label}"
        )
        for path, (kind, stamp, digest, _) in sources.items():
            files[path] = _File(kind, stamp, places[digest])
        files = dict(list(files.items())[-MOST_FILES:])
        gathering = {path: file.place for path, file in files.items()}
        gathering, merged = gathered(gathering, self.answers.tag, self.store, label=f"node:{self.label}")
        files = {path: files[path]._replace(place=place) for path, place in gathering.items()}
        with self.catalog.write() as writing:
            for pack in (*packs, *merged):
                writing.put_pack(pack)
        return self._settled_index(files), len(sources) - captured, captured

    def summary(
        self, name: str, index: Index, published: bool, compiled: int, captured: int, seconds: float
    ) -> NodeSummary:
        return NodeSummary(
            name,
            index.subject,
            index.build,
            published,
            len(index.files),
            len(index.resolutions),
            compiled,
            captured,
            self.answers.left,
            self.unclear,
            seconds,
        )

    # -- files and their units ---------------------------------------------------------------------

    def _carried_files(self) -> dict[str, _File]:
        """The files of the last index that are what they were, and whose units' packs are."""
        if self.known is None:
            return {}
        usable = usable_packs(self.store, dict.fromkeys(self.known.packs))
        sources = _sources_in(usable, self.store)
        files = {}
        for file in self.known.files:
            pack = self.known.packs[file.pack]
            digest = sources.get((pack.name, file.offset, file.length))
            if digest is not None and _stamp_now(file.path) == file.stamp:
                files[file.path] = _File(file.kind, file.stamp, Place(digest, pack, file.offset, file.length))
        return files

    def _sources(self) -> tuple[dict[str, tuple[int, Stamp, bytes, bytes]], int]:
        """Of each file that Node has looked at: kind, stamp, digest, unit; how many units programs gave."""
        found = {}
        captured = 0
        for path, learned in self.answers.files.items():
            try:
                entry = entry_of(os.path.basename(path), os.lstat(path), False)
                if not stat.S_ISREG(entry.mode):
                    continue
                source, entry = read_steadily(path, entry, read_whole)
            except (OSError, Changing):
                continue
            unit = self.notes.units.get(path, b"")
            if is_of(unit, source, is_foreign=True):
                captured += 1
            elif is_of(learned.unit, source, is_foreign=False):
                unit = learned.unit
            else:  # It has changed since Node looked at it.
                continue
            stamp = Stamp(entry.mtime_ns, entry.ctime_ns, entry.ino, entry.size)
            found[path] = learned.kind, stamp, digest_of(source), unit
        return found, captured

    # -- what has to be so still -------------------------------------------------------------------

    def _settled_index(self, files: Mapping[str, _File]) -> Index:
        """The index, made again while anything that it relies on is so young that a change might not show."""
        for attempt in range(ATTEMPTS):
            began = time.time_ns()
            index, newest = self._index(files)
            if newest + FINE_TICK_NS <= began or attempt == ATTEMPTS - 1:
                break
            time.sleep(FINE_TICK_NS / 1e9)
        if newest + FINE_TICK_NS > began:
            raise VeloError("the modules keep changing", hint="they are learned when they hold still")
        return index

    def _index(self, files: Mapping[str, _File]) -> tuple[Index, int]:
        questions = Questions()
        extensions = self.answers.identity.split("\n")[4].split(",")
        resolver = Resolver(questions, extensions)
        trees = _Trees()
        kept: dict[str, File] = {}
        packs = {file.place.pack: 0 for file in files.values()}
        packs = {pack: number for number, pack in enumerate(packs)}
        for path, file in files.items():
            using = self._facts_of_type(path, questions)
            if using is not None:
                place = file.place
                kept[path] = File(
                    path,
                    file.kind,
                    trees.of(path),
                    file.stamp,
                    using,
                    packs[place.pack],
                    place.offset,
                    place.length,
                )
        numbers = {path: number for number, path in enumerate(kept)}
        resolutions = []
        self.unclear = 0
        for (folder, request), answer in self._questions().items():
            try:
                using = resolver.resolve(folder or "/", request, answer)
            except Unclear:
                self.unclear += 1
                continue
            resolutions.append(Resolution(folder, request, answer, numbers.get(answer, -1), using))
        rooted = [trees.facts(tree, questions) for tree in trees.paths]
        facts = tuple(fact._replace(tree=trees.of(fact.path)) for fact in questions.facts)
        status = os.stat(self.answers.executable)
        index = Index(
            self.notes.identity,
            self.notes.subject,
            self.answers.executable,
            stamp_of(status),
            self.answers.frames,
            trees.rows(rooted),
            tuple(packs),
            facts,
            tuple(resolutions),
            tuple(kept.values()),
        )
        return index, questions.newest

    def _questions(self) -> dict[tuple[str, str], str]:
        """Folder and request of everything that is to be answered, with Node's answer."""
        asked = {}
        if self.known is not None:
            asked = {(each.folder, each.request): each.path for each in self.known.resolutions}
        asked |= self.answers.resolved
        return {question: answer for question, answer in asked.items() if answer}

    def _facts_of_type(self, path: str, questions: Questions) -> tuple[int, ...] | None:
        """The facts by which a file is CommonJS; None if that is not clear."""
        using: list[int] = []
        try:
            if os.path.splitext(path)[1] in _BY_TYPE:
                scope = questions.scope(os.path.dirname(path), using)
                if scope is not None and scope[1].get("type") == "module":
                    return None
        except Unclear:
            return None
        return tuple(dict.fromkeys(each for each in using if each >= 0))


class _Trees:
    """Which paths are checked together: those below one `node_modules`, and all others."""

    def __init__(self) -> None:
        self.paths: dict[str, int] = {"/": 0}

    def of(self, path: str) -> int:
        outside, slash, _ = f"{path}/".partition(f"/{MODULES}/")
        return self.paths.setdefault(f"{outside}/{MODULES}" if slash else "/", len(self.paths))

    def facts(self, folder: str, questions: Questions) -> tuple[int, ...]:
        """What check `root` asks, once: the folder that packages are installed to, and what says which."""
        if folder == "/":
            return ()
        using: list[int] = []
        with suppress(Unclear):
            if questions.status(folder) is not None:
                using.append(questions.unchanged(folder))
            for mark in _MARKS:
                if questions.status(os.path.join(folder, mark)) is not None:
                    using.append(questions.unchanged(os.path.join(folder, mark)))
        return tuple(using)

    def rows(self, facts: Iterable[tuple[int, ...]]) -> tuple[Tree, ...]:
        return tuple(
            Tree(path, default_check(TREE if path == "/" else SITE, filesystem_of(path)), its_facts)
            for path, its_facts in zip(self.paths, facts, strict=True)
        )


def _stamp_now(path: str) -> Stamp | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return stamp_of(status) if stat.S_ISREG(status.st_mode) else None


def _sources_in(packs: Iterable[PackRecord], store: Store) -> dict[tuple[str, int, int], bytes]:
    """Which source each payload of these packs is of."""
    found: dict[tuple[str, int, int], bytes] = {}
    for pack in packs:
        with suppress(OSError, StoreCorrupt), open_pack(store.packs / pack.name) as file:
            found |= {(pack.name, each.offset, each.length): each.source for each in file.entries}
    return found

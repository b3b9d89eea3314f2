# SPDX-License-Identifier: Apache-2.0
"""`learn` for Node: what programs of one subject load, into that subject's index; and the same for a tree.

Knows the order: a Node that runs none of the modules reads, compiles and resolves them, then each answer is
asked for once more here, for the facts by which it holds. The surprise: nothing of the last index is believed
but its list of questions. What it says is worked out again, so an index is as fresh as its youngest learner.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

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

from ..codes import usable_packs
from ..content import Changing, entry_of, read_steadily, read_whole
from ..notes import note_attempt, note_gain
from ..plan import default_check
from ..scan import FINE_TICK_NS
from .interpreters import answers_of
from .notes import Notes, take_notes
from .resolve import MODULES, Questions, Resolver, Unclear, stamp_of
from .units import Candidate, Keeper, Place, digest_of, gathered, is_of

BATCH_FILES = 500  # That one Node looks at before another one does.
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
    left: dict[str, int]  # How many files are left to Node, by reason.
    unclear: int  # Requests that are left to Node.
    seconds: float


class Answers(NamedTuple):
    """What a Node said about files and requests, having run none of them."""

    tag: str
    identity: str
    executable: str
    is_crc: bool  # The kind of checksum that it computes.
    frames: tuple[Frame, ...]
    files: dict[str, Learned]
    left: dict[str, str]
    resolved: dict[tuple[str, str], str]  # Folder and request; empty where it leads nowhere.


class Learned(NamedTuple):
    """One file: its kind, and the unit that was made of it."""

    kind: int
    unit: bytes


class _Source(NamedTuple):
    """A file that Node has looked at: of its unit only the place is still to come."""

    kind: int
    stamp: Stamp
    digest: bytes


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
    return summary


def learn_from(
    notes: Notes,
    store: Store,
    catalog: Catalog,
    *,
    kind: str = START,
    jobs: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> NodeSummary:
    """Learn what these notes name, on top of what is known. Hold the lease and the index's lock."""
    began = time.monotonic()
    name = index_name(kind, notes.identity, notes.subject)
    work = _Learning(notes, published_index(store, name), store, catalog)
    index = work.run(jobs, advance)
    data = encode(index)
    path = store.index_path(name)
    is_new = True
    with suppress(OSError):
        is_new = read_file(path) != data
    if is_new:
        publish(path, [data])
    return NodeSummary(
        name,
        index.subject,
        index.build,
        is_new,
        len(index.files),
        len(index.resolutions),
        work.compiled,
        work.captured,
        dict(Counter(work.left.values())),
        work.unclear,
        time.monotonic() - began,
    )


def published_index(store: Store, name: str) -> Index | None:
    """What is published under that name; None if there is nothing usable."""
    try:
        return decode_index(read_file(store.index_path(name)))
    except (OSError, StoreCorrupt):
        return None


def ask_node(notes: Notes, store: Store) -> Answers:
    """Have that Node read, compile and resolve what notes name, in a process of its own.

    Raises:
        VeloError: it cannot be run, is another one, or does not answer as our worker does.
    """
    descriptor, out = create_temporary(store.run)
    os.close(descriptor)
    records = [f"out={out}"]
    records += [f"main={path}" for path in notes.mains]
    records += [f"file={path}" for path in notes.files]
    records += [f"request={path}\t{request}" for path, request in notes.requests]
    try:
        said = answers_of(
            notes.executable, notes.options, "".join(f"{record}\0" for record in records), WORKER_SECONDS
        )
        answers = _answers(said, read_file(out))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise VeloError(f"{notes.executable} answers what nobody asked: {error}") from error
    finally:
        remove_quietly(out)
    if answers.identity != notes.identity:
        raise VeloError(
            f"{notes.executable} is not the Node that the program ran under", hint="run the program once more"
        )
    return answers


def _answers(said: list[dict[str, Any]], units: bytes) -> Answers:
    first, *others = said
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
        bool(first["crc"]),
        tuple(Frame(*frame) for frame in first["frames"]),
        files,
        left,
        resolved,
    )


def _batches(notes: Notes) -> Iterator[Notes]:
    """The same notes in pieces: what was made of all modules of a large tree would not fit into memory."""
    for at in range(0, max(len(notes.files), 1), BATCH_FILES):
        piece = notes._replace(files=notes.files[at : at + BATCH_FILES])
        yield piece if at == 0 else piece._replace(mains=(), requests=())


def extensions_of(identity: str) -> list[str]:
    """The suffixes that `require` tries, in Node's order."""
    return identity.split("\n")[4].split(",")


def with_stale_requests(notes: Notes, known: Index) -> Notes:
    """The notes, and what no longer leads where it did: the files that request it may not have changed, and
    are not looked at then.
    """
    resolver = Resolver(Questions(), extensions_of(known.identity))
    requests, mains = [], []
    for each in known.resolutions:
        try:
            resolver.resolve(each.folder or "/", each.request, each.path)
        except Unclear:
            if each.folder == MAIN:
                mains.append(each.request)
            else:
                requests.append((os.path.join(each.folder, "-.js"), each.request))
    return notes._replace(mains=(*notes.mains, *mains), requests=(*notes.requests, *requests))


class _Learning:
    """The state of one learning run."""

    def __init__(self, notes: Notes, known: Index | None, store: Store, catalog: Catalog) -> None:
        self.notes = notes if known is None else with_stale_requests(notes, known)
        self.known = known
        self.store = store
        self.catalog = catalog
        self.label = f"node:{os.path.basename(notes.subject.rstrip('/-')) or 'node'}"
        self.unclear = self.captured = self.compiled = 0
        self.left: dict[str, str] = {}
        self.resolved: dict[tuple[str, str], str] = {}

    def run(self, jobs: int, advance: Callable[[int], None]) -> Index:
        """Look at everything, keep the units, and make the new index."""
        sources: dict[str, _Source] = {}
        with ThreadPoolExecutor(jobs) as pool:
            asked = _ahead(pool, partial(ask_node, store=self.store), _batches(self.notes), jobs)
            first = next(asked)
            self.about = first._replace(files={}, left={}, resolved={})
            with Keeper(first.tag, self.store, self.catalog, label=self.label) as keeper:
                for answers in chain([first], asked):
                    sources |= self._kept(answers, keeper)
                    self.left |= answers.left
                    self.resolved |= answers.resolved
                    advance(len(answers.files) + len(answers.left))
                places, packs = keeper.finish()
        files = self._carried_files()
        for path, source in sources.items():
            files[path] = _File(source.kind, source.stamp, places[source.digest])
        files = dict(list(files.items())[-MOST_FILES:])
        gathering = {path: file.place for path, file in files.items()}
        gathering, merged = gathered(gathering, first.tag, self.store, label=self.label)
        files = {path: files[path]._replace(place=place) for path, place in gathering.items()}
        with self.catalog.write() as writing:
            for pack in (*packs, *merged):
                writing.put_pack(pack)
        return self._settled_index(files)

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
            if digest is not None and file.path not in self.left and _stamp_now(file.path) == file.stamp:
                place = Place(digest, pack, file.offset, file.length)
                files[file.path] = _File(file.kind, file.stamp, place)
        return files

    def _kept(self, answers: Answers, keeper: Keeper) -> dict[str, _Source]:
        """The files that Node has looked at, and that are still what it saw; their units are kept."""
        found = {}
        units = []
        for path, learned in answers.files.items():
            try:
                entry = entry_of(os.path.basename(path), os.lstat(path), False)
                if not stat.S_ISREG(entry.mode):
                    continue
                source, entry = read_steadily(path, entry, read_whole)
            except (OSError, Changing):
                continue
            unit = self.notes.units.get(path, b"")
            if is_of(unit, source, is_foreign=True):
                self.captured += 1
            elif is_of(learned.unit, source, is_foreign=False):
                unit = learned.unit
                self.compiled += 1
            else:
                continue
            units.append(Candidate(digest_of(source), unit))
            stamp = Stamp(entry.mtime_ns, entry.ctime_ns, entry.ino, entry.size)
            found[path] = _Source(learned.kind, stamp, units[-1].digest)
        keeper.add(units)
        return found

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
        resolver = Resolver(questions, extensions_of(self.notes.identity))
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
        for (folder, request), answer in self._questions(numbers).items():
            try:
                using = resolver.resolve(folder or "/", request, answer)
            except Unclear:
                self.unclear += 1
                continue
            resolutions.append(Resolution(folder, request, answer, numbers.get(answer, -1), using))
        for fact in questions.facts:
            trees.of(fact.path)
        rooted = [trees.facts(tree, questions) for tree in trees.paths]
        facts = tuple(fact._replace(tree=trees.of(fact.path)) for fact in questions.facts)
        status = os.stat(self.about.executable)
        index = Index(
            self.notes.identity,
            self.notes.subject,
            self.about.executable,
            stamp_of(status),
            self.about.is_crc,
            self.about.frames,
            trees.rows(rooted),
            tuple(packs),
            facts,
            tuple(resolutions),
            tuple(kept.values()),
        )
        return index, questions.newest

    def _questions(self, files: Container[str]) -> dict[tuple[str, str], str]:
        """Folder and request of everything that is to be answered, with Node's answer.

        A module that no program has loaded yet is not waited for: who reads an index reads all of it.
        """
        known = () if self.known is None else self.known.resolutions
        asked = {(each.folder, each.request): each.path for each in known}
        explicit = {(os.path.dirname(path), request) for path, request in self.notes.requests}
        for question, answer in self.resolved.items():
            is_module = os.path.splitext(answer)[1] in ("", ".js", ".cjs", ".json")
            if not is_module or answer in files or question in explicit or question[0] == MAIN:
                asked[question] = answer
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


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Notes], Answers], pieces: Iterable[Notes], count: int
) -> Iterator[Answers]:
    """The answers to each piece, in order; `count` of them are worked on meanwhile."""
    running: deque[Future[Answers]] = deque()
    for piece in pieces:
        running.append(pool.submit(work, piece))
        if len(running) > count:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def unchanged_files(store: Store, name: str) -> set[str]:
    """The files of an index that need not be looked at: they and their units are what they were."""
    known = published_index(store, name)
    if known is None:
        return set()
    usable = usable_packs(store, dict.fromkeys(known.packs))
    return {
        file.path
        for file in known.files
        if known.packs[file.pack] in usable and _stamp_now(file.path) == file.stamp
    }


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

# SPDX-License-Identifier: Apache-2.0
"""What is on disk: folders, their files and the stamps of both, as one walk saw them.

Knows names, stamps and where the areas of an environment (standard library, site-packages, projects) begin
and end; reads no file and judges no content. Folders behind symbolic links are named and not entered: that
ends loops, and keeps a link to `/` from becoming the whole machine. The surprise: a walk may sleep for a
moment, because a stamp taken within a clock tick of a change could not tell the next change from none.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from struct import Struct
from typing import NamedTuple

from velo_import.format.manifest import SITE, STDLIB, TREE
from velo_import.host.folders import fastest_reader

from .selection import EVERYTHING, Selection

# A file changed at most this long before we looked may change again without getting another time. Kernels
# stamp with the last timer tick (up to 10 ms old); file systems without nanoseconds with the second, FAT
# with two.
FINE_TICK_NS = 50_000_000
COARSE_TICK_NS = 2_100_000_000
ROUNDS = 4  # How often a folder that keeps changing is looked at again.

CACHE = "__pycache__"
# Not entered below the standard library: other people's packages, and tests that no program imports.
STDLIB_SKIPS = frozenset({"site-packages", "dist-packages"})
STDLIB_TESTS = ("test", "idlelib/idle_test", "lib2to3/tests", "tkinter/test")
# Not entered below a project: histories, caches and other languages' packages.
TREE_SKIPS = frozenset(
    {".git", ".hg", ".svn", ".bzr", ".tox", ".nox", ".cache", ".eggs", ".idea", ".vscode", "node_modules"}
    | {".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints", ".direnv", ".pixi"}
)
read_folder = fastest_reader()
ENVIRONMENT_MARK = "pyvenv.cfg"
_STAMP = Struct("<qqqQQ").pack  # As host/stamps.py has it.
SLOW_WALKERS = 16  # Requests in flight on a network file system, where each costs a round trip.


class FileEntry(NamedTuple):
    """One regular file; for a symbolic link to one, what the link leads to."""

    name: str
    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    mode: int
    is_link: bool


class Area(NamedTuple):
    """A folder to walk and what it is: a root of one of the manifest's kinds, or (None) files to keep."""

    path: str
    kind: int | None


class Folder(NamedTuple):
    """One folder's listing with the stamp it had before it was listed."""

    path: str
    mtime_ns: int
    ctime_ns: int
    ino: int
    mode: int
    files: tuple[FileEntry, ...]
    folders: tuple[str, ...]
    links: tuple[str, ...]  # Symbolic links that lead to folders; they are not entered.
    others: tuple[str, ...]  # Broken links, sockets, pipes: names that count in a listing, without content.
    area: int = -1
    importable: bool = False  # May be a package path: below a root, and no dot in any name on the way.

    def names(self) -> list[str]:
        """Everything the listing holds, as the standard finder sees it."""
        return [*(entry.name for entry in self.files), *self.folders, *self.links, *self.others]


class Trouble(NamedTuple):
    """A path that could not be used, and why."""

    path: str
    reason: str


class Scan(NamedTuple):
    """One walk over several areas; every folder appears once, in the innermost area that holds it."""

    areas: tuple[Area, ...]
    folders: tuple[Folder, ...]
    unreadable: tuple[Trouble, ...]
    unsettled: tuple[str, ...]  # Folders that kept changing while we looked; they are left out.
    skipped: int  # Folders not entered by rule.
    environments: tuple[str, ...] = ()  # Of those, the ones that are environments of their own.
    changing: frozenset[str] = frozenset()  # Files that did, in folders that are listed all the same.

    def file_count(self) -> int:
        return sum(len(folder.files) for folder in self.folders)

    def watched(self) -> tuple[bytes, bytes, bytes]:
        """What has to be as it is for another walk to see the same: folders and files as NUL-ended names, see
        host/stamps.py; their stamps; and paths of which only the kind counts, because nobody reads them.
        """
        names = []
        stamps = []
        kinds = [f"{folder}/{ENVIRONMENT_MARK}" for folder in self.environments]
        for folder in self.folders:
            names.append(folder.path)
            stamps.append(_STAMP(0, folder.mtime_ns, folder.ctime_ns, folder.ino, folder.mode))
            for name, size, mtime_ns, ctime_ns, ino, mode, _ in folder.files:
                names.append(name)
                stamps.append(_STAMP(size, mtime_ns, ctime_ns, ino, mode))
            kinds += (f"{folder.path}/{name}" for name in (*folder.links, *folder.others))
        ended = [os.fsencode("\0".join([*paths, ""]) if paths else "") for paths in (names, kinds)]
        return ended[0], b"".join(stamps), ended[1]


def area_kind(path: str, stdlib: Iterable[str]) -> int:
    """What a search-path folder is: the standard library, installed packages, or somebody's tree."""
    if path in stdlib:
        return STDLIB
    if os.path.basename(path) in STDLIB_SKIPS:
        return SITE
    return TREE


def list_folder(path: str, suffixes: tuple[str, ...] = ()) -> Folder:
    """List one folder; given suffixes, only files with one of them are asked for their stamps.

    The others are then listed among `others`.

    Raises:
        OSError: it cannot be read, is gone, or is no folder.
    """
    mtime_ns, ctime_ns, ino, mode, files, folders, links, others = read_folder(path, suffixes, FileEntry)
    # The order of a listing is the file system's own; sorted, two scans of one tree are equal.
    files.sort()
    folders.sort()
    links.sort()
    others.sort()
    return Folder(
        path,
        mtime_ns,
        ctime_ns,
        ino,
        mode,
        tuple(files),
        tuple(folders),
        tuple(links),
        tuple(others),
    )


def settles_at(folder: Folder, now_ns: int) -> int:
    """When the folder's stamps can be trusted, in nanoseconds; `now_ns` or earlier means they can.

    Every change sets the change time, which no program can choose, so it alone decides.
    """
    latest = folder.ctime_ns
    for entry in folder.files:
        if entry.ctime_ns > latest:
            latest = entry.ctime_ns
    if latest + COARSE_TICK_NS <= now_ns:
        return 0
    return max(
        ctime + (FINE_TICK_NS if ctime % 1_000_000_000 else COARSE_TICK_NS)
        for ctime in (folder.ctime_ns, *(entry.ctime_ns for entry in folder.files))
    )


def young_files(folder: Folder, now_ns: int) -> list[str] | None:
    """The names of the files whose stamps cannot be trusted yet; None if that goes for the folder's own."""
    alone = folder._replace(files=())
    if settles_at(alone, now_ns) > now_ns:
        return None
    return [
        entry.name
        for entry in folder.files
        if settles_at(alone._replace(ctime_ns=entry.ctime_ns), now_ns) > now_ns
    ]


def scan(
    areas: Sequence[Area],
    *,
    slow: bool = False,
    only: Mapping[str, int] | None = None,
    suffixes: tuple[str, ...] = (),
    avoid: str = "",
    selection: Selection = EVERYTHING,
    sleep: Callable[[float], None] = time.sleep,
) -> Scan:
    """Walk the areas, or list only the given folders.

    Args:
        slow: keep many requests in flight, for network file systems.
        only: path -> index of its area; nothing below these folders is entered.
        suffixes: ask only for the stamps of files with these.
        avoid: a folder that is not entered; the store itself may lie in what is ingested.
        selection: folders that it leaves out are not entered, those it asks for are, whatever the rules.
        sleep: for tests.
    """
    walk = _Walk(tuple(dict.fromkeys(areas)), only, avoid, selection)
    list_one = partial(_try_list, suffixes=suffixes)
    if slow:
        from concurrent.futures import ThreadPoolExecutor  # 4 ms that most walks need not pay

        with ThreadPoolExecutor(SLOW_WALKERS) as pool:
            walk.run(lambda paths: list(pool.map(list_one, paths)), sleep)
    else:
        walk.run(lambda paths: map(list_one, paths), sleep)
    return walk.result()


_Listing = tuple[int, "Folder | OSError"]  # When it was begun, and what came of it.


def _try_list(path: str, suffixes: tuple[str, ...]) -> _Listing:
    began = time.time_ns()
    try:
        return began, list_folder(path, suffixes)
    except OSError as error:
        return began, error


class _Walk:
    """The state of one walk: what is done, and what is still to be listed (path -> area, importable)."""

    def __init__(
        self, areas: tuple[Area, ...], only: Mapping[str, int] | None, avoid: str, selection: Selection
    ) -> None:
        self.areas = areas
        self.only = only
        self.avoid = avoid
        self.selection = selection
        self.starts = {area.path: index for index, area in enumerate(areas)}
        self.seen: set[str] = set()
        self.done: list[Folder] = []
        self.unreadable: list[Trouble] = []
        self.unsettled: list[str] = []
        self.changing: set[str] = set()
        self.skipped = 0
        self.environments: list[str] = []

    def run(
        self, listings: Callable[[list[str]], Iterable[_Listing]], sleep: Callable[[float], None]
    ) -> None:
        if self.only is not None:
            self._run_one({path: (area, True) for path, area in self.only.items()}, listings, sleep)
            return
        # Shorter paths first: an area inside another one is met on the way, and belongs to itself.
        for area in sorted(self.areas, key=lambda area: len(area.path)):
            if area.path not in self.seen and self.selection.verdict(f"{area.path}/") is not False:
                todo = {area.path: (self.starts[area.path], area.kind is not None)}
                self._run_one(todo, listings, sleep)

    def _run_one(
        self,
        todo: dict[str, tuple[int, bool]],
        listings: Callable[[list[str]], Iterable[_Listing]],
        sleep: Callable[[float], None],
    ) -> None:
        waiting: dict[str, tuple[int, bool]] = {}
        young: dict[str, tuple[int, Folder]] = {}  # Those that are waited for, as they were last.
        settled_by = 0
        rounds = 0
        while todo or waiting:
            if not todo:
                rounds += 1
                delay = settled_by - time.time_ns()
                if rounds > ROUNDS or delay > 2 * COARSE_TICK_NS:  # The latter: a clock that was set back.
                    todo = self._give_up(waiting, young)
                    waiting, settled_by, rounds = {}, 0, 0
                    continue
                sleep(max(delay, 0) / 1e9)
                todo, waiting, settled_by = waiting, {}, 0
            self.seen.update(todo)
            following: dict[str, tuple[int, bool]] = {}
            for path, (began, listed) in zip(todo, listings(list(todo)), strict=True):
                area, importable = todo[path]
                if isinstance(listed, OSError):
                    self.unreadable.append(Trouble(path, listed.strerror or type(listed).__name__))
                    continue
                if self._is_other_environment(listed, area):
                    self.skipped += 1
                    self.environments.append(path)
                    continue
                ready = settles_at(listed, began)
                if ready > began:
                    waiting[path] = area, importable
                    young[path] = began, listed
                    settled_by = max(settled_by, ready)
                    continue
                self.done.append(listed._replace(area=area, importable=importable))
                if self.only is None:
                    self._add_children(listed, area, importable, following)
            todo = following

    def _give_up(
        self, waiting: dict[str, tuple[int, bool]], young: dict[str, tuple[int, Folder]]
    ) -> dict[str, tuple[int, bool]]:
        """Take folders without the files in them that never hold still; returns what is to be listed next.

        A log that somebody writes must not cost the whole project. Learners come again, and wait for all.
        """
        following: dict[str, tuple[int, bool]] = {}
        for path, (area, importable) in waiting.items():
            began, folder = young[path]
            names = young_files(folder, began)
            if names is None or self.only is not None:
                self.unsettled.append(path)
                continue
            self.changing.update(f"{path.rstrip('/')}/{name}" for name in names)
            self.done.append(folder._replace(area=area, importable=importable))
            self._add_children(folder, area, importable, following)
        return following

    def _add_children(
        self, folder: Folder, area: int, importable: bool, following: dict[str, tuple[int, bool]]
    ) -> None:
        parent = folder.path.rstrip("/")
        kind = self.areas[area].kind
        for name in folder.folders:
            path = f"{parent}/{name}"
            own = self.starts.get(path)
            if own is not None and self.selection.verdict(f"{path}/") is not False:
                following[path] = own, self.areas[own].kind is not None
            elif name == CACHE:
                continue
            elif self._is_skipped(path, name, area, kind):
                self.skipped += 1
            else:
                following[path] = area, importable and "." not in name

    def _is_skipped(self, path: str, name: str, area: int, kind: int | None) -> bool:
        if path == self.avoid:
            return True
        verdict = self.selection.verdict(f"{path}/")
        if verdict is not None:
            return not verdict
        if kind == STDLIB:
            below = path[len(self.areas[area].path) + 1 :]
            return name in STDLIB_SKIPS or below in STDLIB_TESTS
        return kind == TREE and name in TREE_SKIPS

    def _is_other_environment(self, folder: Folder, area: int) -> bool:
        """A virtual environment inside a project belongs to its own interpreter."""
        if self.areas[area].kind != TREE or folder.path in self.starts or self.only is not None:
            return False
        place = bisect_left(folder.files, (ENVIRONMENT_MARK,))
        if place == len(folder.files) or folder.files[place].name != ENVIRONMENT_MARK:
            return False
        return self.selection.verdict(f"{folder.path}/") is None

    def result(self) -> Scan:
        return Scan(
            self.areas,
            tuple(self.done),
            tuple(self.unreadable),
            tuple(self.unsettled),
            self.skipped,
            tuple(self.environments),
            frozenset(self.changing),
        )

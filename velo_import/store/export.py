# SPDX-License-Identifier: Apache-2.0
"""A tree made into files again. Knows what has to be there before anything is made, and in which order.

Trees and content may come from anywhere: names were checked when the nodes were read, sizes and bytes are
checked as they are written. The surprise: only loose blobs can be linked or cloned, and only they are worth
another thread; what lies in a pack is always written, in the time that handing it over would take.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt, VeloError
from ..format import tree as t
from ..host import materialise
from ..host.materialise import Way
from .kept import require_content
from .layout import Store
from .reading import Reader
from .twins import executable_twin

_STEP = 256  # Paths between two reports of progress.
_WAITING = 64  # Large files at once on their way; each holds a descriptor of its folder.


class Exported(NamedTuple):
    """What was made. `hardlinked`, `cloned`, `copied`: files that were loose blobs; `written`: from packs."""

    folders: int
    files: int
    links: int
    bytes: int
    hardlinked: int
    cloned: int
    copied: int
    written: int
    seconds: float


def export(
    tree: t.Tree,
    target: Path,
    store: Store,
    reader: Reader,
    *,
    way: Way = Way.CLONE,
    jobs: int = 1,
    advance: Callable[[int, int], None],
) -> Exported:
    """Make the files of a tree in a new or empty folder, from verified content only; all of them or none.

    Hold the shared lease. Nothing is flushed, as with any other copy: a power cut soon after may take files,
    and the store still has them all.

    Args:
        jobs: threads that copy large files.
        way: how loose blobs get there; the next way is taken where the file system cannot. With hard links
            every file is read-only.
        advance: told how many paths are made, and of how many.

    Raises:
        StoreMissing: the store does not have all of the content.
        StoreCorrupt: the tree, or content, is not what it should be.
        VeloError: the folder cannot be made, holds something, or has no room.
    """
    began = time.monotonic()
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(store.home)):
        raise VeloError(f"{target} lies in the store", hint="name a folder outside of it")
    totals = t.measure(tree)
    require_content(tree, reader)
    with materialise.new_folder(target) as root:
        _require_room(root, target, totals, way)
        with _Export(store, reader, way, jobs) as work:
            work.make(tree, root, lambda done: advance(done, _paths(totals)))
    return Exported(
        folders=totals.folders - 1,
        files=totals.files,
        links=totals.links,
        bytes=totals.bytes,
        hardlinked=work.ways[Way.HARDLINK],
        cloned=work.ways[Way.CLONE],
        copied=work.ways[Way.COPY],
        written=work.ways[None],
        seconds=time.monotonic() - began,
    )


def _paths(totals: t.Totals) -> int:
    return totals.folders - 1 + totals.files + totals.links


def _require_room(root: int, target: Path, totals: t.Totals, way: Way) -> None:
    """Refuse at once what would fail at the end; a small hostile tree can ask for any number of files."""
    disk = os.fstatvfs(root)
    needed = totals.bytes if way is Way.COPY else 0
    if disk.f_bavail * disk.f_frsize < needed or (disk.f_files and disk.f_favail < _paths(totals)):
        raise VeloError(
            f"{target} has no room for {_paths(totals)} paths with {totals.bytes} bytes",
            hint="free some space on that disk, or name a folder on another one",
        )


class _Export:
    """The state of one export. As a context manager it leaves no thread behind."""

    def __init__(self, store: Store, reader: Reader, way: Way, jobs: int) -> None:
        self.store = store
        self.reader = reader
        self.way = way
        self.ways: Counter[Way | None] = Counter()
        self.pool = ThreadPoolExecutor(jobs)
        self.waiting: deque[tuple[Future[Way], int]] = deque()  # With the folder that it goes into.

    def __enter__(self) -> _Export:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)
        for future, folder in self.waiting:
            if future.cancelled():
                os.close(folder)

    def make(self, tree: t.Tree, root: int, advance: Callable[[int], None]) -> None:
        """Fill the folder behind a descriptor; every step names one entry of one open folder."""
        opened = [(b"", root)]
        done = 0
        try:
            for path, entry in t.walk(tree):
                if not done % _STEP:
                    advance(done)
                done += 1
                above, _, name = path.rpartition(b"/")
                while opened[-1][0] != above:
                    os.close(opened.pop()[1])
                parent = opened[-1][1]
                if entry.kind == t.FOLDER:
                    opened.append((path, materialise.make_folder(parent, name)))
                elif entry.kind == t.LINK:
                    materialise.make_link(parent, name, entry.target)
                else:
                    self._make_file(parent, name, path, entry)
            self._wait_for(0)
            advance(done)
        finally:
            for _, descriptor in opened[1:]:
                os.close(descriptor)

    def _make_file(self, parent: int, name: bytes, path: bytes, entry: t.Entry) -> None:
        mode = 0o777 if entry.kind == t.EXECUTABLE else 0o666
        if self.way is Way.HARDLINK:
            mode &= 0o555
        source = self.reader.loose_path(entry.digest)
        if source is None:
            data = self.reader.read(entry.digest)
            materialise.make_file(parent, name, data, mode, entry.mtime_ns)
            _require_size(path, len(data), entry)
            self.ways[None] += 1
            return
        way = self.way
        if way is Way.HARDLINK and entry.kind == t.EXECUTABLE:
            twin = executable_twin(self.store, entry.digest)
            source, way = (source, Way.CLONE) if twin is None else (twin, way)
        self._wait_for(_WAITING - 1)
        folder = os.dup(parent)  # ours is closed as soon as the walk has left it
        self.waiting.append((self.pool.submit(_place, folder, path, source, way, mode, entry), folder))

    def _wait_for(self, most: int) -> None:
        """Until no more than so many large files are on their way."""
        while len(self.waiting) > most:
            self.ways[self.waiting.popleft()[0].result()] += 1


def _place(parent: int, path: bytes, source: Path, way: Way, mode: int, entry: t.Entry) -> Way:
    """Put a loose blob in its place, in any thread, and say how it got there; closes the folder."""
    hasher = blake3()
    size = 0

    def show(piece: bytes | bytearray | memoryview) -> None:
        nonlocal size
        hasher.update(piece)
        size += len(piece)

    try:
        name = path.rpartition(b"/")[2]
        taken = materialise.place_file(parent, name, source, way, mode, entry.mtime_ns, show)
    finally:
        os.close(parent)
    if hasher.digest() != entry.digest:
        raise StoreCorrupt(f"{source} is damaged", hint="run `velo verify`")
    _require_size(path, size, entry)
    return taken


def _require_size(path: bytes, size: int, entry: t.Entry) -> None:
    if size != entry.size:
        raise StoreCorrupt(
            f"{os.fsdecode(path)} has {size} bytes and not {entry.size}",
            hint="the tree is not to be trusted",
        )

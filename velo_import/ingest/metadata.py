# SPDX-License-Identifier: Apache-2.0
"""Learning what is installed: the folders of a search path as the interpreter's own `importlib.metadata` sees
them.

Knows which folders are kept; the looking is done by metadata_worker.py, in a process of that interpreter.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from velo_import.errors import StoreCorrupt, VeloError
from velo_import.format.contents import (
    FILES,
    MESSAGE,
    NO_STAMP,
    TOPS,
    Contents,
    Page,
    decode_contents,
    encode_contents,
)
from velo_import.format.distributions import (
    ANY_SIZE,
    MOST_ROOTS,
    Distribution,
    Root,
    Stamp,
    Table,
    decode_distributions,
    encode_distributions,
)
from velo_import.format.manifest import Build
from velo_import.host.files import read_file
from velo_import.host.filesystems import filesystem_of
from velo_import.store.layout import Store

from .plan import default_check
from .publish import publish_manifest
from .scan import area_kind

MOST_KEPT = 64  # Folders of one environment; what was learned first goes.
PATIENCE_SECONDS = 60
assert MOST_KEPT <= MOST_ROOTS
# What the pages of each kind are about.
_SOURCES = {MESSAGE: ("METADATA", "PKG-INFO"), FILES: ("RECORD", ""), TOPS: ("top_level.txt", "RECORD")}


def distributions_path(store: Store, key: str) -> Path:
    """Where the table of an environment is."""
    return store.manifest_folder(key) / "metadata.table"


def contents_path(store: Store, key: str) -> Path:
    """Where the table of what they say is."""
    return store.manifest_folder(key) / "contents.table"


def learn_distributions(
    store: Store, key: str, build: Build, executable: str, path: Iterable[str], stdlib: tuple[str, ...]
) -> bool:
    """Look at these folders and keep what is in them beside what was learned before; whether that changed
    anything.

    Raises:
        VeloError: the interpreter cannot do the work.
        OSError: the store cannot be written.
    """
    return Inventory(store, key, build, executable, path, stdlib).keep()


class Inventory:
    """What is installed in some folders. The interpreter is started here, unless all is as it was learned, so
    that the caller can do something else meanwhile; then either `keep` or `abandon`.

    Raises:
        VeloError: the interpreter cannot be started.
        OSError: the store cannot be read.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        build: Build,
        executable: str,
        path: Iterable[str],
        stdlib: tuple[str, ...],
    ) -> None:
        self._table_path, self._contents_path = distributions_path(store, key), contents_path(store, key)
        self._build = build
        self._stdlib = stdlib
        try:
            self._old = decode_distributions(_read_private(self._table_path))
            self._known = decode_contents(_read_private(self._contents_path))
        except (OSError, StoreCorrupt):
            self._old, self._known = Table(b"", ()), Contents(b"", ())
        folders = [entry for entry in path if os.path.isdir(entry)]
        self._question = None if self._is_known(folders) else _Question(executable, folders)

    def keep(self) -> bool:
        """Wait for the answer and publish it; whether it is anything new.

        Raises:
            VeloError: the interpreter cannot do the work.
            OSError: the store cannot be written.
        """
        if self._question is None:
            return False
        version, roots, pages = self._question.answer(self._stdlib)
        old, known = self._old, self._known
        identity = self._build.identity() + b"\0" + version.encode()
        is_ours = old.identity == known.identity == identity
        kept = {root.path: root for root in old.roots} if is_ours else {}
        for root in roots:
            kept.pop(root.path, None)
            kept[root.path] = root
        table = Table(identity, tuple(kept.values())[-MOST_KEPT:])
        rest = {root.path.rstrip("/") for root in table.roots if root not in roots}
        pages = [page for page in known.pages if _root_of(page) in rest] + pages
        # Whoever meets the old table and new contents asks the kernel about the folder; the other way round
        # he might believe old contents.
        is_new = publish_manifest(self._contents_path, encode_contents(Contents(identity, tuple(pages))))
        return publish_manifest(self._table_path, encode_distributions(table)) or is_new

    def abandon(self) -> None:
        """Stop asking; used when the caller has failed in the meantime."""
        if self._question is not None:
            self._question.abandon()

    def _is_known(self, folders: list[str]) -> bool:
        old, known = self._old, self._known
        if not old.identity.startswith(self._build.identity() + b"\0") or old.identity != known.identity:
            return False
        changed = {_root_of(page) for page in known.pages if not is_page_current(page)}
        current = {
            root.path for root in old.roots if is_current(root) and root.path.rstrip("/") not in changed
        }
        return current.issuperset(folders)


def _read_private(path: Path) -> bytes:
    """The bytes of a table; one that others may write to is removed: the hook does not believe it either."""
    if path.stat().st_mode & 0o022:
        path.unlink()
    return read_file(path)


def is_current(root: Root) -> bool:
    """Whether the folder and all that was read of it still have their stamps."""
    try:
        status = os.stat(root.path)
        if (status.st_mtime_ns, status.st_ctime_ns, status.st_ino) != root[3:6]:
            return False
        for each in root.distributions:
            folder = f"{root.path}/{each.child}"
            is_there = each.entry_points_file[3] != ANY_SIZE
            if not _has_stamp(f"{folder}/entry_points.txt" if is_there else folder, each.entry_points_file):
                return False
            if any(each.metadata) and not _has_stamp(f"{folder}/METADATA", each.metadata):
                return False
    except OSError:
        return False
    return True


def is_page_current(page: Page) -> bool:
    """Whether the files that the page is about still have their stamps; the files of a distribution are asked
    for where they decide.
    """
    try:
        names = _SOURCES[page.kind]
        for name, stamp in zip(names, (page.first, page.second), strict=True):
            source = page.path if stamp[3] == ANY_SIZE else f"{page.path}/{name}"
            if stamp != NO_STAMP and not _has_stamp(source, stamp):
                return False
    except (OSError, KeyError):
        return False
    if page.kind != TOPS:
        return True
    root = _root_of(page)
    return all(
        os.path.exists(os.path.join(root, text[1:])) is (text[0] == "+")
        for text in page.texts
        if text[0] in "+-"
    )


def _root_of(page: Page) -> str:
    """The folder that the distribution is in."""
    return os.path.dirname(page.path)


def _has_stamp(path: str, stamp: Stamp) -> bool:
    status = os.stat(path)
    size = ANY_SIZE if stamp[3] == ANY_SIZE else status.st_size
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, size) == stamp


class _Question:
    """The interpreter at work on these folders; its answer waits in a file without a name."""

    def __init__(self, executable: str, folders: list[str]) -> None:
        self._executable = executable
        worker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "metadata_worker.py")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by abandon()
        try:
            with tempfile.TemporaryFile() as asked:
                asked.write(b"".join(os.fsencode(folder) + b"\0" for folder in folders))
                asked.seek(0)
                self._process = subprocess.Popen(
                    [executable, "-I", "-S", "-B", worker],
                    stdin=asked,
                    stdout=self._said,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "VELO_DISABLE": "1"},
                )
        except BaseException as error:
            self._said.close()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise

    def answer(self, stdlib: tuple[str, ...]) -> tuple[str, list[Root], list[Page]]:
        """The interpreter's `sys.version`, what it found, and what that says."""
        try:
            with self._said as said:
                status = self._process.wait(timeout=PATIENCE_SECONDS)
                if status:
                    raise ValueError(f"exit code {status}")
                said.seek(0)
                texts = iter(said.read().decode("utf-8", "surrogateescape").split("\0")[:-1])
            pages: list[Page] = []
            return next(texts), list(_roots(texts, stdlib, pages)), pages
        except (OSError, subprocess.SubprocessError, ValueError, StopIteration) as error:
            raise self._failed(error) from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End the process if it is still at work."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _failed(self, error: Exception) -> VeloError:
        return VeloError(
            f"{self._executable} could not say what is installed: {error}",
            hint="run `velo doctor` in that environment",
        )


def _roots(texts: Iterator[str], stdlib: tuple[str, ...], pages: list[Page]) -> Iterator[Root]:
    """The folders; `pages` gets what their distributions say."""
    for mark in texts:
        if mark != "root":
            raise ValueError("the answer is not whole")
        path, mtime, ctime, ino, left, count = _next(texts, 6)
        check = default_check(area_kind(path, stdlib), filesystem_of(path))
        found = []
        for _ in range(int(count)):
            found.append(_distribution(texts))
            place = f"{path.rstrip('/')}/{found[-1].child}"
            (number,) = _next(texts, 1)
            pages += [_page(texts, place) for _ in range(int(number))]
        yield Root(path, check, left == "1", int(mtime), int(ctime), int(ino), tuple(found))


def _distribution(texts: Iterator[str]) -> Distribution:
    child, normalized, name, version = _next(texts, 4)
    metadata, beside = _stamp(texts), _stamp(texts)
    (count,) = _next(texts, 1)
    points = tuple(_next(texts, 3 * int(count)))
    return Distribution(child, normalized, name, version, metadata, beside, points)


def _page(texts: Iterator[str], place: str) -> Page:
    (kind,) = _next(texts, 1)
    first, second = _stamp(texts), _stamp(texts)
    (count,) = _next(texts, 1)
    return Page(kind, place, first, second, tuple(_next(texts, int(count))))


def _stamp(texts: Iterator[str]) -> Stamp:
    mtime, ctime, ino, size = map(int, _next(texts, 4))
    return mtime, ctime, ino, size


def _next(texts: Iterator[str], count: int) -> list[str]:
    taken = [text for _, text in zip(range(count), texts, strict=False)]
    if len(taken) != count:
        raise ValueError("the answer is not whole")
    return taken

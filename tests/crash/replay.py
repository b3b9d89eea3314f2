# SPDX-License-Identifier: Apache-2.0
"""A file system that forgets: recorded operations, replayed to any point, and what a crash there may leave.

Knows no disk and needs no root. It promises as little as POSIX does: bytes are kept once their file was
flushed, names once their folder was. Everything else may be kept or not, one by one. The surprise: after a
flush that failed, the bytes are gone for good. Flushing again reports success, as kernels do, and keeps
nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from tests.crash.judge import Promises

# shim.c, `struct note` and the numbers of operations.
_NOTE = Struct("<IIIIQQQ")
(CREATE, WRITE, WRITE_THROUGH, TRUNCATE, FLUSH, FLUSH_FAILED, RENAME) = range(7)
(MKDIR, UNLINK, RMDIR, MODE, SAID, EXCHANGE, LINK) = range(7, 14)


class Operation(NamedTuple):
    kind: int
    first: str  # Paths.
    second: str
    mode: int
    inode: int
    offset: int
    data: bytes


def read_record(path: Path) -> Iterator[Operation]:
    data = path.read_bytes()
    at = 0
    while at < len(data):
        kind, first, second, mode, inode, offset, length = _NOTE.unpack_from(data, at)
        ends = [at + _NOTE.size]
        for size in (first, second, length if kind in (WRITE, WRITE_THROUGH, SAID) else 0):
            ends.append(ends[-1] + size)
        texts = [data[start:end] for start, end in pairwise(ends)]
        yield Operation(kind, texts[0].decode(), texts[1].decode(), mode, inode, offset, texts[2])
        at = ends[-1]


@dataclass(eq=False)
class File:
    mode: int
    now: bytearray = field(default_factory=bytearray)
    kept: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: truncated there.

    def change(self, offset: int, data: bytes | None) -> None:
        _apply(self.now, offset, data)
        self.pending.append((offset, data))

    def flush(self) -> None:
        for change in self.pending:
            _apply(self.kept, *change)
        self.pending.clear()


@dataclass(eq=False)
class Folder:
    now: dict[str, File | Folder] = field(default_factory=dict)
    kept: dict[str, File | Folder] = field(default_factory=dict)
    # Each is kept or not as a whole. None: removed.
    pending: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, entries: dict[str, File | Folder | None]) -> None:
        _enter(self.now, entries)
        self.pending.append(entries)

    def flush(self, only: str = "") -> None:
        for change in self.pending:
            if only in change or not only:
                _enter(self.kept, change)
        self.pending = [change for change in self.pending if only and only not in change]


class Replay:
    """The file system after the operations so far, below one folder that was empty in the beginning.

    `journaled`: whoever flushes something also keeps the names that lead to it, as ext4, XFS and Btrfs do.
    """

    def __init__(self, root: Path, *, journaled: bool = False) -> None:
        self.root = root
        self.journaled = journaled
        self.top = Folder()
        self.files: dict[int, File] = {}
        self.promised = Promises()

    def apply(self, operation: Operation) -> None:
        kind, first, second, mode, inode, offset, data = operation
        if kind == CREATE:
            self.files[inode] = File(mode)
            self._enter(first, self.files[inode])
        elif kind == MKDIR:
            self._enter(first, Folder())
        elif kind in (UNLINK, RMDIR):
            self._enter(first, None)
        elif kind == RENAME:
            entry = self._at(first)
            self._enter(second, entry)
            self._enter(first, None)
        elif kind == LINK:
            self._enter(second, self._at(first))
        elif kind == EXCHANGE:
            folder = self._at(str(Path(first).parent))
            assert isinstance(folder, Folder) and Path(first).parent == Path(second).parent
            folder.change({Path(first).name: self._at(second), Path(second).name: self._at(first)})
        elif kind in (WRITE, TRUNCATE):
            self.files[inode].change(offset, data if kind == WRITE else None)
        elif kind == WRITE_THROUGH:
            _apply(self.files[inode].now, offset, data)
            _apply(self.files[inode].kept, offset, data)
        elif kind in (FLUSH, FLUSH_FAILED):
            entry = self._flushed(first, inode)
            if kind == FLUSH:
                entry.flush()
                if self.journaled:
                    self._keep_names(first)
            elif isinstance(entry, File):
                entry.pending.clear()
        elif kind == MODE:
            entry = self._at(first)
            if isinstance(entry, File):
                entry.mode = mode
        else:
            self.promised.hear(json.loads(data))

    def write_out(self, target: Path, crash: Crash) -> None:
        """What the next start finds on the disk."""
        self._write_out(self.top, target, crash)

    def _write_out(self, folder: Folder, target: Path, crash: Crash) -> None:
        target.mkdir(mode=0o700)
        for name, entry in crash.names(folder).items():
            if isinstance(entry, Folder):
                self._write_out(entry, target / name, crash)
            else:
                (target / name).write_bytes(crash.content(entry))
                (target / name).chmod(entry.mode)

    def _keep_names(self, path: str) -> None:
        folder: File | Folder | None = self.top
        for name in Path(path).relative_to(self.root).parts:
            if isinstance(folder, Folder):
                folder.flush(name)
                folder = folder.now.get(name)

    def _enter(self, path: str, entry: File | Folder | None) -> None:
        folder = self._at(str(Path(path).parent))
        assert isinstance(folder, Folder)
        folder.change({Path(path).name: entry})

    def _flushed(self, path: str, inode: int) -> File | Folder:
        # The path decides first: a folder may have the inode number that a removed file had.
        with suppress(KeyError, AssertionError):
            entry = self._at(path)
            if isinstance(entry, Folder):
                return entry
        return self.files[inode]

    def _at(self, path: str) -> File | Folder:
        entry: File | Folder = self.top
        for name in Path(path).relative_to(self.root).parts:
            assert isinstance(entry, Folder)
            entry = entry.now[name]
        return entry


class Crash(NamedTuple):
    """What survives: the entries of a folder, the bytes of a file."""

    names: Callable[[Folder], dict[str, File | Folder]]
    content: Callable[[File], bytes]


def crashes(seed: int) -> dict[str, Crash]:
    """Ways to crash: the extremes, and one in between."""
    chance = random.Random(seed)

    def some_names(folder: Folder) -> dict[str, File | Folder]:
        entries = dict(folder.kept)
        for change in folder.pending:
            if chance.random() < 0.5:
                _enter(entries, change)
        return entries

    def some_content(file: File) -> bytes:
        content = bytearray(file.kept)
        for offset, data in file.pending:
            if chance.random() < 0.5:
                torn = data[: len(data) // 2] if data and chance.random() < 0.2 else data
                _apply(content, offset, torn)
        return bytes(content)

    return {
        "everything was written": Crash(lambda folder: folder.now, lambda file: bytes(file.now)),
        "only what was flushed": Crash(lambda folder: folder.kept, lambda file: bytes(file.kept)),
        "names without content": Crash(lambda folder: folder.now, lambda file: bytes(file.kept)),
        "content without names": Crash(lambda folder: folder.kept, lambda file: bytes(file.now)),
        "some of it": Crash(some_names, some_content),
    }


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        data = b""
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def _enter(entries: dict[str, File | Folder], changes: dict[str, File | Folder | None]) -> None:
    for name, entry in changes.items():
        if entry is None:
            entries.pop(name, None)
        else:
            entries[name] = entry

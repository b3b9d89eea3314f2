# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a store are: how many are content, how many were saved, and what the rest is for.

Reads the index of every pack and the size of every file; no payload and no catalogue. Its surprise: it adds
up. Whatever is on the disk below the store is in exactly one row, folders included, as `du` has it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreCorrupt
from ..format import pack
from . import index
from .layout import Store
from .packs import PackFile, open_pack

# Rows, in the order of the table.
CONTENT, BYTECODE, LOOSE, EXECUTABLE = "packed content", "bytecode", "files", "executable twins"
CATALOGUE, INDEX, MANIFESTS, OTHERS = "catalogue", "blob index", "manifests", "others"
# What finding and proving blobs costs: everything but these two is counted as overhead.
_NOT_OVERHEAD = (MANIFESTS, OTHERS)
_BLOCK = 512  # of st_blocks, whatever the file system


class Part(NamedTuple):
    """One row. `content` is what was given, `stored` what is left of it when it is compressed, `disk` the
    blocks that the files and folders take up."""

    name: str
    files: int = 0
    blobs: int = 0
    content: int = 0
    stored: int = 0
    disk: int = 0

    @property
    def overhead(self) -> int:
        return self.disk - self.stored

    def plus(self, **more: int) -> Part:
        return self._replace(**{name: getattr(self, name) + count for name, count in more.items()})


class Breakdown(NamedTuple):
    """All rows; what the overhead of blobs is made of, in bytes; and blobs that are there more than once."""

    parts: list[Part]
    causes: dict[str, int]
    twice: int
    twice_bytes: int
    unreadable: list[Path]

    @property
    def blobs(self) -> Part:
        """All rows that hold blobs, or lead to them, in one."""
        counted = [part for part in self.parts if part.name not in _NOT_OVERHEAD]
        return Part("blobs").plus(
            files=sum(part.files for part in counted),
            blobs=sum(part.blobs for part in counted),
            content=sum(part.content for part in counted),
            stored=sum(part.stored for part in counted),
            disk=sum(part.disk for part in counted),
        )

    @property
    def total(self) -> int:
        return sum(part.disk for part in self.parts)


def breakdown(store: Store) -> Breakdown:
    """Look at everything. Safe beside writers: what vanishes meanwhile is not counted."""
    return _Counting(store).breakdown()


class _Counting:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.parts: dict[str, Part] = {}
        self.causes = dict.fromkeys(
            ("entry headers", "pack indexes", "alignment", "pack ends", "blocks", "folders"), 0
        )
        self.seen: set[bytes] = set()
        self.twice = self.twice_bytes = 0
        self.unreadable: list[Path] = []

    def breakdown(self) -> Breakdown:
        inodes: set[tuple[int, int]] = set()
        # Files first: what trees elsewhere in the store share with them by hard links is one inode.
        for path, status in chain(_walk(self.store.loose.parent), _walk(self.store.home)):
            if (key := (status.st_dev, status.st_ino)) not in inodes:
                inodes.add(key)
                add = self._add_folder if stat.S_ISDIR(status.st_mode) else self._add_file
                add(path, status.st_size, status.st_blocks * _BLOCK)
        causes = dict(self.causes)
        for name in (CATALOGUE, INDEX):
            causes[name] = self.parts[name].disk if name in self.parts else 0
        order = (CONTENT, BYTECODE, LOOSE, EXECUTABLE, CATALOGUE, INDEX, MANIFESTS, OTHERS)
        rank = {name: number for number, name in enumerate(order)}
        parts = sorted(self.parts.values(), key=lambda part: (rank[part.name.partition(":")[0]], part.name))
        return Breakdown(parts, causes, self.twice, self.twice_bytes, self.unreadable)

    def _add(self, name: str, **more: int) -> None:
        self.parts[name] = self.parts.get(name, Part(name)).plus(**more)

    def _add_folder(self, path: Path, size: int, disk: int) -> None:
        name = self._place(path)
        self._add(name, disk=disk)
        if name not in (CATALOGUE, *_NOT_OVERHEAD):
            self.causes["folders"] += disk

    def _add_file(self, path: Path, size: int, disk: int) -> None:
        name = self._place(path)
        if name == CONTENT and path.suffix == ".pack":
            try:
                with open_pack(path) as file:
                    return self._add_pack(file, size, disk)
            except StoreCorrupt:
                self.unreadable.append(path)
            except OSError:
                return None
        if name in (LOOSE, EXECUTABLE) and (key := _digest(path)):
            self._add(name, files=1, blobs=1, content=size, stored=size, disk=disk)
            self.causes["blocks"] += disk - size
            return self._note(key, size)
        if path == self.store.packs / index.NAME:
            name = INDEX
        elif name in (CONTENT, LOOSE, EXECUTABLE):
            name = OTHERS  # being written, or damaged
        return self._add(name, files=1, disk=disk)

    def _add_pack(self, file: PackFile, size: int, disk: int) -> None:
        payloads = {entry.offset: entry for entry in file.entries}.values()
        stored = sum(entry.length for entry in payloads)
        name = CONTENT
        if file.kind != "content":
            level = f" -O{file.optimisation}" if file.optimisation else ""
            name = f"{BYTECODE}: {file.build}{level}"
        content = sum(entry.size for entry in payloads)
        self._add(name, files=1, blobs=len(payloads), content=content, stored=stored, disk=disk)
        headers, records = len(payloads) * pack.ENTRY.size, len(file.entries) * pack.RECORD.size
        filler = sum(len(pack.padding(entry.length)) for entry in payloads)
        self.causes["entry headers"] += headers
        self.causes["pack indexes"] += records
        self.causes["alignment"] += filler
        self.causes["pack ends"] += size - stored - headers - records - filler
        self.causes["blocks"] += disk - size
        for entry in file.entries:
            # Two sources may have the same bytecode; that is one payload. The same source twice is waste.
            key = entry.digest if entry.kind == pack.FILE else entry.source + name.encode()
            self._note(key, entry.length)

    def _note(self, key: bytes, size: int) -> None:
        if key in self.seen:
            self.twice += 1
            self.twice_bytes += size
        self.seen.add(key)

    def _place(self, path: Path) -> str:
        for folder, name in (
            (self.store.packs.parent, CONTENT),
            (self.store.executables, EXECUTABLE),
            (self.store.loose.parent, LOOSE),
            (self.store.catalogue, CATALOGUE),
            (self.store.manifests.parent, MANIFESTS),
            (self.store.indexes.parent, MANIFESTS),
        ):
            if path == folder or folder in path.parents:
                return name
        return OTHERS


def _digest(path: Path) -> bytes:
    try:
        digest = bytes.fromhex(path.name)
    except ValueError:
        return b""
    return digest if len(digest) == 32 else b""


def _walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with suppress(OSError):
        yield top, top.lstat()
    pending = [top]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    path = Path(entry.path)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(path)
                    yield path, status

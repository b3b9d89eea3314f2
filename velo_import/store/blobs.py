# SPDX-License-Identifier: Apache-2.0
"""Loose blobs: one file per content, named by BLAKE3, never edited. For what is large or must be a file.

Knows paths and bytes; the catalogue lives in catalog.py. Its surprise: what is hashed is the copy in the
store, not the file it came from, so a file that changes while it is copied cannot give a wrong name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt, StoreMissing, VeloError
from ..host.files import (
    clone,
    copy_shown,
    create_temporary,
    explained,
    flush_all,
    open_quietly,
    pieces,
    read_file,
    remove_quietly,
    rename_all,
)
from .layout import Store


class Blob(NamedTuple):
    """Content in the store."""

    digest: bytes
    size: int


class Staged(NamedTuple):
    """Content that is in the store under a temporary name, until it is published or given up."""

    blob: Blob
    temporary: Path


class Blobs:
    """The loose blobs of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def put_file(self, source: Path) -> Blob:
        """Copy one file into the store; see `put_files`."""
        return self.put_files([source])[0]

    def put_files(self, sources: Iterable[Path]) -> list[Blob]:
        """Copy (or clone) files into the store, with one round of flushes; never a hard link into it."""
        self.store.require_writable()
        staged: list[Staged] = []
        try:
            for source in sources:
                file = open_quietly(source)
                try:
                    if not stat.S_ISREG(os.fstat(file).st_mode):
                        raise VeloError(f"{source} is no regular file", hint="leave it out")
                    staged.append(self.stage(file))
                finally:
                    os.close(file)
            self.publish(staged)
        finally:
            give_up(staged)
        return [blob for blob, _ in staged]

    def stage(self, file: int) -> Staged:
        """Copy (or clone) an open file, reading it once; what is not published has to be given up."""
        self.store.require_writable()
        with explained(self.store.loose):
            copy, temporary = create_temporary(self.store.loose)
            try:
                blob = _fill(copy, file)
                os.fchmod(copy, 0o444)
                return Staged(blob, temporary)
            except BaseException:
                remove_quietly(temporary)
                raise
            finally:
                os.close(copy)

    def publish(self, staged: Iterable[Staged]) -> None:
        """Give staged content its names, with one round of flushes."""
        moves: dict[Path, Path] = {}
        folders: set[Path] = set()
        for blob, temporary in staged:
            place = self.path_of(blob.digest)
            if place in moves:
                continue
            if self._is_intact(place, blob):
                # Whoever gave it its name may have died before the name was on the disk.
                folders.update(place.parents[:3])
            else:
                moves[place] = temporary
        with explained(self.store.loose):
            flush_all([*sorted(folders), *moves.values()])
            rename_all([(temporary, place) for place, temporary in moves.items()])

    def path_of(self, digest: bytes) -> Path:
        return self.store.loose_path(digest)

    def read(self, digest: bytes) -> bytes:
        """The content, verified."""
        path = self.path_of(digest)
        try:
            data = read_file(path)
        except FileNotFoundError as error:
            raise StoreMissing(f"no blob {digest.hex()} in the store", hint="run `velo ingest`") from error
        if blake3(data).digest() != digest:
            raise StoreCorrupt(
                f"{path} is damaged",
                hint="run `velo verify`: it comes back from another copy if there is one",
            )
        return data

    def _is_intact(self, path: Path, blob: Blob) -> bool:
        try:
            file = open_quietly(path)
        except OSError:
            return False
        try:
            return os.fstat(file).st_size == blob.size and identify(file) == blob
        finally:
            os.close(file)


def give_up(staged: Iterable[Staged]) -> None:
    """Leave nothing behind of staged content; harmless for what has been published."""
    for _, temporary in staged:
        remove_quietly(temporary)


def identify(file: int) -> Blob:
    """What an open file holds, in constant memory; holes are not read."""
    hasher = blake3()
    size = 0
    for piece, _ in pieces(file):
        hasher.update(piece)
        size += len(piece)
    return Blob(hasher.digest(), size)


def _fill(copy: int, source: int) -> Blob:
    if clone(source, copy):
        return identify(copy)
    hasher = blake3()
    size = copy_shown(source, copy, hasher.update)
    return Blob(hasher.digest(), size)

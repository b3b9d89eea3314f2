# SPDX-License-Identifier: Apache-2.0
"""The store folder: which part lives where, and whether the folder may be used at all (FORMAT.md, section 6).

Knows names, versions and owners; the content of each part belongs to its own module.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreCorrupt, StoreMissing, VeloError
from ..host.files import (
    TEMPORARY_PREFIX,
    check_private,
    explained,
    flush_all,
    make_folders,
    private_folder,
    publish,
    remove_quietly,
)

VERSION = "1"
PARTS = (
    "cas_store",
    "packs",
    "meta.db",
    "manifests",
    "indexes",
    "roots",
    "quarantine",
    "pool",
    "tenants",
    "run",
)
# VERSION too: another process may just have written it. A fresh disk has a lost+found.
_OWN_NAMES = {*PARTS, "VERSION", "meta.db.damaged", "meta.db.spare", "lost+found"}
_LEFTOVER_AGE = 24 * 3600
# Where files are written under a temporary name.
_WRITTEN_FOLDERS = (
    "packs/v1",
    "cas_store/v1",
    "cas_store/v1/*/*",
    "manifests/v1",
    "manifests/v1/*",
    "indexes/v1",
    "roots/v1",
    "run",
    "run/*",
    ".",
)


@dataclass(frozen=True)
class Store:
    """One store folder. Use `Store.open`: it checks version, owner and permissions."""

    home: Path
    readonly: bool = False

    @classmethod
    def open(cls, home: Path, *, create: bool = False, readonly: bool = False) -> Store:
        """The store in that folder; with `create` it is made when it is not there yet."""
        home = Path(os.path.abspath(home))
        store = cls(home, readonly)
        if create and not readonly:
            with explained(home, "create"):
                store._create()
        store._check()
        return store

    @property
    def loose(self) -> Path:
        return self.home / "cas_store" / "v1"

    @property
    def executables(self) -> Path:
        return self.home / "cas_store" / "executable-v1"

    @property
    def packs(self) -> Path:
        return self.home / "packs" / "v1"

    @property
    def catalogue(self) -> Path:
        return self.home / "meta.db"

    @property
    def spare_catalogue(self) -> Path:
        """Where a copy of the catalogue is for a moment, before it takes its place."""
        return self.home / "meta.db.spare"

    @property
    def manifests(self) -> Path:
        return self.home / "manifests" / "v1"

    @property
    def indexes(self) -> Path:
        return self.home / "indexes" / "v1"

    @property
    def roots(self) -> Path:
        return self.home / "roots" / "v1"

    @property
    def quarantine(self) -> Path:
        return self.home / "quarantine"

    @property
    def pool(self) -> Path:
        return self.home / "pool"

    @property
    def tenants(self) -> Path:
        return self.home / "tenants"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def node_notes(self) -> Path:
        """Where Node programs leave what is to be learned."""
        return self.run / "node"

    def index_path(self, name: str) -> Path:
        """The index of what Node programs of one subject load; FORMAT.md, section 14.1, has its name."""
        return self.indexes / f"{name}.index"

    def manifest_folder(self, key: str) -> Path:
        """Where the manifests of one environment live. The key is one plain name, never a path."""
        if not key or key.startswith(".") or "/" in key or "\0" in key:
            raise VeloError(f"{key!r} is not the key of an environment")
        return self.manifests / key

    def pack_path(self, pack_id: str) -> Path:
        return self.packs / pack_id[:2] / f"{pack_id}.pack"

    def loose_path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.loose / name[:2] / name[2:4] / name

    def executable_path(self, digest: bytes) -> Path:
        """Where the executable twin of a loose blob is, if it has one."""
        name = digest.hex()
        return self.executables / name[:2] / name

    def require_writable(self) -> None:
        if self.readonly:
            raise VeloError(
                f"the store {self.home} is opened for reading only", hint="unset VELO_READONLY to write"
            )

    def size_report(self) -> dict[str, int]:
        """Bytes on disk for each part; a file with several names counts once."""
        seen: set[tuple[int, int]] = set()
        return {part: _disk_use(self.home / part, seen) for part in PARTS}

    def leftovers(self, *, older_than: float = _LEFTOVER_AGE) -> list[Path]:
        """Temporary files whose writers must be dead by now, executable twins that nothing links to, notes of
        Node programs that nobody has learned from, and our own code for Nodes, which programs keep again.
        """
        found = []
        limit = time.time() - older_than
        for path in self.executables.glob("??/*"):
            with suppress(OSError):
                status = path.lstat()
                if status.st_nlink == 1 and status.st_ctime < limit:
                    found.append(path)
        temporary = (f"{folder}/{TEMPORARY_PREFIX}*" for folder in _WRITTEN_FOLDERS)
        for pattern in (*temporary, "run/node/*", "run/rooms-*"):
            for path in self.home.glob(pattern):
                with suppress(OSError):
                    if path.lstat().st_mtime < limit:
                        found.append(path)
        return found

    def remove_leftovers(self, *, older_than: float = _LEFTOVER_AGE) -> int:
        """Remove what `leftovers` finds; return how many there were."""
        found = self.leftovers(older_than=older_than)
        for path in found:
            remove_quietly(path)
        return len(found)

    def _create(self) -> None:
        private_folder(self.home)
        version = self.home / "VERSION"
        if not version.exists():
            self._refuse_foreign_folder()
            publish(version, [f"{VERSION}\n".encode()])
        changed: set[Path] = set()
        for folder in (self.loose, self.packs, self.manifests):
            changed |= make_folders(
                folder
            )  # readable: whether others get here, the store's own folder decides
        changed |= make_folders(self.run, mode=0o700)
        flush_all(sorted(changed))

    def _refuse_foreign_folder(self) -> None:
        # VELO_HOME=~/project would otherwise mix the store into somebody's files.
        for name in os.listdir(self.home):
            if name not in _OWN_NAMES and not name.startswith(TEMPORARY_PREFIX):
                raise VeloError(
                    f"{self.home} holds other files ({name}) and is no store",
                    hint="set VELO_HOME to a new or an empty folder",
                )

    def _check(self) -> None:
        try:
            version = (self.home / "VERSION").read_bytes()[:64]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreMissing(
                f"there is no store in {self.home}",
                hint="`velo run` and `velo ingest` make one; VELO_HOME says where",
            ) from error
        except OSError as error:
            raise VeloError(
                f"{self.home}/VERSION cannot be read: {os.strerror(error.errno or 0).lower()}",
                hint="check that folder and its owner, or set VELO_HOME to another one",
            ) from error
        if not version.strip().isdigit():
            raise StoreCorrupt(
                f"{self.home}/VERSION is damaged", hint="if this folder is a store, write 1 into that file"
            )
        if int(version) != int(VERSION):
            raise VeloError(
                f"the store in {self.home} has format {int(version)}, this Velo knows {VERSION}",
                hint="use the Velo that wrote it, or set VELO_HOME to another folder",
            )
        check_private(self.home)


def _disk_use(path: Path, seen: set[tuple[int, int]]) -> int:
    total = 0
    pending = [str(path)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(entry.path)
                    elif (key := (status.st_dev, status.st_ino)) not in seen:
                        seen.add(key)
                        total += status.st_blocks * 512
    return total

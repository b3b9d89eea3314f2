# SPDX-License-Identifier: Apache-2.0
"""Who refers to content that was lost, and where another copy of it is: in another pack, in a file of its
own, or in the tree it came from.

Knows where to look, and that nothing is believed before its digest was computed. Its surprise: manifests are
read one at a time and only for what is sought, because together they may be larger than memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from ..errors import StoreCorrupt, VeloError
from ..format.manifest import DIRECTORY, SYMBOLIC_LINK, Manifest, decode
from ..format.pack import MAX_EXPANDED
from ..host.files import open_quietly, read_file
from .blobs import identify
from .layout import Store
from .packs import open_pack


class Copies:
    """What manifests and packs say about some digests and some packs (by id)."""

    def __init__(self, store: Store, digests: Collection[bytes], packs: Collection[str]) -> None:
        self.store = store
        self._places: dict[bytes, list[Path]] = {}
        self._paths: dict[bytes, dict[str, None]] = {}
        self._users: dict[str, list[str]] = {}
        if digests:
            self._look_into_packs(frozenset(digests))
        for path, manifest in manifests(store):
            self._look_into_manifest(path, manifest, frozenset(digests), frozenset(packs))

    def paths_of(self, digest: bytes) -> list[str]:
        """The names that manifests give to this content, whether the files are still there or not."""
        return list(self._paths.get(digest, ()))

    def users_of(self, pack_id: str) -> list[str]:
        """The prefixes of the environments whose manifests name this pack."""
        return self._users.get(pack_id, [])

    def read(self, digest: bytes) -> bytes | None:
        """The content, if it can be found and is at most 64 MiB long."""
        return next((data for data in self._candidates(digest) if blake3(data).digest() == digest), None)

    def file_of(self, digest: bytes) -> Path | None:
        """A file outside of the store that has this content now."""
        for path in self._paths.get(digest, ()):
            with suppress(OSError):
                descriptor = open_quietly(path)
                try:
                    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
                    if is_file and identify(descriptor).digest == digest:
                        return Path(path)
                finally:
                    os.close(descriptor)
        return None

    def _candidates(self, digest: bytes) -> Iterator[bytes]:
        for place in self._places.get(digest, ()):
            with suppress(VeloError, OSError), open_pack(place) as file:
                entry = file.find(digest)
                if entry is not None:
                    yield file.read(entry)
        for path in (self.store.loose_path(digest), *self._paths.get(digest, ())):
            with suppress(OSError):
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_EXPANDED:
                    yield read_file(path)

    def _look_into_packs(self, digests: frozenset[bytes]) -> None:
        for path in self.store.packs.glob("??/*.pack"):
            with suppress(OSError, StoreCorrupt), open_pack(path) as file:
                for digest in {entry.digest for entry in file.entries} & digests:
                    self._places.setdefault(digest, []).append(path)

    def _look_into_manifest(
        self, path: Path, manifest: Manifest, digests: frozenset[bytes], packs: frozenset[str]
    ) -> None:
        for record in manifest.files:
            if record.digest in digests and not record.flags & (DIRECTORY | SYMBOLIC_LINK):
                self._paths.setdefault(record.digest, {})[record.path] = None
        for pack in manifest.packs:
            name = Path(pack.name).stem
            if name in packs and manifest.prefix not in self._users.setdefault(name, []):
                self._users[name].append(manifest.prefix)


def manifests(store: Store) -> Iterator[tuple[Path, Manifest]]:
    """Every manifest in the store that can be read, one at a time."""
    for path in sorted(store.manifests.glob("*/*.velo")):
        with suppress(OSError, StoreCorrupt):
            yield path, decode(read_file(path))

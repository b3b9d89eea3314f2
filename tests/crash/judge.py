# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a store: every byte is looked at, and everything that was promised is looked for.

Knows the formats through the store's own readers, and nothing of faults. The surprise: it opens the catalogue
first, as the next user's command would, and times that.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from velo_import.errors import VeloError
from velo_import.format.manifest import DIRECTORY, NO_DIGEST, SYMBOLIC_LINK, Manifest, decode, siphash
from velo_import.format.pack import Entry
from velo_import.host.files import TEMPORARY_PREFIX, stamp_of
from velo_import.store.catalog import LOCATION, LOOSE, Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import open_pack


@dataclass
class Promises:
    """What programs have said must be true, whatever happens."""

    blobs: set[str] = field(default_factory=set)
    manifests: set[str] = field(default_factory=set)
    catalogue: bool = False  # It need not be made again.
    rows: bool = True  # It knows nothing that has gone; what it knows is missing otherwise, and harmless.

    def hear(self, said: dict[str, Any]) -> None:
        for what in said.get("forget", ()):
            getattr(self, what).clear()
        self.blobs.update(said.get("blobs", ()))
        self.manifests.update([said["manifest"]] if "manifest" in said else [])
        self.rows = said.get("rows", self.rows)
        if "forget" not in said:
            self.catalogue = said.get("catalogue", True)

    def as_json(self) -> dict[str, Any]:
        return {
            "blobs": sorted(self.blobs),
            "manifests": sorted(self.manifests),
            "catalogue": self.catalogue,
            "rows": self.rows,
        }


class Findings(NamedTuple):
    """The state of a store; it may be trusted if there are no problems."""

    problems: list[str]
    reopened: float  # Seconds from nothing to an open catalogue,
    used: float  # and seconds of processor time for it.
    leftovers: int  # Temporary files of the dead.


def examine(home: Path, promised: Promises, *, stamps: bool = True) -> Findings:
    """Look at everything. `stamps`: the files are still the ones that were written, not copies of them."""
    catalogue = home / "meta.db" / "data.mdb"
    before = _inode(catalogue)
    began, used = time.perf_counter(), _processor_time()
    try:
        store = Store.open(home, create=True)
        with Catalog.open(store) as catalog:
            reopened, used = time.perf_counter() - began, _processor_time() - used
            problems = _Judge(store, catalog, stamps).judge(promised)
    except VeloError as error:
        return Findings([f"the store cannot be opened: {error}"], 0.0, 0.0, 0)
    if promised.catalogue and before != _inode(catalogue):
        problems.append("the catalogue had to be made again")
    leftovers = sum(path.is_file() for path in home.rglob(f"{TEMPORARY_PREFIX}*"))
    return Findings(problems, reopened, used, leftovers)


class _Judge:
    def __init__(self, store: Store, catalog: Catalog, stamps: bool) -> None:
        self.store = store
        self.catalog = catalog
        self.stamps = stamps
        self.problems: list[str] = []
        self.present: set[bytes] = set()  # Digests of verified content.
        self.packs: dict[str, dict[tuple[int, int], Entry]] = {}

    def judge(self, promised: Promises) -> list[str]:
        self.look_at_packs()
        self.look_at_loose_blobs()
        if promised.rows:
            self.look_at_catalogue()
        self.look_at_manifests()
        self.look_for(promised)
        return self.problems

    def look_at_packs(self) -> None:
        for path in self.store.packs.glob("*/*.pack"):
            try:
                with open_pack(path) as file:
                    bad = file.damaged()
                    self.packs[file.id] = {(entry.offset, entry.length): entry for entry in file.entries}
                    self.present.update(entry.digest for entry in file.entries)
            except (OSError, VeloError) as error:
                self.problems.append(f"pack {path.name}: {error}")
                continue
            if bad:
                self.problems.append(f"pack {path.name}: {len(bad)} damaged payloads")

    def look_at_loose_blobs(self) -> None:
        for path in _below(self.store.loose):
            if path.name.startswith(TEMPORARY_PREFIX):
                continue
            digest = blake3(path.read_bytes()).digest()
            if path != self.store.loose_path(digest):
                self.problems.append(f"loose blob {path.name} holds {digest.hex()}")
            self.present.add(digest)

    def look_at_catalogue(self) -> None:
        """What it has recorded must be there: rows are committed after the files that they are about."""
        for pack_id in self.catalog.packs():
            if self.catalog.pack(pack_id) is None:
                self.problems.append(f"the catalogue knows pack {pack_id}, which is gone or damaged")
        for digest, row in self.catalog._rows("blobs"):
            where, _, pack_id, offset, length, _ = LOCATION.unpack(row)
            if where == LOOSE:
                is_there = digest in self.present
            else:
                entry = self.packs.get(pack_id.hex(), {}).get((offset, length))
                is_there = entry is not None and entry.digest == digest
            if not is_there:
                self.problems.append(f"the catalogue knows blob {digest.hex()}, which is not there")

    def look_at_manifests(self) -> None:
        for path in self.store.manifests.glob("*/*.velo"):
            name = path.relative_to(self.store.home)
            try:
                manifest = decode(path.read_bytes())
            except VeloError as error:
                self.problems.append(f"{name}: {error}")
                continue
            self.problems += [f"{name}: {problem}" for problem in self._lacks(manifest)]
            if path.name == "base.velo":  # What was learned is about folders whose content is not stored.
                wanted = {
                    file.digest for file in manifest.files if not file.flags & (DIRECTORY | SYMBOLIC_LINK)
                }
                self._miss(f"{name} names", wanted - {NO_DIGEST})

    def _lacks(self, manifest: Manifest) -> Iterator[str]:
        for pack in manifest.packs:
            path = self.store.packs / pack.name
            try:
                stamp = stamp_of(path.stat())
            except OSError as error:
                yield f"pack {pack.name} is gone: {error}"
                continue
            if stamp != pack[2:] if self.stamps else stamp.size != pack.size:
                yield f"pack {pack.name} has the stamp {stamp}, recorded was {pack[2:]}"
        for folder in manifest.folders:
            for module in folder.modules:
                if module.pack < 0:
                    continue
                path = self.store.packs / manifest.packs[module.pack].name
                if path.exists():
                    payload = path.read_bytes()[module.offset : module.offset + module.length]
                    if siphash(payload) != module.bytecode_check:
                        yield f"bytecode of {folder.path}/{module.tail} is damaged"

    def look_for(self, promised: Promises) -> None:
        self._miss("promised", {bytes.fromhex(digest) for digest in promised.blobs})
        for name in promised.manifests:
            # What was learned moves into the base when the same folders are ingested.
            path = self.store.home / name
            if not path.exists() and not path.with_name("base.velo").exists():
                self.problems.append(f"{name} was promised and is not there")

    def _miss(self, who: str, digests: set[bytes]) -> None:
        if lost := digests - self.present:
            self.problems.append(f"{who} {len(lost)} blobs that are not there: {_some(lost)}")
        elif forgotten := digests - self.catalog.has_blobs(digests):
            self.problems.append(
                f"{who} {len(forgotten)} blobs that the catalogue forgot: {_some(forgotten)}"
            )


def _processor_time() -> float:
    """Ours and our children's: a catalogue may be probed by another process."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _some(digests: Iterable[bytes]) -> str:
    return ", ".join(sorted(digest.hex()[:12] for digest in digests)[:5])


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _inode(path: Path) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0

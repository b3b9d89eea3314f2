# SPDX-License-Identifier: Apache-2.0
"""Repair: what verification found damaged goes into quarantine, and comes back from another copy if there is
one.

Knows the order: what replaces a file is written before the file is taken away, and the store is held alone
only while one takes the place of the other. The surprise: a pack is written again byte for byte where that is
possible. Its id is the same then, so that manifests need nothing but its new stamp.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreCorrupt
from ..format import pack
from ..format.manifest import encode
from ..host.files import (
    Stamp,
    create_temporary,
    explained,
    flush_all,
    publish,
    remove_quietly,
    rename_all,
    stamp_of,
    write_all,
)
from . import leases
from .blobs import Blobs
from .catalog import LOOSE, PACKED, Catalog, Verified
from .copies import Copies, manifests
from .layout import Store
from .packs import PackFile, PackWriter, SealedPack, open_pack
from .quarantine import put_aside
from .salvage import Payload, payloads_of, scanned_payloads, written_again
from .verify import BLOB, INDEX, MANIFEST, PACK, TABLE, TWIN, Damage, Verification, is_outdated


class Outcome(NamedTuple):
    """What became of one damaged file.

    `restored`: it is in its place again. `moved` payloads live on in another pack. `lost` is content that was
    found nowhere, `forgotten` counts bytecode that will be compiled again, and `affected` are the paths and
    environments that named any of it.
    """

    damage: Damage
    quarantine: str
    restored: bool
    moved: int
    forgotten: int
    lost: list[bytes]
    affected: list[str]

    @property
    def is_healed(self) -> bool:
        """Whether nobody has to do anything: programs get what they got before."""
        # Bytecode is compiled again, a twin is made again from its blob, a table or an index by a learner.
        return self.restored or (self.damage.subject.kind in (PACK, TWIN, TABLE, INDEX) and not self.lost)


def repair(
    store: Store,
    catalog: Catalog,
    found: Verification,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    wait: float = 60.0,
) -> list[Outcome]:
    """Put aside what is damaged and refill it; give manifests the stamps of packs that are sound.

    Hold the maintenance lease. `wait` is how long, in seconds, an ingest may keep us from each file.

    Raises:
        StoreLocked: an ingest or a learner was at work for all of `wait` seconds.
    """
    work = _Repair(store, catalog, found, wait)
    outcomes = []
    for number, damage in enumerate(found.damaged):
        progress(number, len(found.damaged))
        outcome = work.repair(damage)
        if outcome is not None:
            outcomes.append(outcome)
    progress(len(found.damaged), len(found.damaged))
    if found.outdated or work.restored:
        with leases.exclusive(store, wait=wait):
            _renew_stamps(store, {**found.stamps, **work.restored})
    return outcomes


class _Repair:
    """The state of one `repair`."""

    def __init__(self, store: Store, catalog: Catalog, found: Verification, wait: float) -> None:
        self.store = store
        self.catalog = catalog
        self.wait = wait
        self.restored: dict[str, Stamp] = {}
        digests: set[bytes] = set()
        packs: set[str] = set()
        for subject, _ in found.damaged:
            if subject.kind == PACK:
                packs.add(subject.name)
                digests.update(self._digests_of(Path(subject.path)))
            elif subject.kind == BLOB:
                digests.add(bytes.fromhex(subject.name))
        self.copies = Copies(store, digests, packs)

    def repair(self, damage: Damage) -> Outcome | None:
        """None if the file was replaced since it was found damaged."""
        if damage.subject.kind == PACK:
            return self._repair_pack(damage)
        if damage.subject.kind == BLOB:
            return self._repair_blob(damage)
        with leases.exclusive(self.store, wait=self.wait):
            place = self._put_aside(damage)
            if place is None:
                return None
            remove_quietly(Path(damage.subject.path))
        return Outcome(damage, place, False, 0, 0, [], self._environment_of(damage))

    # -- packs -------------------------------------------------------------------------------------

    def _repair_pack(self, damage: Damage) -> Outcome | None:
        path = Path(damage.subject.path)
        file = _opened(path)
        if file is None:
            payloads = []
            with suppress(OSError):
                payloads = scanned_payloads(path)
            return self._move_payloads(damage, payloads, self._writer_like(damage.subject.name, payloads))
        with file:
            payloads = [self._filled(payload) for payload in payloads_of(file)]
            pieces = written_again(file, payloads)
            if pieces is not None:
                return self._replace_pack(damage, file, pieces)
        return self._move_payloads(
            damage,
            payloads,
            self._writer(file.kind, file.label, file.build, file.optimisation, file.may_compress),
        )

    def _replace_pack(self, damage: Damage, file: PackFile, pieces: Iterator[bytes]) -> Outcome | None:
        with explained(self.store.packs):
            descriptor, temporary = create_temporary(self.store.packs)
            try:
                try:
                    for piece in pieces:
                        write_all(descriptor, piece)
                    os.fchmod(descriptor, 0o444)
                finally:
                    os.close(descriptor)
                flush_all([temporary])
                with leases.exclusive(self.store, wait=self.wait):
                    place = self._put_aside(damage)
                    if place is None:
                        return None
                    rename_all([(temporary, file.path)])
                    stamp = stamp_of(os.stat(file.path))
                    entries = tuple(file.entries)
                    facts = file.kind, file.label, file.build, file.optimisation
                    with self.catalog.write() as writing:
                        writing.put_pack(SealedPack(file.id, file.path, stamp, entries, *facts))
                        verified = Verified(stamp, int(time.time()))
                        writing.put_verified(PACKED, bytes.fromhex(file.id), verified)
            finally:
                remove_quietly(temporary)
        self.restored[file.id] = stamp
        return Outcome(damage, place, True, 0, 0, [], [])

    def _move_payloads(
        self, damage: Damage, payloads: list[Payload], writer: PackWriter | None
    ) -> Outcome | None:
        """What is left of a pack, and what was found elsewhere, goes into another pack: the very same one, if
        only the end was lost."""
        digests, variants = self.catalog.held_by(damage.subject.name)
        known = {payload.sharing[0].digest for payload in payloads}.union(digests)
        sealed = None
        with writer or nullcontext():
            saved = set() if writer is None else self._fill(writer, payloads, known)
            with leases.exclusive(self.store, wait=self.wait):
                place = self._put_aside(damage)
                if place is None:
                    return None
                sealed = None if writer is None else writer.seal()
                with self.catalog.write() as writing:
                    writing.remove_pack(damage.subject.name)
                    writing.remove_blobs(digests)
                    writing.remove_variants(variants)
                    if sealed is not None:
                        writing.put_pack(sealed)
                if sealed is None or sealed.id != damage.subject.name:
                    remove_quietly(Path(damage.subject.path))
        lost = sorted(known - saved)
        if sealed is not None and sealed.id == damage.subject.name:
            self.restored[sealed.id] = sealed.stamp
            return Outcome(damage, place, True, 0, 0, [], [])
        if variants or (payloads and payloads[0].sharing[0].kind == pack.BYTECODE):
            users = self.copies.users_of(damage.subject.name)
            return Outcome(damage, place, False, len(saved), len(lost), [], users)
        affected = [path for digest in lost for path in self.copies.paths_of(digest)]
        return Outcome(damage, place, False, len(saved), 0, lost, affected)

    def _fill(self, writer: PackWriter, payloads: list[Payload], known: set[bytes]) -> set[bytes]:
        """Write what is left, and what of the rest is known elsewhere; returns all those digests."""
        saved = set()
        for payload in payloads:
            if payload.found:
                content = payload.content()
                frame = None if payload.sharing[0].codec == pack.PLAIN else payload.stored
                for entry in payload.sharing:
                    added = writer.add(content, source=entry.source, digest=entry.digest, frame=frame)
                    saved.add(added.digest)
        if writer.kind == "content":  # Bytecode without its source is of no use; it is made again.
            for digest in sorted(known - saved):
                found = self.copies.read(digest)
                if found is not None:
                    saved.add(writer.add(found, digest=digest).digest)
        return saved

    def _filled(self, payload: Payload) -> Payload:
        if payload.found:
            return payload
        content = self.copies.read(payload.sharing[0].digest)
        return payload if content is None else payload.replaced(content)

    def _writer_like(self, pack_id: str, payloads: list[Payload]) -> PackWriter | None:
        """For a pack that cannot say itself what it was; None if nobody knows."""
        record = self.catalog.packs().get(pack_id)
        if record is not None:
            is_compressed = any(payload.sharing[0].codec == pack.ZSTD for payload in payloads)
            return self._writer(record.kind, record.label, record.build, record.optimisation, is_compressed)
        if payloads and payloads[0].sharing[0].kind == pack.FILE:
            return self._writer("content", "salvaged", "", 0, True)
        return None

    def _writer(
        self, kind: str, label: str, build: str, optimisation: int, compress: bool = False
    ) -> PackWriter:
        return PackWriter(
            self.store, label=label, kind=kind, build=build, optimisation=optimisation, compress=compress
        )

    def _digests_of(self, path: Path) -> list[bytes]:
        file = _opened(path)
        if file is None:
            return self.catalog.held_by(path.stem)[0]
        with file:
            return [payload.sharing[0].digest for payload in payloads_of(file) if not payload.found]

    # -- loose blobs -------------------------------------------------------------------------------

    def _repair_blob(self, damage: Damage) -> Outcome | None:
        digest = bytes.fromhex(damage.subject.name)
        path = self.store.loose_path(digest)
        source = self.copies.file_of(digest)
        content = self.copies.read(digest) if source is None else None
        with leases.exclusive(self.store, wait=self.wait):
            place = self._put_aside(damage)
            if place is None:
                return None
            restored = content is not None
            if source is not None:
                with suppress(FileNotFoundError):
                    # A source that changed meanwhile was stored under another name.
                    restored = Blobs(self.store).put_file(source).digest == digest
            elif content is not None:
                publish(path, [content])
            with self.catalog.write() as writing:
                if restored:
                    stamp = stamp_of(os.stat(path))
                    writing.put_loose(digest, stamp.size)
                    writing.put_verified(LOOSE, digest, Verified(stamp, int(time.time())))
                else:
                    writing.remove_blobs([digest])
            if not restored:
                remove_quietly(path)
        if restored:
            return Outcome(damage, place, True, 0, 0, [], [])
        return Outcome(damage, place, False, 0, 0, [digest], self.copies.paths_of(digest))

    # -- all ---------------------------------------------------------------------------------------

    def _put_aside(self, damage: Damage) -> str | None:
        try:
            if stamp_of(os.stat(damage.subject.path)) == damage.subject.stamp:
                return str(put_aside(self.store, Path(damage.subject.path)))
        except FileNotFoundError:
            pass
        return None

    def _environment_of(self, damage: Damage) -> list[str]:
        if damage.subject.kind != MANIFEST:
            return []
        key = damage.subject.name.partition("/")[0]
        prefix = self.catalog.manifests().get(key, {}).get("prefix", "")
        return [str(prefix or key)]


def _opened(path: Path) -> PackFile | None:
    try:
        return open_pack(path)
    except (StoreCorrupt, OSError):
        return None


def _renew_stamps(store: Store, stamps: Mapping[str, Stamp]) -> None:
    """Tell every manifest the present stamps of packs whose bytes were verified."""
    for path, manifest in manifests(store):
        if is_outdated(manifest.packs, stamps):
            renewed = [
                record._replace(**stamps.get(Path(record.name).stem, Stamp(*record[2:]))._asdict())
                for record in manifest.packs
            ]
            before = os.stat(path)
            publish(path, [encode(manifest._replace(packs=renewed))])
            # Its times say when it was last used, and this was no use.
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

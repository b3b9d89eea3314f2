# SPDX-License-Identifier: Apache-2.0
"""Repack: content moves to where it is best kept, and keeps its id. Files that no environment has used for
long are compressed into packs; those that are used again come back out; small packs become large ones, and
what an older Velo packed without compressing it is compressed.

Knows what is cold and where things go; the bytes are packs.py's and blobs.py's. Its surprise: nobody counts
reads. Content is as warm as the environments that name it, which is known without writing a single time. Only
for large content does it matter: what is small has no file of its own, and no program maps it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreCorrupt, VeloError
from ..format import codec
from ..format.pack import MAX_EXPANDED, ZSTD, Entry
from ..host.files import Stamp, publish_many, remove_quietly, stamp_of
from . import leases
from .blobs import Blob, Blobs
from .catalog import Catalog
from .layout import Store
from .packs import PackFile, PackWriter, open_pack, seal_all
from .roots import needs, roots

COLD_AFTER = 30 * 86400.0
# What is younger may belong to an ingest that has not published its manifest.
GRACE = 3600.0
# Content of this size is a file of its own while it is warm (FORMAT.md, section 6).
FILE_FROM = 256 << 10
# Packs below this size are put together once there are so many of them.
SMALL_PACK = 4 << 20
MANY_PACKS = 8
# A pack is written again when more than this part of its content is in the wrong place.
_MOST_MISPLACED = 0.5
_PACK_BYTES = 64 << 20
# Old files go after so much has been written: no more than this is needed twice.
_ROUND_BYTES = 256 << 20
_BATCH_BYTES = 16 << 20
_TRIED_BYTES = 1 << 20

Progress = Callable[[str, int, int], None]


@dataclass
class Report:
    """What moved: counts of packs and blobs. Sizes are bytes of the files that went and came."""

    packs_removed: int = 0
    packs_made: int = 0
    bytes_removed: int = 0
    bytes_made: int = 0
    cooled: int = 0  # blobs that are stored as zstd now, or were found not to shrink
    warmed: int = 0  # blobs that were zstd and are files of their own now
    packed: int = 0  # of the cooled: had been files of their own
    unpacked: int = 0  # of the warmed: are files of their own now
    damaged: list[Path] = field(default_factory=list)


class _Old(NamedTuple):
    """A file that goes when all that was in it is elsewhere. `pack_id` is empty for a loose blob."""

    path: Path
    stamp: Stamp
    pack_id: str


class _Piece(NamedTuple):
    """Content on its way."""

    digest: bytes
    content: bytes
    frame: bytes | None  # None: nobody has tried yet; empty: it would not shrink.


def ignore(phase: str, done: int, total: int) -> None:
    """Nobody is watching."""


def repack(
    store: Store,
    catalog: Catalog,
    *,
    cold_after: float = COLD_AFTER,
    now: float | None = None,
    jobs: int = 1,
    progress: Progress = ignore,
    wait: float = 60.0,
) -> Report:
    """Move content to where it is best kept. Hold the maintenance lease.

    Args:
        cold_after: seconds without use after which a file is compressed.
        jobs: threads that compress.
        wait: seconds that an ingest may keep us from removing old files.

    Raises:
        StoreCorrupt: a root cannot be read, so nobody knows what it uses.
        StoreLocked: an ingest or a learner was at work for all of `wait` seconds.
    """
    store.require_writable()
    now = time.time() if now is None else now
    warm, named = _in_use(store, now - cold_after)
    packs = _packs_to_move(store, warm, named, now - GRACE)
    files = list(_cold_files(store, warm, now - cold_after))
    total = len(packs) + len(files)
    with ThreadPoolExecutor(jobs) as pool:
        work = _Repacking(store, catalog, warm, pool, jobs, wait)
        try:
            for number, path in enumerate(packs):
                progress("packs", number, total)
                work.move_pack(path)
            for number, batch in enumerate(_batches(files)):
                progress("files", len(packs) + number, total)
                work.pack_files(batch)
            work.finish_round()
        finally:
            work.abandon()
    progress("", total, total)
    return work.report


def _in_use(store: Store, since: float) -> tuple[set[bytes], set[str]]:
    """The content that was used since then, and the ids of all packs that manifests map."""
    warm: set[bytes] = set()
    named: set[str] = set()
    for root in roots(store):
        with needs(root) as (packs, steps):
            named.update(raw_id.hex() for raw_id in packs)
            if root.last_use >= since:
                warm.update(chain.from_iterable(steps))
    return warm, named


def _packs_to_move(store: Store, warm: set[bytes], named: set[str], settled_since: float) -> list[Path]:
    misplaced = []
    small = []
    for path in sorted(store.packs.glob("??/*.pack")):
        if path.stem in named:
            continue
        with suppress(OSError, StoreCorrupt), open_pack(path) as file:
            if file.kind != "content" or file.stamp.mtime_ns / 1e9 > settled_since:
                continue
            if _is_misplaced(file, warm):
                misplaced.append(path)
            elif file.stamp.size < SMALL_PACK:
                small.append(path)
    return misplaced + (small if len(small) >= MANY_PACKS else [])


def _is_misplaced(file: PackFile, warm: set[bytes]) -> bool:
    """Whether it was not compressed, or more than half of its content should be files."""
    wrong = sum(entry.size for entry in file.entries if _should_be_file(entry.digest, entry.size, warm))
    return not file.may_compress or wrong > _MOST_MISPLACED * sum(entry.size for entry in file.entries)


def _should_be_file(digest: bytes, size: int, warm: set[bytes]) -> bool:
    return size >= FILE_FROM and digest in warm


def _cold_files(store: Store, warm: set[bytes], since: float) -> Iterator[tuple[bytes, int]]:
    """Loose blobs that nobody uses, and their sizes. Those that are hard-linked would free nothing."""
    for path in store.loose.glob("??/??/*"):
        with suppress(OSError, ValueError):
            status = path.lstat()
            digest = bytes.fromhex(path.name)
            if (
                stat.S_ISREG(status.st_mode)
                and 0 < status.st_size <= MAX_EXPANDED
                and status.st_nlink == 1
                and status.st_mtime <= since
                and len(digest) == 32
                and digest not in warm
            ):
                yield digest, status.st_size


def _batches(files: list[tuple[bytes, int]]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for digest, length in files:
        batch.append(digest)
        size += length
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Repacking:
    """One repack at work."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        warm: set[bytes],
        pool: ThreadPoolExecutor,
        jobs: int,
        wait: float,
    ) -> None:
        self.store = store
        self.catalog = catalog
        self.warm = warm
        self.pool = pool
        self.jobs = jobs
        self.wait = wait
        self.report = Report()
        self._writers: list[PackWriter] = []
        self._files: list[Blob] = []
        self._old: list[_Old] = []
        self._written = 0

    def move_pack(self, path: Path) -> None:
        """Copy what only this pack has to where it belongs."""
        try:
            with open_pack(path) as file:
                for batch in self._read(file):
                    self._place(batch)
                self._old.append(_Old(path, file.stamp, file.id))
        except FileNotFoundError:
            return
        except StoreCorrupt:
            self.report.damaged.append(path)  # It stays, for `velo verify`.
        self._end_of_file()

    def pack_files(self, digests: list[bytes]) -> None:
        """Compress loose blobs into packs, where that pays."""
        for digest, found in zip(digests, self.pool.map(self._compressed_file, digests), strict=True):
            if isinstance(found, Path):
                self.report.damaged.append(found)
            elif found is not None:
                content, frame, stamp = found
                self._pack(_Piece(digest, content, frame))
                self.report.cooled += 1
                self._old.append(_Old(self.store.loose_path(digest), stamp, ""))
                self.report.packed += 1
        self._end_of_file()

    def finish_round(self) -> None:
        """Make durable what was copied, record it, and only then remove where it came from."""
        if not self._old:
            return
        sealed = seal_all(self._writers)
        made = {new.id for new in sealed}
        with leases.exclusive(self.store, wait=self.wait):
            gone = [old for old in self._old if old.pack_id not in made and _is_unchanged(old)]
            with self.catalog.write() as writing:
                for old in gone:
                    if old.pack_id:
                        writing.remove_pack(old.pack_id)
                for new in sealed:
                    writing.put_pack(new)
                for blob in self._files:
                    writing.put_loose(blob.digest, blob.size)
            for old in gone:
                remove_quietly(old.path)
        self.report.packs_made += len(sealed)
        self.report.packs_removed += sum(bool(old.pack_id) for old in gone)
        self.report.bytes_removed += sum(old.stamp.size for old in gone)
        self.report.bytes_made += sum(new.stamp.size for new in sealed)
        self.report.bytes_made += sum(blob.size for blob in self._files)
        self._writers, self._files, self._old, self._written = [], [], [], 0

    def abandon(self) -> None:
        for writer in self._writers:
            writer.abandon()

    def _end_of_file(self) -> None:
        if self._written >= _ROUND_BYTES:
            self.finish_round()

    def _read(self, file: PackFile) -> Iterator[list[_Piece]]:
        """The content that is nowhere else, verified, in batches."""
        raw_id = bytes.fromhex(file.id)
        digests = [entry.digest for entry in file.entries]
        recorded = self.catalog.locations(digests)
        elsewhere = self.catalog.has_blobs(
            digest for digest, place in recorded.items() if place.pack_id != raw_id
        )
        batch: list[_Piece] = []
        size = 0
        for entry in sorted(file.entries, key=_offset):
            if entry.digest not in elsewhere:
                stored = file.stored(entry)
                content = file.content(entry, stored)
                frame = (stored if entry.codec == ZSTD else b"") if file.may_compress else None
                batch.append(_Piece(entry.digest, content, frame))
                size += entry.size
                if size >= _BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
        yield batch

    def _place(self, batch: list[_Piece]) -> None:
        files = [piece for piece in batch if _should_be_file(piece.digest, len(piece.content), self.warm)]
        self._publish(files)
        moved = {piece.digest for piece in files}
        rest = [piece for piece in batch if piece.digest not in moved]
        new = [piece for piece in rest if piece.frame is None]
        frames = iter(codec.compressed_all([piece.content for piece in new], self.jobs))
        for piece in rest:
            self._pack(piece if piece.frame is not None else piece._replace(frame=next(frames) or b""))
        self.report.cooled += len(new)

    def _publish(self, pieces: list[_Piece]) -> None:
        with publish_many() as batch:
            for digest, content, frame in pieces:
                batch.add(self.store.loose_path(digest), [content])
                self._files.append(Blob(digest, len(content)))
                self._written += len(content)
                self.report.warmed += bool(frame)
        self.report.unpacked += len(pieces)

    def _pack(self, piece: _Piece) -> None:
        if not self._writers or self._writers[-1].size >= _PACK_BYTES:
            self._writers.append(PackWriter(self.store, label="repacked", kind="content", compress=True))
        self._writers[-1].add(piece.content, digest=piece.digest, frame=piece.frame)
        self._written += len(piece.frame or piece.content)

    def _compressed_file(self, digest: bytes) -> tuple[bytes, bytes, Stamp] | Path | None:
        """A loose blob, its frame and its stamp; its path if it is damaged, None if it stays a file."""
        path = self.store.loose_path(digest)
        try:
            stamp = stamp_of(os.stat(path))
            content = Blobs(self.store).read(digest)
        except StoreCorrupt:
            return path
        except (OSError, VeloError):
            return None
        # Most of what does not shrink is archives and images; a part of it tells.
        if len(content) > _TRIED_BYTES and codec.compressed(content[:_TRIED_BYTES]) is None:
            return None
        frame = codec.compressed(content)
        return None if frame is None else (content, frame, stamp)


def _offset(entry: Entry) -> int:
    return entry.offset


def _is_unchanged(old: _Old) -> bool:
    try:
        return stamp_of(os.stat(old.path)) == old.stamp
    except OSError:
        return False

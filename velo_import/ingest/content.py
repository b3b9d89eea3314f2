# SPDX-License-Identifier: Apache-2.0
"""Reading files: what their content is (BLAKE3), and a copy of it in the store where that is wanted.

Knows how to read a file that somebody may be writing: its stamp must be the same before and after, or it is
read again. Small contents go into packs, large ones into files of their own. The surprise: reading is
rarely the cost; asking the store what it already holds, in batches, is what keeps a second environment from
being written twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from velo_import.format.manifest import siphash
from velo_import.host.files import open_quietly
from velo_import.store.blobs import Blob, Blobs, identify
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack, seal_all

from .plan import Draft, Plan, Unread, file_record
from .scan import COARSE_TICK_NS, FINE_TICK_NS, SLOW_WALKERS, FileEntry, Trouble
from .secrets import is_key, is_secret

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

LOOSE_FROM = 256 * 1024  # FORMAT.md, section 6: larger contents are files of their own.
PACK_BYTES = 64 << 20
BATCH_BYTES = 16 << 20
BATCH_FILES = 1024
LARGE_BATCH_BYTES = 256 << 20
SHORT = 32 * 1024  # Most files are shorter and come with one call.
ATTEMPTS = 3


class Read(NamedTuple):
    """What one file was found to hold."""

    entry: FileEntry  # The stamp that belongs to this content; newer than planned if the file had changed.
    digest: bytes
    source_check: int


class Contents(NamedTuple):
    """What came of reading many files."""

    read: dict[str, Read]
    secrets: list[str]  # Guarded files that turned out to be keys, or links to secrets.
    unreadable: list[Trouble]
    changed: list[str]  # Kept changing while they were read.
    packs: list[SealedPack]
    loose: list[Blob]
    new_blobs: int
    new_bytes: int


class Changing(Exception):
    """The file did not hold still."""


def entry_of(name: str, status: os.stat_result, is_link: bool) -> FileEntry:
    return FileEntry(
        name,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_mode,
        is_link,
    )


def read_steadily(
    path: str, entry: FileEntry, read: Callable[[int], bytes], sleep: Callable[[float], None] = time.sleep
) -> tuple[bytes, FileEntry]:
    """Apply `read` to the open file so that its result belongs to exactly one stamp, and say which.

    Raises:
        OSError: the file cannot be read, or is gone.
        Changing: it changed each time.
    """
    for _ in range(ATTEMPTS):
        descriptor = open_quietly(path)
        try:
            before = entry_of(entry.name, os.fstat(descriptor), entry.is_link)
            # A stamp that the scan has seen was settled then. A new one has to come of age first.
            if before != entry:
                _come_of_age(before, sleep)
                before = entry_of(entry.name, os.fstat(descriptor), entry.is_link)
            result = read(descriptor)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if entry_of(entry.name, after, entry.is_link) == before and _is_of_age(before, entry):
            return result, before
    raise Changing


def _is_of_age(entry: FileEntry, scanned: FileEntry) -> bool:
    return entry == scanned or entry.ctime_ns + _tick(entry) <= time.time_ns()


def _come_of_age(entry: FileEntry, sleep: Callable[[float], None]) -> None:
    wait = entry.ctime_ns + _tick(entry) - time.time_ns()
    if 0 < wait <= 2 * COARSE_TICK_NS:
        sleep(wait / 1e9)


def _tick(entry: FileEntry) -> int:
    return FINE_TICK_NS if entry.ctime_ns % 1_000_000_000 else COARSE_TICK_NS


def read_whole(descriptor: int) -> bytes:
    data = os.read(descriptor, SHORT)
    if len(data) < SHORT and not os.read(descriptor, 1):
        return data
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
        return file.readall()


def hash_whole(descriptor: int) -> bytes:
    return identify(descriptor).digest


def read_contents(
    unread: Sequence[Unread],
    store: Store,
    catalog: Catalog,
    *,
    label: str,
    threads: int,
    advance: Callable[[int], None],
    slow: bool = False,
) -> Contents:
    """Read and hash files; put the content of those that are wanted into the store, unless it is there.

    `slow` keeps many requests in flight, for network file systems.
    Packs and blobs are on the disk when this returns, and unknown to the catalogue.
    """
    from concurrent.futures import ThreadPoolExecutor  # 4 ms that an unchanged tree need not pay

    work = _Reading(store, catalog, label, advance)
    large = [item for item in unread if item.entry.size >= LOOSE_FROM and not item.is_source]
    small = [item for item in unread if item.entry.size < LOOSE_FROM or item.is_source]
    try:
        with ThreadPoolExecutor(SLOW_WALKERS if slow else max(threads, 1)) as pool:
            # Large files keep the disk and another core busy meanwhile: hashing lets go of Python's lock.
            digests = pool.map(_try_hash, large)
            for batch in _batches(small):
                work.add_small(batch, (pool.map if slow else map)(_try_read, batch))
            work.add_large(large, digests, pool)
        return work.finish()
    finally:
        work.abandon()


def _batches(items: Iterable[Unread]) -> Iterator[list[Unread]]:
    batch: list[Unread] = []
    size = 0
    for item in items:
        batch.append(item)
        size += item.entry.size
        if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _try_read(item: Unread) -> tuple[bytes, FileEntry] | OSError | Changing:
    try:
        return read_steadily(item.path, item.entry, read_whole)
    except (OSError, Changing) as error:
        return error


def _try_hash(item: Unread) -> tuple[bytes, FileEntry] | OSError | Changing:
    try:
        return read_steadily(item.path, item.entry, hash_whole)
    except (OSError, Changing) as error:
        return error


class _Reading:
    """The state of one `read_contents`."""

    def __init__(self, store: Store, catalog: Catalog, label: str, advance: Callable[[int], None]) -> None:
        self.store = store
        self.catalog = catalog
        self.label = label
        self.advance = advance
        self.result = Contents({}, [], [], [], [], [], 0, 0)
        self.writers: list[PackWriter] = []
        self.stored: set[bytes] = set()
        self.new_blobs = 0
        self.new_bytes = 0

    def add_small(
        self, batch: list[Unread], answers: Iterable[tuple[bytes, FileEntry] | OSError | Changing]
    ) -> None:
        texts: dict[bytes, bytes] = {}
        large: list[tuple[Unread, bytes]] = []
        for item, answer in zip(batch, answers, strict=True):
            if not isinstance(answer, tuple):
                self._give_up(item, answer)
                continue
            data, entry = answer
            if item.is_guarded and (is_key(data) or _leads_to_secret(item)):
                self.result.secrets.append(item.path)
                continue
            digest = blake3(data).digest()
            check = siphash(data) if item.is_source else 0
            self.result.read[item.path] = Read(entry, digest, check)
            if item.is_content and digest not in self.stored:
                if len(data) < LOOSE_FROM:
                    texts[digest] = data
                else:
                    large.append((item, digest))
        self.stored.update(texts)
        present = self.catalog.has_blobs(texts)
        for digest, data in texts.items():
            if digest not in present:
                self._writer().add(data, digest=digest)
                self.new_blobs += 1
                self.new_bytes += len(data)
        self._put_loose(large)
        self.advance(len(batch))

    def add_large(
        self,
        large: list[Unread],
        digests: Iterable[tuple[bytes, FileEntry] | OSError | Changing],
        pool: ThreadPoolExecutor,
    ) -> None:
        hashed: list[tuple[Unread, bytes]] = []
        for item, answer in zip(large, digests, strict=True):
            if item.is_guarded and _leads_to_secret(item):
                self.result.secrets.append(item.path)
            elif isinstance(answer, tuple):
                digest, entry = answer
                self.result.read[item.path] = Read(entry, digest, 0)
                hashed.append((item, digest))
            else:
                self._give_up(item, answer)
        self._put_loose(hashed, pool)
        self.advance(len(large))

    def finish(self) -> Contents:
        packs = seal_all(self.writers)
        return self.result._replace(packs=packs, new_blobs=self.new_blobs, new_bytes=self.new_bytes)

    def abandon(self) -> None:
        for writer in self.writers:
            writer.abandon()

    def _writer(self) -> PackWriter:
        if not self.writers or self.writers[-1].size >= PACK_BYTES:
            self.writers.append(PackWriter(self.store, label=self.label, kind="content"))
        return self.writers[-1]

    def _put_loose(self, hashed: list[tuple[Unread, bytes]], pool: ThreadPoolExecutor | None = None) -> None:
        missing: dict[bytes, list[Unread]] = {}
        present = self.catalog.has_blobs({digest for _, digest in hashed} - self.stored) if hashed else set()
        for item, digest in hashed:
            if digest not in self.stored and digest not in present:
                missing.setdefault(digest, []).append(item)
        self.stored.update(digest for _, digest in hashed)
        run = map if pool is None else pool.map
        for blobs in run(self._put_batch, _by_size(missing)):
            for blob in blobs:
                self.result.loose.append(blob)
                self.new_blobs += 1
                self.new_bytes += blob.size

    def _put_batch(self, batch: list[tuple[bytes, list[Unread]]]) -> list[Blob]:
        """Copy one of each set of equal files into the store; where it has changed since, all of them are
        looked at again."""
        try:
            stored = Blobs(self.store).put_files([Path(items[0].path) for _, items in batch])
        except FileNotFoundError:
            if len(batch) > 1:
                return [blob for equal in batch for blob in self._put_batch([equal])]
            stored = []
        kept = {blob.digest for blob in stored}
        changed = [item for digest, items in batch if digest not in kept for item in items]
        return stored + [blob for item in changed for blob in self._put_again(item)]

    def _put_again(self, item: Unread) -> list[Blob]:
        """Copy a file that changes until what is stored is what one stamp stands for; give up in the end."""
        stored: list[Blob] = []
        for _ in range(0 if item.is_source else ATTEMPTS):
            answer = _try_hash(item)
            if not isinstance(answer, tuple):
                break
            digest, entry = answer
            try:
                stored.append(Blobs(self.store).put_file(Path(item.path)))
            except FileNotFoundError:
                break
            if stored[-1].digest == digest:
                self.result.read[item.path] = Read(entry, digest, 0)
                return stored
        self._forget(item)
        return stored

    def _forget(self, item: Unread) -> None:
        self.result.changed.append(item.path)
        self.result.read.pop(item.path, None)

    def _give_up(self, item: Unread, error: OSError | Changing) -> None:
        if isinstance(error, (Changing, FileNotFoundError)):
            self.result.changed.append(item.path)
        else:
            self.result.unreadable.append(Trouble(item.path, error.strerror or type(error).__name__))


def _leads_to_secret(item: Unread) -> bool:
    return item.entry.is_link and is_secret(os.path.realpath(item.path))


def _by_size(missing: dict[bytes, list[Unread]]) -> Iterator[list[tuple[bytes, list[Unread]]]]:
    batch: list[tuple[bytes, list[Unread]]] = []
    size = 0
    for pair in missing.items():
        batch.append(pair)
        size += pair[1][0].entry.size
        if size >= LARGE_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def settle_files(draft: Draft, plan: Plan, contents: Contents) -> None:
    """Give every file that was read its digest and the stamp it had then; forget what could not be read."""
    for item in plan.unread:
        read = contents.read.get(item.path)
        if read is not None:
            if read.entry != item.entry:
                draft.codes.pop(item.path, None)
            draft.files[item.path] = file_record(item.path, read.entry, read.digest)
        elif item.is_source:
            # Listed and not readable: Python will say so. One that kept changing may be served next time.
            draft.codes.pop(item.path, None)
    for trouble in contents.unreadable:
        draft.deferred.add(trouble.path)
    for path in (*contents.changed, *contents.secrets):
        draft.files.pop(path, None)
        draft.codes.pop(path, None)

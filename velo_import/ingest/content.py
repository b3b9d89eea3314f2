# SPDX-License-Identifier: Apache-2.0
"""Reading files: what their content is (BLAKE3), and a copy of it in the store where that is wanted.

Knows how to read a file that somebody may be writing: its stamp must be the same before and after, or it is
read again. Small contents go into packs, as zstd where that pays, because nobody maps them; large ones into
files of their own. Every file is read once. The
surprise: a large one is copied while it is hashed, unless the store has a blob of its size; then it is most
likely there already, and is only hashed, so that a second environment is not written twice.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from blake3 import blake3

from velo_import.format import codec
from velo_import.format.manifest import siphash
from velo_import.host.files import open_quietly
from velo_import.store.blobs import Blob, Blobs, Staged, give_up, identify
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack, seal_all

from .plan import Draft, Plan, Unread, file_record
from .scan import COARSE_TICK_NS, FINE_TICK_NS, SLOW_WALKERS, FileEntry, Trouble
from .secrets import is_key, is_secret

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

LOOSE_FROM = 256 * 1024  # FORMAT.md, section 6: larger contents are files of their own.
PACK_BYTES = 64 << 20
BATCH_BYTES = 16 << 20
BATCH_FILES = 1024
COMPRESSING = 2  # Batches on their way: one core reads at most twice as fast as another compresses.
LARGE_BATCH_BYTES = 256 << 20
SHORT = 32 * 1024  # Most files are shorter and come with one call.
ATTEMPTS = 3


Result = TypeVar("Result")


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
    path: str, entry: FileEntry, read: Callable[[int], Result], sleep: Callable[[float], None] = time.sleep
) -> tuple[Result, FileEntry]:
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

    large = [item for item in unread if item.entry.size >= LOOSE_FROM and not item.is_source]
    small = [item for item in unread if item.entry.size < LOOSE_FROM or item.is_source]
    work = _Reading(store, catalog, label, advance, catalog.sizes(LOOSE_FROM) if large else set())
    pool = ThreadPoolExecutor(SLOW_WALKERS if slow else max(threads, 1))
    try:
        # Large files keep the disk and another core busy meanwhile: hashing lets go of Python's lock.
        answers = pool.map(work.read_large, large)
        for batch in _batches(small):
            work.add_small(batch, (pool.map if slow else map)(_try_read, batch), pool)
        work.add_large(large, answers, pool)
        return work.finish()
    finally:
        pool.shutdown(cancel_futures=True)
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
    return _try(item, read_whole)


def _try(item: Unread, read: Callable[[int], Result]) -> tuple[Result, FileEntry] | OSError | Changing:
    try:
        return read_steadily(item.path, item.entry, read)
    except (OSError, Changing) as error:
        return error


class _Reading:
    """The state of one `read_contents`."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        label: str,
        advance: Callable[[int], None],
        sizes: set[int],
    ) -> None:
        self.store = store
        self.blobs = Blobs(store)
        self.catalog = catalog
        self.label = label
        self.advance = advance
        self.sizes = sizes  # Of the large blobs in the store.
        self.staged: list[Staged] = []
        self.compressing: deque[tuple[dict[bytes, bytes], Future[list[bytes | None]]]] = deque()
        self.by_digest: dict[bytes, list[Unread]] = {}  # Large files that were only hashed.
        self.result = Contents({}, [], [], [], [], [], 0, 0)
        self.writers: list[PackWriter] = []
        self.stored: set[bytes] = set()
        self.new_blobs = 0
        self.new_bytes = 0

    def add_small(
        self,
        batch: list[Unread],
        answers: Iterable[tuple[bytes, FileEntry] | OSError | Changing],
        pool: ThreadPoolExecutor,
    ) -> None:
        texts: dict[bytes, bytes] = {}
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
                    self.by_digest.setdefault(digest, []).append(item)
        self.stored.update(texts)
        present = self.catalog.has_blobs(texts)
        new = {digest: data for digest, data in texts.items() if digest not in present}
        if new:
            # Another core compresses while this one reads on; in order, so that equal trees give equal packs.
            self.compressing.append((new, pool.submit(codec.compressed_all, list(new.values()))))
            self._pack_compressed(at_most=COMPRESSING)
        self.advance(len(batch))

    def _pack_compressed(self, *, at_most: int) -> None:
        """Pack what has been compressed until only so many batches are on their way."""
        while len(self.compressing) > at_most:
            texts, frames = self.compressing.popleft()
            for (digest, data), frame in zip(texts.items(), frames.result(), strict=True):
                self._writer().add(data, digest=digest, frame=frame or b"")
                self.new_blobs += 1
                self.new_bytes += len(data)

    def read_large(self, item: Unread) -> tuple[Blob | Staged, FileEntry] | OSError | Changing | None:
        """Read a file once, in any thread: copy it meanwhile, or only hash it if the store may have it.

        None: it is a secret.
        """
        if item.is_guarded and _leads_to_secret(item):
            return None
        return _try(item, identify) if item.entry.size in self.sizes else self._stage(item)

    def add_large(
        self,
        large: list[Unread],
        answers: Iterable[tuple[Blob | Staged, FileEntry] | OSError | Changing | None],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Publish what was copied, and copy now what was only hashed and is not in the store after all."""
        copies: dict[bytes, Staged] = {}
        for item, answer in zip(large, answers, strict=True):
            self._note(item, answer, copies)
            self.advance(1)
        present = self.catalog.has_blobs({*copies, *self.by_digest})
        lost = {digest for digest in self.by_digest if digest not in present and digest not in copies}
        # All that are equal: one of them may have changed since.
        again = [item for digest in lost for item in self.by_digest[digest]]
        for item, answer in zip(again, pool.map(self._stage, again), strict=True):
            self._note(item, answer, copies)
        present |= self.catalog.has_blobs(copies)
        new = [staged for digest, staged in copies.items() if digest not in present]
        for batch in pool.map(self._publish, _by_size(new)):
            for blob, _ in batch:
                self.result.loose.append(blob)
                self.new_blobs += 1
                self.new_bytes += blob.size

    def _stage(self, item: Unread) -> tuple[Staged, FileEntry] | OSError | Changing:
        made: list[Staged] = []

        def stage(descriptor: int) -> Staged:
            give_up(made)  # It changed since: two copies of a large file could fill the disk.
            made.append(self.blobs.stage(descriptor))
            self.staged.append(made[-1])
            return made[-1]

        return _try(item, stage)

    def _publish(self, batch: list[Staged]) -> list[Staged]:
        self.blobs.publish(batch)
        return batch

    def _note(
        self,
        item: Unread,
        answer: tuple[Blob | Staged, FileEntry] | OSError | Changing | None,
        copies: dict[bytes, Staged],
    ) -> None:
        if answer is None:
            self.result.secrets.append(item.path)
            return
        if not isinstance(answer, tuple):
            self._give_up(item, answer)
            return
        found, entry = answer
        blob = found.blob if isinstance(found, Staged) else found
        known = self.result.read.get(item.path)
        if item.is_source and known is not None and known.digest != blob.digest:
            self._give_up(item, Changing())  # Its bytecode would be that of another text.
            return
        self.result.read[item.path] = Read(entry, blob.digest, 0 if known is None else known.source_check)
        if isinstance(found, Staged):
            copies.setdefault(blob.digest, found)
        else:
            self.by_digest.setdefault(blob.digest, []).append(item)

    def finish(self) -> Contents:
        self._pack_compressed(at_most=0)
        packs = seal_all(self.writers)
        return self.result._replace(packs=packs, new_blobs=self.new_blobs, new_bytes=self.new_bytes)

    def abandon(self) -> None:
        for writer in self.writers:
            writer.abandon()
        give_up(self.staged)

    def _writer(self) -> PackWriter:
        if not self.writers or self.writers[-1].size >= PACK_BYTES:
            self.writers.append(PackWriter(self.store, label=self.label, kind="content", compress=True))
        return self.writers[-1]

    def _give_up(self, item: Unread, error: OSError | Changing) -> None:
        self.result.read.pop(item.path, None)
        if isinstance(error, (Changing, FileNotFoundError)):
            self.result.changed.append(item.path)
        else:
            self.result.unreadable.append(Trouble(item.path, error.strerror or type(error).__name__))


def _leads_to_secret(item: Unread) -> bool:
    return item.entry.is_link and is_secret(os.path.realpath(item.path))


def _by_size(copies: Iterable[Staged]) -> Iterator[list[Staged]]:
    batch: list[Staged] = []
    size = 0
    for staged in copies:
        batch.append(staged)
        size += staged.blob.size
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

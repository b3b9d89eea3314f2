# SPDX-License-Identifier: Apache-2.0
"""Packs on disk: written once, sealed, then never edited; named by the BLAKE3 of their index.

Knows files and ids; the bytes are format/pack.py's, finding a payload by digest is catalog.py's.
Its surprise: sealing a pack that already exists keeps the old file, because its stamp is in manifests.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from blake3 import blake3

from .. import __version__
from ..errors import StoreCorrupt, VeloError
from ..format import codec, pack
from ..format.pack import Entry
from ..host.files import (
    Data,
    Stamp,
    explained,
    flush_all,
    open_quietly,
    remove_quietly,
    rename_all,
    stamp_of,
    temporary_name,
    write_all,
)
from ..host.locks import exclusive
from .layout import Store

# Written in steps of this size: a thousand open writers cost memory, but no descriptors.
_BUFFER = 1 << 18
_HASH_STEP = 1 << 20
_LOCK_WAIT = 60.0
_HINT = "run `velo verify`: what can be read is kept, the rest comes back from another copy if there is one"


class SealedPack(NamedTuple):
    """A pack that is in its place and on the disk."""

    id: str
    path: Path
    stamp: Stamp
    entries: tuple[Entry, ...]
    kind: str
    label: str
    build: str
    optimisation: int


class PackWriter:
    """Collects payloads in a temporary file until the pack is sealed. For one thread; as a context manager
    it abandons what was not sealed. With `compress`, content is stored as zstd where that pays."""

    def __init__(
        self,
        store: Store,
        *,
        label: str,
        kind: str,
        build: str = "",
        optimisation: int = 0,
        compress: bool = False,
    ) -> None:
        store.require_writable()
        self.store = store
        self.label = label
        self.kind = kind
        self.build = build
        self.optimisation = optimisation
        self._temporary = temporary_name(store.packs)
        self._compress = compress
        self._header = pack.encode_header(pack.KINDS[kind], pack.COMPRESSED if compress else 0)
        self._buffer = bytearray(self._header)
        self._end = len(self._header)
        self._on_disk = False
        self._entries: dict[tuple[bytes, bytes], Entry] = {}
        self._payloads: dict[bytes, Entry] = {}

    @property
    def size(self) -> int:
        """Bytes so far, for callers that start another pack when one is big enough."""
        return self._end

    def add(
        self,
        payload: Data,
        *,
        source: bytes = pack.NO_SOURCE,
        digest: bytes | None = None,
        frame: bytes | None = None,
    ) -> Entry:
        """Append a payload and say where it is; equal payloads are stored once.

        Pass the digest only if it was made from these very bytes; and `frame`, in a pack that compresses, if
        that was done already: it is empty if it does not pay.
        """
        digest = digest or blake3(payload).digest()
        known = self._entries.get((digest, source))
        if known is not None:
            return known
        twin = self._payloads.get(digest)
        if twin is not None:
            entry = twin._replace(source=source)
        else:
            entry = self._append(payload, source, digest, frame)
            self._payloads[digest] = entry
        self._entries[digest, source] = entry
        return entry

    def copy(self, file: PackFile, entry: Entry) -> Entry:
        """Append a payload of another pack, verified; what is compressed there is not compressed again."""
        stored = file.stored(entry)
        frame = None if entry.codec == pack.PLAIN or not self._compress else stored
        content = file.content(entry, stored)
        return self.add(content, source=entry.source, digest=entry.digest, frame=frame)

    def seal(self) -> SealedPack | None:
        """Finish the pack and put it in its place; None when nothing was added."""
        return next(iter(seal_all([self])), None)

    def abandon(self) -> None:
        """Leave nothing behind. Harmless after sealing."""
        self._buffer = bytearray()  # not clear(): the traceback of a failed write still looks at it
        remove_quietly(self._temporary)

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def _append(self, payload: Data, source: bytes, digest: bytes, frame: bytes | None) -> Entry:
        if frame is None and self._compress:
            frame = codec.compressed(bytes(payload))
        stored = frame or payload
        length = len(stored)
        entry = Entry(
            digest,
            source,
            self._end + pack.ENTRY.size,
            length,
            len(payload),
            pack.ZSTD if frame else pack.PLAIN,
            pack.KINDS[self.kind],
            self.optimisation,
        )
        for part in (pack.encode_entry(entry, frame or None), stored, pack.padding(length)):
            self._buffer += part
            self._end += len(part)
        if len(self._buffer) >= _BUFFER:
            self._spill()
        return entry

    def _spill(self) -> None:
        """Move the buffer to the temporary file, which is open only meanwhile."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        flags |= 0 if self._on_disk else os.O_CREAT | os.O_EXCL
        with explained(self.store.packs):
            descriptor = os.open(self._temporary, flags, 0o600)
            self._on_disk = True
            try:
                write_all(descriptor, self._buffer)
            finally:
                os.close(descriptor)
        self._buffer = bytearray()

    def _finish(self) -> tuple[Path, SealedPack]:
        metadata = {
            "label": self.label,
            "build": self.build,
            "optimisation": self.optimisation,
            "by": f"velo {__version__}",
        }
        entries = sorted(self._entries.values())
        end, digest = pack.encode_end(self._header, entries, metadata, self._end)
        self._buffer += end
        self._spill()
        os.chmod(self._temporary, 0o444)
        name = digest.hex()
        path = self.store.pack_path(name)
        nothing = Stamp(0, 0, 0, 0)  # known once the pack is in its place
        sealed = SealedPack(
            name, path, nothing, tuple(entries), self.kind, self.label, self.build, self.optimisation
        )
        return self._temporary, sealed


def seal_all(writers: Iterable[PackWriter]) -> list[SealedPack]:
    """Seal many packs with one round of flushes; empty ones are dropped. All writers are used up."""
    writers = list(writers)
    try:
        finished = [writer._finish() for writer in writers if writer._entries]
        if not finished:
            return []
        store = writers[0].store
        with explained(store.packs):
            flush_all([temporary for temporary, _ in finished])
            # Two learners may seal equal packs at once: the second must not replace the inode of the first.
            with exclusive(store.run / "packs.lock", wait=_LOCK_WAIT):
                known = {new.path for _, new in finished if _is_intact(new.path)}
                rename_all([(temporary, new.path) for temporary, new in finished if new.path not in known])
            # Whoever gave those their names may have died before the names were on the disk.
            flush_all(sorted({folder for path in known for folder in path.parents[:2]}))
            return [new._replace(stamp=stamp_of(os.stat(new.path))) for _, new in finished]
    finally:
        for writer in writers:
            writer.abandon()


def _is_intact(path: Path) -> bool:
    try:
        with open_pack(path) as existing:
            return not existing.damaged()
    except (OSError, VeloError):
        return False


def open_pack(path: Path) -> PackFile:
    """Open a sealed pack and check header, index and tail; StoreCorrupt when they are not whole."""
    return PackFile(path)


class PackFile:
    """A sealed pack. Reads go through the descriptor, never through a map: a file that is cut short
    meanwhile gives an error and not a SIGBUS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_quietly(path)
        try:
            status = os.fstat(self._descriptor)
            self.stamp = stamp_of(status)
            size = status.st_size
            self.header = self._bytes(0, pack.HEADER.size)
            self.kind = pack.KIND_NAMES[pack.decode_header(self.header)]
            tail_offset = size - pack.TAIL.size
            if tail_offset < pack.HEADER.size:
                raise StoreCorrupt("pack is shorter than its header and tail")
            tail = pack.decode_tail(self._bytes(tail_offset, pack.TAIL.size), size)
            data = self._bytes(tail.index_offset, tail_offset - tail.index_offset)
            self.entries, self.metadata = pack.decode_end(self.header, data, tail)
            self.index_offset = tail.index_offset
            self.id = tail.checksum.hex()
            if path.stem != self.id:
                raise StoreCorrupt("pack has the name of another one")
            self.label, self.build, self.optimisation = pack.described(self.metadata)
        except StoreCorrupt as error:
            self.close()
            raise StoreCorrupt(f"{path}: {error}", hint=_HINT) from error
        except BaseException:
            self.close()
            raise

    @property
    def may_compress(self) -> bool:
        """Whether it was written for content that may be compressed."""
        return bool(pack.features(self.header) & pack.COMPRESSED)

    def find(self, digest: bytes) -> Entry | None:
        """The first record with that payload digest."""
        place = bisect_left(self.entries, (digest,))
        if place < len(self.entries) and self.entries[place].digest == digest:
            return self.entries[place]
        return None

    def read(self, entry: Entry) -> bytes:
        """A payload, verified."""
        return self.content(entry, self.stored(entry))

    def content(self, entry: Entry, stored: bytes) -> bytes:
        """What these bytes of the file, as `stored` gave them, are the payload of; verified."""
        try:
            payload = codec.expanded(stored, entry.codec, entry.size)
        except StoreCorrupt as error:
            raise StoreCorrupt(f"{self.path}: {error}", hint=_HINT) from error
        if blake3(payload).digest() != entry.digest:
            raise StoreCorrupt(f"{self.path}: payload {entry.digest.hex()} is damaged", hint=_HINT)
        return payload

    def stored(self, entry: Entry) -> bytes:
        """The bytes of a payload as they stand in the file, perhaps compressed, not verified."""
        return self._bytes(entry.offset, entry.length)

    def damaged(self) -> list[Entry]:
        """The records whose bytes are not what the index says; every byte of the file is looked at."""
        bad = []
        ahead = _Ahead(self._bytes, self.stamp.size)
        expected = pack.HEADER.size
        by_offset: dict[int, list[Entry]] = {}
        for entry in self.entries:
            by_offset.setdefault(entry.offset, []).append(entry)
        for offset, sharing in sorted(by_offset.items()):
            if offset != expected + pack.ENTRY.size or not _is_sound(ahead, offset, sharing):
                bad += sharing
            length = sharing[0].length
            expected = offset + length + len(pack.padding(length))
        return bad if expected == self.index_offset else list(self.entries)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> PackFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bytes(self, offset: int, length: int) -> bytes:
        read = partial(os.pread, self._descriptor)
        data = read(length, offset)
        while len(data) < length:  # one call reads at most 2 GiB
            more = read(length - len(data), offset + len(data))
            if not more:
                raise StoreCorrupt(f"{self.path} is shorter than it says", hint=_HINT)
            data += more
        return data


class _Ahead:
    """Reads from front to back in large steps, whatever the size of the pieces that are asked for."""

    def __init__(self, read: Callable[[int, int], bytes], end: int) -> None:
        self._read = read
        self._end = end
        self._start = 0
        self._data = memoryview(b"")

    def piece(self, offset: int, length: int) -> memoryview:
        at = offset - self._start
        if at < 0 or at + length > len(self._data):
            self._data = memoryview(self._read(offset, max(length, min(_HASH_STEP, self._end - offset))))
            self._start = offset
            at = 0
        return self._data[at : at + length]


def _is_sound(ahead: _Ahead, offset: int, sharing: list[Entry]) -> bool:
    """Whether a payload, the header before it and the padding behind it are what these records say."""
    first = sharing[0]
    stored = None
    try:
        header = ahead.piece(offset - pack.ENTRY.size, pack.ENTRY.size)
        if first.codec == pack.PLAIN:
            hasher = blake3()
            for start in range(0, first.length, _HASH_STEP):
                hasher.update(ahead.piece(offset + start, min(_HASH_STEP, first.length - start)))
        else:
            stored = bytes(ahead.piece(offset, first.length))
            hasher = blake3(codec.expanded(stored, first.codec, first.size))
        filler = pack.padding(first.length)
        if ahead.piece(offset + first.length, len(filler)) != filler:
            return False
    except StoreCorrupt:
        return False
    digest = hasher.digest()
    # The entry header names the first source that gave this payload.
    return any(header == pack.encode_entry(entry, stored) for entry in sharing) and all(
        entry.digest == digest and entry[2:6] == first[2:6] for entry in sharing
    )

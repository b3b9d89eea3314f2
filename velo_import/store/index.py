# SPDX-License-Identifier: Apache-2.0
"""The blob index on disk: packed blobs found and read without the catalogue, from mapped memory.

For processes that must not open LMDB, and for whoever reads many small blobs. It is a cache of the packs'
own indexes: a digest that it does not know may still be in a newer pack, so a miss means "ask the catalogue".
Its surprise: a pack is opened when its first blob is asked for, and one that is gone is a miss.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from blake3 import blake3

from ..errors import StoreCorrupt, StoreMissing, VeloError
from ..format import blobindex, codec, pack
from ..format.blobindex import Place
from ..host.files import open_quietly, publish, remove_quietly
from .layout import Store
from .packs import open_pack

NAME = "index.velo"


def write_index(store: Store) -> int:
    """Write the index over all sound packs; the number of blobs in it."""
    store.require_writable()
    ids: list[bytes] = []
    places: dict[bytes, Place] = {}
    for path in sorted(store.packs.glob("*/*.pack")):
        with suppress(OSError, StoreCorrupt), open_pack(path) as file:
            number = len(ids)
            ids.append(bytes.fromhex(file.id))
            for digest, _, offset, length, size, how, kind, _ in file.entries:
                places.setdefault(digest, Place(number, how, kind, offset, length, size))
    publish(store.packs / NAME, [blobindex.encode(ids, sorted(places.items()))], mode=0o444)
    return len(places)


def forget_gone(store: Store) -> int:
    """Write the index again without the packs that are gone, if there is an index; how many they were.

    For whoever removed some. What was put elsewhere meanwhile is in a newer pack, which the index does not
    know; a process that has the old one mapped finds the pack gone, and that is a miss as well.
    """
    path = store.packs / NAME
    try:
        with BlobIndex(store) as index:
            gone = index.gone()
            if gone:
                publish(path, index.without(gone), mode=0o444)
            return len(gone)
    except StoreMissing:
        return 0
    except VeloError:  # damaged, or no space for another: a cache that is wrong is worse than none
        remove_quietly(path)
        return 0


class BlobIndex:
    """An open index. For one thread; a context manager.

    Raises:
        StoreMissing: there is no index.
        StoreCorrupt: it is damaged.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        path = store.packs / NAME
        try:
            self._map, size = _mapped(path)
        except (FileNotFoundError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise StoreMissing(f"{path} is not there", hint="`velo rebuild` makes it") from error
        self._view = memoryview(self._map)
        try:
            self.layout = blobindex.decode_header(self._view, size)
        except StoreCorrupt as error:
            self._view.release()
            self._map.close()
            raise StoreCorrupt(f"{path}: {error}", hint="`velo rebuild` makes it again") from error
        self.packs = [ident.hex() for ident in blobindex.pack_ids(self._view, self.layout)]
        self._opened: dict[int, tuple[mmap.mmap, memoryview] | None] = {}

    def find(self, digest: bytes) -> Place | None:
        """Where a blob is, or None when the index does not know it."""
        return blobindex.find(self._view, self.layout, digest)

    def get(self, digest: bytes, *, verify: bool = True) -> memoryview | None:
        """The bytes of a blob, copied only if they are compressed; None for one that is not here, or damaged.

        Without `verify` nothing is hashed: for callers that check the pack's stamp against one they trust.
        """
        place = blobindex.find(self._view, self.layout, digest)
        if place is None:
            return None
        try:
            view = self._pack(place.pack)
        except OSError:
            return None
        if view is None or place.offset + place.length > len(view):
            return None
        data = view[place.offset : place.offset + place.length]
        if place.codec != pack.PLAIN:
            try:
                data = memoryview(codec.expanded(bytes(data), place.codec, place.size))
            except StoreCorrupt:
                return None
        if verify and blake3(data).digest() != digest:
            return None
        return data

    def gone(self) -> set[int]:
        """The numbers of packs that are not there any more."""
        return {number for number, ident in enumerate(self.packs) if not self.store.pack_path(ident).exists()}

    def without(self, gone: set[int]) -> Iterator[bytes]:
        """The bytes of an index that does not know these packs."""
        return blobindex.without(self._view, self.layout, gone)

    def close(self) -> None:
        """Unmap everything; views that were handed out must be released before."""
        for opened in self._opened.values():
            if opened is not None:
                opened[1].release()
                opened[0].close()
        self._opened.clear()
        self._view.release()
        self._map.close()

    def __enter__(self) -> BlobIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pack(self, number: int) -> memoryview | None:
        if number not in self._opened:
            self._opened[number] = None
            with suppress(OSError, ValueError):
                mapped, _ = _mapped(self.store.pack_path(self.packs[number]))
                self._opened[number] = mapped, memoryview(mapped)
        opened = self._opened[number]
        return None if opened is None else opened[1]


def _mapped(path: Path) -> tuple[mmap.mmap, int]:
    """A private file, mapped for reading, and its size; the descriptor is closed."""
    descriptor = open_quietly(path)
    try:
        size = os.fstat(descriptor).st_size
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ), size
    finally:
        os.close(descriptor)

# SPDX-License-Identifier: Apache-2.0
"""Content by digest, wherever it lies, loose or packed, plain or compressed; verified before it is used.

Knows the catalogue and who opens what it names; leaves to its callers what the content is for. Its surprise:
packs stay open while it is, because what is read together usually lies together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from ..errors import StoreCorrupt, StoreMissing
from .blobs import Blobs
from .catalog import LOOSE, Catalog, Location
from .packs import PackFile, open_pack

_OPEN_PACKS = 64  # A descriptor and an index in memory each.
_HINT = "run `velo ingest` again: what is missing is stored again"


class Reader:
    """Reads blobs of one store. For one thread; a context manager."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._blobs = Blobs(catalog.store)
        self._places: dict[bytes, Location] = {}
        self._packs: OrderedDict[bytes, PackFile] = OrderedDict()

    def missing(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the digests that the store does not have; the places of the others are remembered."""
        wanted = set(digests)
        self._places.update(self._catalog.locations(wanted))
        return wanted - self._catalog.has_blobs(wanted)

    def loose_path(self, digest: bytes) -> Path | None:
        """The file that holds this content and nothing else, if there is one; not verified."""
        return self._blobs.path_of(digest) if self._place(digest).where == LOOSE else None

    def size(self, digest: bytes) -> int:
        """How many bytes the content has, as the catalogue says."""
        return self._place(digest).size

    def read(self, digest: bytes) -> bytes:
        """The content, verified.

        Raises:
            StoreMissing: the store does not have it, or has lost it.
            StoreCorrupt: what the store has is something else.
        """
        place = self._place(digest)
        if place.where == LOOSE:
            return self._blobs.read(digest)
        file = self._pack(place.pack_id)
        entry = file.find(digest)
        if entry is None:
            raise StoreCorrupt(f"{file.path} does not hold blob:{digest.hex()}", hint="run `velo rebuild`")
        return file.read(entry)

    def close(self) -> None:
        while self._packs:
            self._packs.popitem()[1].close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _place(self, digest: bytes) -> Location:
        if digest not in self._places:
            self._places.update(self._catalog.locations([digest]))
        if digest not in self._places:
            raise StoreMissing(f"blob:{digest.hex()} is not in the store", hint=_HINT)
        return self._places[digest]

    def _pack(self, pack_id: bytes) -> PackFile:
        file = self._packs.get(pack_id)
        if file is None:
            path = self._catalog.store.pack_path(pack_id.hex())
            try:
                file = self._packs[pack_id] = open_pack(path)
            except FileNotFoundError as error:
                raise StoreMissing(f"{path} has gone", hint=_HINT) from error
            if len(self._packs) > _OPEN_PACKS:
                self._packs.popitem(last=False)[1].close()
        self._packs.move_to_end(pack_id)
        return file

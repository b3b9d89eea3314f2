# SPDX-License-Identifier: Apache-2.0
"""The survey: for everything in the store, which root needs it most; nothing is changed.

Roots get ranks: the lower, the earlier it may go. A pack or blob has the rank of the highest root that needs
it, so that one survey answers what every possible removal of roots would free. Its surprise: no set of all
digests is ever in memory. What roots name, what packs hold and what lies loose meet bucket by bucket.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import NamedTuple

from ..errors import StoreCorrupt
from ..format import pack
from ..format.pack import UnknownFormat
from ..host.files import Stamp
from .buckets import COUNT, Buckets
from .catalog import LOOSE, Catalog, Location
from .layout import Store
from .packs import PackFile, open_pack
from .roots import Root, needs

NOBODY = -1

Progress = Callable[[str, int, int], None]

# What a blob costs in a pack beside its bytes.
_OVERHEAD = pack.ENTRY.size + pack.RECORD.size

# Records in buckets; each begins with the byte that chooses its bucket.
_MARK = Struct("<32sI")  # digest, rank
_PLACE = Struct("<32sIQ")  # digest, number of the pack, bytes there
_KEPT = Struct("<II32s")  # number of the pack, rank, digest
_LOOSE = Struct("<32siQ")  # digest, rank, bytes on disk


class Loose(NamedTuple):
    """A loose blob that may go when all roots up to its rank have gone."""

    digest: bytes
    rank: int
    bytes: int


@dataclass
class Pack:
    """A pack on disk. `bytes` is what it takes there, `payload` what its blobs take. `named` is the highest
    rank that names it; `held` has the payload that is needed from here and from nowhere else, by rank."""

    number: int
    path: Path
    stamp: Stamp
    kind: str
    label: str
    compressed: bool
    entries: int
    payload: int
    bytes: int
    is_young: bool
    named: int = NOBODY
    held: dict[int, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.path.stem

    @property
    def rank(self) -> int:
        return max(self.named, *self.held, NOBODY)

    def unused(self, threshold: int) -> int:
        """The payload that nobody needs from here once the roots below that rank have gone."""
        return self.payload - sum(count for rank, count in self.held.items() if rank >= threshold)


@dataclass
class Amount:
    """Files or blobs, and their bytes."""

    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.count + other.count, self.bytes + other.bytes)


@dataclass
class Demand:
    """What one root needs: of what is in the store, and of that, what nothing else needs."""

    all: Amount = field(default_factory=Amount)
    alone: Amount = field(default_factory=Amount)

    def add(self, size: int, is_alone: bool) -> None:
        self.all.add(size)
        if is_alone:
            self.alone.add(size)


class Survey:
    """What is in the store and who needs it. A context manager, because it holds files without names."""

    def __init__(
        self, store: Store, catalog: Catalog, order: list[Root], *, young_since: float, progress: Progress
    ) -> None:
        """`order` has the roots by rank; what was written after `young_since` (seconds) is young."""
        self.order = order
        self.packs: list[Pack] = []
        self.demands = [Demand() for _ in order]
        self.loose_by_rank: dict[int, Amount] = {}
        self.young_loose_by_rank: dict[int, Amount] = {}
        self.unknown: list[Path] = []  # packs of a later Velo
        self.damaged: list[Path] = []
        self._store = store
        self._catalog = catalog
        self._young_since = young_since
        self._named: dict[str, list[int]] = {}
        self._trusted: dict[int, bool] = {}
        with ExitStack() as stack:
            marks, places, self._kept, self._loose = (
                stack.enter_context(Buckets(store.run)) for _ in range(4)
            )
            self._mark(marks, progress)
            self._list_packs(places, progress)
            for number in range(COUNT):
                progress("compare", number, COUNT)
                self._join(number, marks, places)
            marks.close()
            places.close()
            self._files = stack.pop_all()

    def kept_in(self, number: int, threshold: int) -> set[bytes]:
        """The digests that are needed from that pack, once the roots below the threshold have gone."""
        data = self._kept.take(number % COUNT)
        return {
            digest for place, rank, digest in _KEPT.iter_unpack(data) if place == number and rank >= threshold
        }

    def loose_below(self, threshold: int) -> Iterator[list[Loose]]:
        """The loose blobs that nobody needs once the roots below the threshold have gone, some at a time."""
        for number in range(COUNT):
            loose = map(Loose._make, _LOOSE.iter_unpack(self._loose.take(number)))
            yield [blob for blob in loose if blob.rank < threshold]

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Survey:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what there is -----------------------------------------------------------------------------

    def _mark(self, marks: Buckets, progress: Progress) -> None:
        for rank, root in enumerate(self.order):
            progress("mark", rank, len(self.order))
            tail = rank.to_bytes(4, "little")
            with needs(root) as (packs, steps):
                for raw_id in packs:
                    self._named.setdefault(raw_id.hex(), []).append(rank)
                for step in steps:
                    marks.add(digest + tail for digest in step)

    def _list_packs(self, places: Buckets, progress: Progress) -> None:
        paths = sorted(self._store.packs.glob("*/*.pack"))
        for done, path in enumerate(paths):
            progress("packs", done, len(paths))
            try:
                status = os.stat(path)
                with open_pack(path) as file:
                    self._note_pack(file, status, places)
            except StoreCorrupt as error:
                is_later = isinstance(error.__cause__, UnknownFormat)
                (self.unknown if is_later else self.damaged).append(path)
            except FileNotFoundError:
                continue

    def _note_pack(self, file: PackFile, status: os.stat_result, places: Buckets) -> None:
        ranks = self._named.get(file.id, [])
        number = len(self.packs)
        sizes = {entry.digest: entry.length + _OVERHEAD for entry in file.entries}
        found = Pack(
            number,
            file.path,
            file.stamp,
            file.kind,
            file.label,
            any(entry.codec != pack.PLAIN for entry in file.entries),
            len(file.entries),
            sum(sizes.values()),
            status.st_blocks * 512,
            self._is_young(status),
            max(ranks, default=NOBODY),
        )
        self.packs.append(found)
        for rank in ranks:
            self.demands[rank].add(found.bytes, len(ranks) == 1)
        places.add(_PLACE.pack(digest, number, size) for digest, size in sizes.items())

    def _list_loose(self, number: int) -> dict[bytes, os.stat_result]:
        found = {}
        for folder in self._store.loose.glob(f"{number:02x}/??"):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError, ValueError):  # a name that is no digest is not ours
                        if len(digest := bytes.fromhex(entry.name)) == 32:
                            found[digest] = entry.stat(follow_symlinks=False)
        return found

    def _is_young(self, status: os.stat_result) -> bool:
        return max(status.st_mtime, status.st_ctime) > self._young_since

    # -- who needs it ------------------------------------------------------------------------------

    def _join(self, number: int, marks: Buckets, places: Buckets) -> None:
        """Compare what roots name, what packs hold and what lies loose, for the digests of one bucket."""
        pairs = set(_MARK.iter_unpack(marks.take(number)))
        owners: dict[bytes, tuple[int, bool]] = {}  # highest rank; whether it is the only one
        for digest, rank in pairs:
            highest, _ = owners.get(digest, (NOBODY, True))
            owners[digest] = max(highest, rank), highest == NOBODY
        packed: dict[bytes, list[tuple[int, int]]] = {}
        for digest, place, size in _PLACE.iter_unpack(places.take(number)):
            if digest in owners:
                packed.setdefault(digest, []).append((place, size))
        loose = self._list_loose(number)
        twice = [digest for digest, spots in packed.items() if digest in loose or len(spots) > 1]
        recorded = self._catalog.locations(twice)
        loose_ranks: dict[bytes, int] = {}
        sizes: dict[bytes, int] = {}
        kept: list[bytes] = []
        for digest, (rank, _) in owners.items():
            status = loose.get(digest)
            spots = packed.get(digest, [])
            if len(spots) > (status is None):
                spots = self._chosen(status is not None, spots, recorded.get(digest))
            if status is not None and not spots:
                loose_ranks[digest] = rank
                sizes[digest] = status.st_blocks * 512
            for place, size in spots:
                held = self.packs[place].held
                held[rank] = held.get(rank, 0) + size
                kept.append(_KEPT.pack(place, rank, digest))
                sizes[digest] = size
        self._kept.add(kept)
        for digest, rank in pairs:
            if digest in sizes:
                self.demands[rank].add(sizes[digest], owners[digest][1])
        self._note_loose(loose, loose_ranks)

    def _chosen(
        self, is_loose: bool, spots: list[tuple[int, int]], recorded: Location | None
    ) -> list[tuple[int, int]]:
        """Which of several copies is the one to keep; none of them for the loose one.

        The one that the catalogue names, so that look-ups find it; but a copy in a pack that is not what it
        was is no reason to give another one up, and if there is nothing better, all stay.
        """
        if is_loose and (recorded is None or recorded.where == LOOSE):
            return []
        trusted = [spot for spot in spots if self._is_trusted(spot[0])]
        for spot in trusted:
            if recorded is not None and self.packs[spot[0]].id == recorded.pack_id.hex():
                return [spot]
        return [] if is_loose else trusted[:1] or spots

    def _is_trusted(self, number: int) -> bool:
        if number not in self._trusted:
            self._trusted[number] = self._catalog.pack(self.packs[number].id) is not None
        return self._trusted[number]

    def _note_loose(self, loose: dict[bytes, os.stat_result], ranks: dict[bytes, int]) -> None:
        removable: list[bytes] = []
        for digest, status in loose.items():
            rank = ranks.get(digest, NOBODY)
            size = status.st_blocks * 512
            if self._is_young(status):
                self.young_loose_by_rank.setdefault(rank, Amount()).add(size)
            else:
                self.loose_by_rank.setdefault(rank, Amount()).add(size)
                removable.append(_LOOSE.pack(digest, rank, size))
        self._loose.add(removable)


def total(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())

# SPDX-License-Identifier: Apache-2.0
"""The rows of the catalogue, made again from packs and loose blobs alone.

Knows what each file contributes; the tables are catalog.py's. Its surprise: the packs are read in two rounds.
Digests are random, and rows that arrive in random order cost a database several times what sorted ones do;
so the second round goes through all packs once for each range of digests, and memory stays bounded. Variants
are sorted by another key than the packs have, and pass through buckets.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from ..errors import StoreCorrupt
from ..format import pack
from ..host.files import Stamp, open_quietly, stamp_of
from .buckets import COUNT, Buckets
from .catalog import LOCATION, LOOSE, PACKED, VARIANT, encode_pack_record, record_of, variant_key
from .layout import Store
from .packs import PackFile, open_pack

Rows = list[tuple[bytes, bytes]]
Progress = Callable[[str, int, int], None]

# Held in memory at a time: some 60 MB.
_STEP = 200_000
_NO_STAMP = Stamp(0, 0, 0, 0)
# Source, offset, length, digest, number of the pack.
_VARIANT = Struct("<32sQQ32sI")


class Batch(NamedTuple):
    """Rows for one table, ascending, and all of them behind those of the batches before."""

    table: str
    rows: Rows


class _Index(NamedTuple):
    """Where the index of a pack is, and how many of its records begin with a byte below each value. `build`
    is the end of its variants' keys."""

    path: Path
    stamp: Stamp
    build: bytes
    offset: int
    below: array[int]


def ignore(phase: str, done: int, total: int) -> None:
    """Nobody is watching."""


def batches(store: Store, progress: Progress = ignore) -> Iterator[Batch]:
    """All rows that packs and loose blobs give; `progress` is called with phase, done and total.

    Only the index of each pack is checked. Its record gets no stamp, so that the payloads are verified before
    they are believed.
    """
    indexes: list[_Index] = []
    packs: Rows = []
    paths = sorted(store.packs.glob("*/*.pack"))
    with Buckets(store.run) as variants:
        for number, path in enumerate(paths):
            progress("packs", number, len(paths))
            with suppress(OSError, StoreCorrupt), open_pack(path) as file:
                packs.append((bytes.fromhex(file.id), encode_pack_record(record_of(file, _NO_STAMP))))
                if file.label.startswith(pack.COPIES):
                    continue  # Only the manifests that name it look there.
                if file.kind == "bytecode":
                    variants.add(_variants(file, len(indexes)))
                indexes.append(_index_of(file))
        yield from _variant_batches(variants, indexes)
    yield from _blob_batches(store, indexes, progress)
    yield Batch("packs", packs)


def _batch(table: str, rows: dict[bytes, bytes]) -> Batch:
    # Keys are compared in a third of the time that pairs take.
    return Batch(table, sorted(rows.items(), key=itemgetter(0)))


def _variants(file: PackFile, number: int) -> Iterator[bytes]:
    encode = _VARIANT.pack
    for digest, source, offset, length, _, _, _, _ in file.entries:
        yield encode(source, offset, length, digest, number)


def _variant_batches(variants: Buckets, indexes: list[_Index]) -> Iterator[Batch]:
    ids = [bytes.fromhex(index.path.stem) for index in indexes]
    rows: dict[bytes, bytes] = {}
    for bucket in range(COUNT):
        for source, offset, length, digest, number in _VARIANT.iter_unpack(variants.take(bucket)):
            rows[source + indexes[number].build] = VARIANT.pack(ids[number], offset, length, digest)
        if len(rows) >= _STEP:
            yield _batch("variants", rows)
            rows = {}
    yield _batch("variants", rows)


def _blob_batches(store: Store, indexes: list[_Index], progress: Progress) -> Iterator[Batch]:
    total = sum(index.below[-1] for index in indexes)
    done = 0
    for first, end in _ranges(indexes):
        progress("blobs", done, total)
        rows: dict[bytes, bytes] = {}
        for index in indexes:
            done += index.below[end] - index.below[first]
            with suppress(OSError):
                _add_packed(rows, index, first, end)
        _add_loose(rows, store, first, end)
        yield _batch("blobs", rows)
    progress("blobs", total, total)


def _index_of(file: PackFile) -> _Index:
    counts = [0] * 256
    for digest in map(itemgetter(0), file.entries):
        counts[digest[0]] += 1
    build = variant_key(b"", file.build, file.optimisation)
    return _Index(file.path, file.stamp, build, file.index_offset, array("L", accumulate(counts, initial=0)))


def _ranges(indexes: list[_Index]) -> Iterator[tuple[int, int]]:
    """First bytes of digests, from and to, so that each range has about `_STEP` records."""
    first = size = 0
    for byte in range(256):
        more = sum(index.below[byte + 1] - index.below[byte] for index in indexes)
        if size and size + more > _STEP:
            yield first, byte
            first, size = byte, 0
        size += more
    yield first, 256


def _add_packed(rows: dict[bytes, bytes], index: _Index, first: int, end: int) -> None:
    start, stop = (index.below[byte] * pack.RECORD.size for byte in (first, end))
    if start == stop:
        return
    descriptor = open_quietly(index.path)
    try:
        data = os.pread(descriptor, stop - start, index.offset + start)
        if stamp_of(os.fstat(descriptor)) != index.stamp or len(data) != stop - start:
            return  # It was replaced since its index was checked.
    finally:
        os.close(descriptor)
    pack_id = bytes.fromhex(index.path.stem)
    encode = LOCATION.pack
    for digest, _, offset, length, size, codec, _, _ in pack.RECORD.iter_unpack(data):
        rows[digest] = encode(PACKED, codec, pack_id, offset, length, size)


def _add_loose(rows: dict[bytes, bytes], store: Store, first: int, end: int) -> None:
    for byte in range(first, end):
        for path in (store.loose / f"{byte:02x}").glob("??/*"):
            with suppress(OSError, ValueError):
                if len(digest := bytes.fromhex(path.name)) == 32 and digest[0] == byte:
                    size = path.stat().st_size
                    rows[digest] = LOCATION.pack(LOOSE, pack.PLAIN, bytes(32), 0, size, size)

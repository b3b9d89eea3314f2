# SPDX-License-Identifier: Apache-2.0
"""The catalogue: where each blob, bytecode variant, pack and manifest is (FORMAT.md, section 5).

Knows LMDB and the records in it; the files themselves are packs.py's and blobs.py's. It is a cache: lost or
damaged, it is made again from the packs. No accelerated program ever opens it.
Its surprise: it believes in a pack only while the file's stamp is the recorded one; with another stamp (the
store was copied, restored, tampered with) every payload is verified first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Any, NamedTuple

import lmdb

from ..errors import StoreCorrupt, StoreMissing, VeloError
from ..format import cbor, pack
from ..host.files import Stamp, flush_all, stamp_of
from ..host.filesystems import filesystem_of
from ..host.locks import exclusive
from ..host.processes import without_collector
from .environment import explained, is_whole, open_environment, set_aside
from .layout import Store
from .packs import PackFile, SealedPack, open_pack

FORMAT = b"1"
TABLES = ("about", "blobs", "variants", "packs", "manifests", "distributions", "refs", "verified")
LOOSE, PACKED = 1, 2
# An empty file beside the catalogue, another one whenever it is made again.
MARK = "made"

# Little-endian; the tables are in FORMAT.md, sections 5.1 to 5.4.
LOCATION = Struct("<BB6x32sQQQ")
VARIANT = Struct("<32sQQ32s")
VERIFIED = Struct("<QqqQQ")
assert (LOCATION.size, VARIANT.size, VERIFIED.size) == (64, 80, 40)

_MAP_SIZE = 256 << 20
_LOCK_WAIT = 60.0
_META_PAGES = 2


class Variant(NamedTuple):
    """Where the bytecode of one source is."""

    pack_id: str
    offset: int
    length: int
    digest: bytes


class Location(NamedTuple):
    """Where the content of a blob is. `pack_id` is zero for a loose one."""

    where: int
    codec: int
    pack_id: bytes
    offset: int
    length: int
    size: int


class Verified(NamedTuple):
    """The stamp that a file had when all of it was verified, and when that was in seconds."""

    stamp: Stamp
    when: int


class PackRecord(NamedTuple):
    """What the catalogue knows of a pack."""

    id: str
    kind: str
    label: str
    build: str
    optimisation: int
    bytes: int
    entries: int
    stamp: Stamp


def variant_key(source: bytes, build: str, optimisation: int) -> bytes:
    return source + bytes((optimisation,)) + build.encode()


class Writing:
    """Changes that are collected in memory and committed together. Made by `Catalog.write`."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[bytes, bytes]] = {name: {} for name in TABLES}
        self._gone: dict[str, set[bytes]] = {name: set() for name in TABLES}

    def put_pack(self, sealed: SealedPack) -> None:
        """Record a sealed pack, its payloads and, for bytecode, its variants.

        Of copies the pack alone: others refer to what was copied.
        """
        record = PackRecord(
            sealed.id,
            sealed.kind,
            sealed.label,
            sealed.build,
            sealed.optimisation,
            sealed.stamp.size,
            len(sealed.entries),
            sealed.stamp,
        )
        self._put_pack(record, () if sealed.label.startswith(pack.COPIES) else sealed.entries)

    def put_loose(self, digest: bytes, size: int) -> None:
        self._rows["blobs"][digest] = LOCATION.pack(LOOSE, pack.PLAIN, bytes(32), 0, size, size)

    def put_manifest(self, key: str, record: Mapping[str, Any]) -> None:
        self._rows["manifests"][key.encode()] = cbor.encode(record)

    def put_verified(self, where: int, name: bytes, verified: Verified) -> None:
        """Record that a loose blob (`name` is its digest) or a pack (its id) has been verified."""
        row = VERIFIED.pack(*verified.stamp, verified.when)
        self._rows["verified"][bytes((where,)) + name] = row

    def remove_verified(self, keys: Iterable[tuple[int, bytes]]) -> None:
        """Forget when these were verified."""
        self._gone["verified"].update(bytes((where,)) + name for where, name in keys)

    def remove_pack(self, pack_id: str) -> None:
        """Forget a pack; what is in it has to be put elsewhere or removed as well."""
        raw_id = bytes.fromhex(pack_id)
        self._gone["packs"].add(raw_id)
        self._gone["verified"].add(bytes((PACKED,)) + raw_id)

    def remove_blobs(self, digests: Iterable[bytes]) -> None:
        """Forget where these blobs are."""
        for digest in digests:
            self._gone["blobs"].add(digest)
            self._gone["verified"].add(bytes((LOOSE,)) + digest)

    def remove_variants(self, keys: Iterable[bytes]) -> None:
        """Forget bytecode, by keys as `held_by` gives them."""
        self._gone["variants"].update(keys)

    def remove_manifest(self, key: str) -> None:
        """Forget what was recorded about an environment's manifest."""
        self._gone["manifests"].add(key.encode())

    def _put_pack(self, record: PackRecord, entries: Iterable[pack.Entry]) -> None:
        self.put_record(record)
        pack_id = bytes.fromhex(record.id)
        blobs, variants = self._rows["blobs"], self._rows["variants"]
        tail = variant_key(b"", record.build, record.optimisation)
        for digest, source, offset, length, size, codec, kind, _ in entries:
            blobs[digest] = LOCATION.pack(PACKED, codec, pack_id, offset, length, size)
            if kind == pack.BYTECODE:
                variants[source + tail] = VARIANT.pack(pack_id, offset, length, digest)

    def put_record(self, record: PackRecord) -> None:
        """Record a pack without what is in it."""
        self._rows["packs"][bytes.fromhex(record.id)] = encode_pack_record(record)


class Catalog:
    """An open catalogue. For one thread; never carried over a fork."""

    def __init__(self, store: Store, environment: lmdb.Environment) -> None:
        self.store = store
        self._environment = environment
        self._tables: dict[str, Any] = {}
        self._judged: dict[tuple[str, Stamp], PackRecord | None] = {}

    @classmethod
    def open(cls, store: Store, *, map_size: int = _MAP_SIZE) -> Catalog:
        """Open the catalogue of a store; make it, or make it again from the packs, where that is needed."""
        if filesystem_of(store.home).network:
            raise VeloError(
                f"the store {store.home} is on a network file system ({filesystem_of(store.home).name})",
                hint="set VELO_HOME to a folder on a local disk: a catalogue there would be damaged",
            )
        if store.readonly:
            return cls._open_readonly(store)
        catalog = cls._try(store, map_size)
        if catalog is not None:
            return catalog
        with exclusive(store.run / "catalogue.lock", wait=_LOCK_WAIT):
            # Somebody may have made it while we waited.
            return cls._try(store, map_size) or cls._make(store, map_size, None)

    @classmethod
    def rebuild(cls, store: Store, progress: Callable[[str, int, int], None] | None = None) -> Catalog:
        """Make the catalogue again from packs and loose blobs, whatever is there; the old one is set aside.

        Hold the exclusive lease: what others write to the old catalogue meanwhile would be lost. `progress`
        is called with phase, done and total.
        """
        store.require_writable()
        with exclusive(store.run / "catalogue.lock", wait=_LOCK_WAIT):
            return cls._make(store, _MAP_SIZE, progress)

    @classmethod
    def _make(cls, store: Store, map_size: int, progress: Callable[[str, int, int], None] | None) -> Catalog:
        set_aside(store.catalogue)
        with explained(store.catalogue):
            catalog = cls(store, open_environment(store.catalogue, map_size=map_size))
        try:
            catalog._make_tables()
            with without_collector():
                catalog._fill(progress)
            with explained(store.catalogue):
                (store.catalogue / MARK).touch(mode=0o600)
            # LMDB flushes its file, and never the folder that names it. The store's folder as well: after a
            # power cut the catalogue that was set aside would be back, and know what has since been removed.
            flush_all([store.catalogue, store.home])
        except BaseException:
            catalog.close()
            raise
        return catalog

    def close(self) -> None:
        self._environment.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- writing -----------------------------------------------------------------------------------

    @contextmanager
    def write(self) -> Iterator[Writing]:
        """Collect changes in the block and commit them, durably, at its end; an exception drops them all."""
        self.store.require_writable()
        writing = Writing()
        yield writing
        for record in filter(None, self._judged.values()):
            raw_id = bytes.fromhex(record.id)
            if raw_id not in writing._rows["packs"] and raw_id not in writing._gone["packs"]:
                writing.put_record(record)
        self._commit(writing)
        self._judged.clear()

    def _commit(self, writing: Writing) -> None:
        def work(transaction: lmdb.Transaction) -> None:
            for name, keys in writing._gone.items():
                for key in keys:
                    transaction.delete(key, db=self._tables[name])
            for name, rows in writing._rows.items():
                if rows:
                    self._put(transaction, name, sorted(rows.items()))

        self._transact(work)

    def _put(
        self, transaction: lmdb.Transaction, table: str, rows: list[tuple[bytes, bytes]], behind: bool = False
    ) -> None:
        with transaction.cursor(self._tables[table]) as cursor:
            cursor.putmulti(rows, append=behind)

    def _transact(self, work: Callable[[lmdb.Transaction], None]) -> None:
        """Do the work in one transaction; again with a larger map if it does not fit."""
        with explained(self.store.catalogue):
            while True:
                try:
                    with self._begin(write=True) as transaction:
                        work(transaction)
                    return
                except lmdb.MapFullError:
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    # -- reading -----------------------------------------------------------------------------------

    def variants_of(self, sources: Iterable[bytes], build: str, optimisation: int) -> dict[bytes, Variant]:
        """The bytecode that is there for these sources; what sits in an unusable pack is left out."""
        tail = variant_key(b"", build, optimisation)
        usable: dict[bytes, str] = {}
        found = {}
        for key, value in self._get("variants", [source + tail for source in sources], VARIANT.size):
            pack_id, offset, length, digest = VARIANT.unpack(value)
            name = usable.get(pack_id)
            if name is None:
                name = usable[pack_id] = pack_id.hex() if self._usable(pack_id) else ""
            if name:
                found[key[:32]] = Variant(name, offset, length, digest)
        return found

    def has_blobs(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the digests whose content is in the store."""
        usable: dict[bytes, bool] = {}
        found = set()
        for digest, value in self._get("blobs", digests, LOCATION.size):
            where, _, pack_id, _, _, size = LOCATION.unpack(value)
            if where == LOOSE:
                with suppress(OSError):
                    if os.stat(self.store.loose_path(digest)).st_size == size:
                        found.add(digest)
            elif where == PACKED:
                if pack_id not in usable:
                    usable[pack_id] = self._usable(pack_id) is not None
                if usable[pack_id]:
                    found.add(digest)
        return found

    def sizes(self, at_least: int) -> set[int]:
        """The sizes of the recorded blobs of so many bytes or more: a file of another size is new."""
        with explained(self.store.catalogue), self._begin() as transaction:
            rows = transaction.cursor(self._tables["blobs"]).iternext(keys=False, values=True)
            found = {int.from_bytes(value[-8:], "little") for value in rows}
        return {size for size in found if size >= at_least}

    def locations(self, digests: Iterable[bytes]) -> dict[bytes, Location]:
        """Where these blobs are said to be, without a look at the files."""
        return {
            digest: Location(*LOCATION.unpack(value))
            for digest, value in self._get("blobs", digests, LOCATION.size)
        }

    def digests_with(self, digits: str) -> list[bytes]:
        """The recorded blobs whose digests begin with these hexadecimal digits, ascending; the first 1000."""
        first, last = (bytes.fromhex(digits.ljust(64, end)) for end in "0f")
        with explained(self.store.catalogue), self._begin() as transaction:
            cursor = transaction.cursor(self._tables["blobs"])
            found = cursor.iternext(values=False) if cursor.set_range(first) else ()
            return [bytes(key) for key in takewhile(lambda key: bytes(key) <= last, islice(found, 1000))]

    def held_by(self, pack_id: str) -> tuple[list[bytes], list[bytes]]:
        """The digests of blobs and the keys of variants that are said to be in that pack. Reads every row."""
        raw_id = bytes.fromhex(pack_id)
        with explained(self.store.catalogue), self._begin() as transaction:
            blobs, variants = (transaction.cursor(self._tables[name]) for name in ("blobs", "variants"))
            return (
                [bytes(key) for key, value in blobs if value[8:40] == raw_id],
                [bytes(key) for key, value in variants if value[:32] == raw_id],
            )

    def verified(self) -> dict[tuple[int, bytes], Verified]:
        """Loose blobs (by LOOSE and digest), packs (by PACKED and id) and others that were verified."""
        found = {}
        for key, value in self._rows("verified"):
            if len(value) == VERIFIED.size:
                *stamp, when = VERIFIED.unpack(value)
                found[key[0], key[1:]] = Verified(Stamp(*stamp), when)
        return found

    def pack(self, pack_id: str) -> PackRecord | None:
        """A pack with its present stamp; None when it is unknown, gone or damaged."""
        return self._usable(bytes.fromhex(pack_id))

    def packs(self) -> dict[str, PackRecord]:
        """All recorded packs, whether their files are still there or not."""
        records = (_pack_record(key, value) for key, value in self._rows("packs"))
        return {record.id: record for record in records if record is not None}

    def counts(self) -> dict[str, int]:
        """How many rows each table has."""
        with explained(self.store.catalogue), self._begin() as transaction:
            return {name: transaction.stat(handle)["entries"] for name, handle in self._tables.items()}

    def free_bytes(self) -> tuple[int, int]:
        """How many bytes of the file are free pages, and how many bytes it has."""
        with explained(self.store.catalogue), self._begin() as transaction:
            found = [transaction.stat(handle) for handle in self._tables.values()]
        found.append(self._environment.stat())
        used = sum(each["branch_pages"] + each["leaf_pages"] + each["overflow_pages"] for each in found)
        pages = self._environment.info()["last_pgno"] + 1
        page = found[0]["psize"]
        return (pages - used - _META_PAGES) * page, pages * page

    def copy_to(self, folder: Path) -> None:
        """Write the catalogue, without free pages, into an empty folder. Nothing is flushed."""
        with explained(folder):
            self._environment.copy(os.fsdecode(folder), compact=True)

    def manifests(self) -> dict[str, dict[str, Any]]:
        """What was recorded about each environment's manifest; damaged records are left out."""
        found = {}
        for key, value in self._rows("manifests"):
            with suppress(StoreCorrupt, UnicodeDecodeError):
                found[key.decode()] = cbor.decode(value)
        return found

    def _usable(self, raw_id: bytes) -> PackRecord | None:
        value = next((value for _, value in self._get("packs", [raw_id])), None)
        record = None if value is None else _pack_record(raw_id, value)
        if record is None:
            return None
        try:
            stamp = stamp_of(os.stat(self.store.pack_path(record.id)))
        except OSError:
            return None
        if stamp == record.stamp:
            return record
        if (record.id, stamp) not in self._judged:
            self._judged[record.id, stamp] = self._judge(record)
        return self._judged[record.id, stamp]

    def _judge(self, record: PackRecord) -> PackRecord | None:
        """A pack that is not the file we recorded: all of it is read and verified before it is believed."""
        try:
            with open_pack(self.store.pack_path(record.id)) as file:
                return None if file.damaged() else record_of(file, file.stamp)
        except (OSError, StoreCorrupt):
            return None

    def _get(self, table: str, keys: Iterable[bytes], size: int = 0) -> list[tuple[bytes, bytes]]:
        with explained(self.store.catalogue), self._begin() as transaction:
            get = transaction.get
            handle = self._tables[table]
            pairs = ((key, get(key, db=handle)) for key in keys)
            return [(key, bytes(value)) for key, value in pairs if value and (not size or len(value) == size)]

    def _rows(self, table: str) -> list[tuple[bytes, bytes]]:
        with explained(self.store.catalogue), self._begin() as transaction:
            return [(bytes(key), bytes(value)) for key, value in transaction.cursor(self._tables[table])]

    # -- opening -----------------------------------------------------------------------------------

    @classmethod
    def _open_readonly(cls, store: Store) -> Catalog:
        if not is_whole(store.catalogue):
            raise StoreMissing(
                f"the store {store.home} has no catalogue that can be read", hint="`velo ingest` makes it"
            )
        with explained(store.catalogue):
            catalog = cls(store, open_environment(store.catalogue, readonly=True))
        try:
            catalog._open_tables()
        except BaseException:
            catalog.close()
            raise
        return catalog

    @classmethod
    def _try(cls, store: Store, map_size: int) -> Catalog | None:
        """The catalogue if it is there, whole and complete; None when it has to be made."""
        if not is_whole(store.catalogue):
            return None
        catalog = None
        complete = False
        try:
            with explained(store.catalogue):
                catalog = cls(store, open_environment(store.catalogue, map_size=map_size))
                catalog._environment.reader_check()  # frees the slots of readers that were killed
            catalog._open_tables()
            complete = catalog._get("about", [b"format"]) == [(b"format", FORMAT)]
        except StoreCorrupt:
            pass
        finally:
            if catalog is not None and not complete:
                catalog.close()
        return catalog if complete else None

    def _make_tables(self) -> None:
        # One commit for all of them: each one waits for the disk.
        with explained(self.store.catalogue), self._begin(write=True) as transaction:
            for name in TABLES:
                self._tables[name] = self._environment.open_db(name.encode(), txn=transaction)

    def _open_tables(self) -> None:
        # Not in a transaction of ours: tables opened in one for reading are closed with it.
        with explained(self.store.catalogue):
            for name in TABLES:
                self._tables[name] = self._environment.open_db(name.encode(), create=False)

    def _begin(self, *, write: bool = False) -> lmdb.Transaction:
        try:
            return self._environment.begin(write=write)
        except lmdb.MapResizedError:  # another process made the map grow
            self._environment.set_mapsize(0)
            return self._environment.begin(write=write)

    def _fill(self, progress: Callable[[str, int, int], None] | None) -> None:
        """Fill a new catalogue from the packs and loose blobs; the mark of completeness comes last."""
        from .rebuild import batches, ignore  # It needs the records above.

        for table, rows in batches(self.store, progress or ignore):
            self._transact(partial(self._put, table=table, rows=rows, behind=True))
        mark = Writing()
        mark._rows["about"][b"format"] = FORMAT
        self._commit(mark)


def record_of(file: PackFile, stamp: Stamp) -> PackRecord:
    return PackRecord(
        file.id,
        file.kind,
        file.label,
        file.build,
        file.optimisation,
        file.stamp.size,
        len(file.entries),
        stamp,
    )


def encode_pack_record(record: PackRecord) -> bytes:
    """The row of a pack, without its id."""
    fields = record._asdict()
    del fields["id"]
    return cbor.encode({**fields, "stamp": list(record.stamp)})


def _pack_record(key: bytes, value: bytes) -> PackRecord | None:
    """A row of the table of packs; None when it is damaged."""
    with suppress(StoreCorrupt, TypeError):
        fields = cbor.decode(value)
        record = PackRecord(key.hex(), **{**fields, "stamp": Stamp(*fields.get("stamp", ()))})
        texts = (record.kind, record.label, record.build)
        numbers = (record.optimisation, record.bytes, record.entries, *record.stamp)
        if all(type(text) is str for text in texts) and all(type(number) is int for number in numbers):
            return record
    return None

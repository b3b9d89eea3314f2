# SPDX-License-Identifier: Apache-2.0
"""The catalogue finds what is in the store, believes nothing that is not there, and can be made again."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from tests.support.stores import BUILD, bytecode_pack, digest_of, flip_bit, payload, run, small_disk, source
from velo_import.errors import StoreMissing, VeloError
from velo_import.host.filesystems import named
from velo_import.store import catalog as catalog_module
from velo_import.store import rebuild
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import Catalog, Variant
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack

MANIFEST = {"prefix": "/venv", "build": BUILD, "optimisation": 0, "roots": ["/venv/lib"], "files": 3}
SOURCES = [source(number) for number in range(50)]


@pytest.fixture
def sealed(store: Store) -> SealedPack:
    """A recorded pack of fifty variants."""
    pack = bytecode_pack(store, range(50))
    with Catalog.open(store) as catalog, catalog.write() as changes:
        changes.put_pack(pack)
        changes.put_manifest("cpython-312-venv", MANIFEST)
    return pack


def test_variants_are_found_where_they_are(store: Store, sealed: SealedPack) -> None:
    with Catalog.open(store) as catalog:
        found = catalog.variants_of([*SOURCES, source(99)], BUILD, 0)

    assert set(found) == set(SOURCES)
    data = sealed.path.read_bytes()
    for number in range(50):
        pack_id, offset, length, digest = found[source(number)]
        assert pack_id == sealed.id
        assert data[offset : offset + length] == payload(number)
        assert digest == digest_of(payload(number))


def test_variants_of_another_build_or_level_are_others(store: Store, sealed: SealedPack) -> None:
    with Catalog.open(store) as catalog:
        assert catalog.variants_of(SOURCES, "cpython-313-f30d0d0a", 0) == {}
        assert catalog.variants_of(SOURCES, BUILD, 1) == {}
        assert catalog.variants_of(SOURCES, "", 0) == {}


def test_packs_and_manifests_are_listed(store: Store, sealed: SealedPack) -> None:
    with Catalog.open(store) as catalog:
        record = catalog.packs()[sealed.id]
        assert catalog.pack(sealed.id) == record
        assert (record.label, record.kind, record.entries) == ("demo-1.0", "bytecode", 50)
        assert (record.bytes, record.stamp) == (sealed.path.stat().st_size, sealed.stamp)
        assert catalog.manifests() == {"cpython-312-venv": MANIFEST}
        assert catalog.pack("ab" * 32) is None


def test_bytes_of_the_tables(store: Store, sealed: SealedPack) -> None:
    """FORMAT.md, section 5: keys and values sliced by offset."""
    entry = sealed.entries[3]
    environment = lmdb.open(str(store.catalogue), max_dbs=16, readonly=True)
    with environment.begin() as transaction:

        def get(table: bytes, key: bytes) -> bytes:
            value = transaction.get(key, db=environment.open_db(table, txn=transaction, create=False))
            assert isinstance(value, bytes)
            return value

        assert get(b"about", b"format") == b"1"
        location = get(b"blobs", entry.digest)
        variant = get(b"variants", entry.source + b"\0" + BUILD.encode())
    environment.close()

    assert len(location) == 64
    assert location[0:8] == b"\2\0" + bytes(6)
    assert location[8:40].hex() == sealed.id
    numbers = [int.from_bytes(location[offset : offset + 8], "little") for offset in (40, 48, 56)]
    assert numbers == [entry.offset, entry.length, entry.length]
    assert len(variant) == 80
    assert variant[0:32].hex() == sealed.id
    assert [int.from_bytes(variant[offset : offset + 8], "little") for offset in (32, 40)] == numbers[:2]
    assert variant[48:80] == entry.digest


def test_blobs_are_found_loose_and_packed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"large")
    with PackWriter(store, label="files", kind="content") as writer:
        small = writer.add(b"small").digest
        pack = writer.seal()
    assert pack is not None
    blobs = Blobs(store)
    large = blobs.put_file(tmp_path / "large")
    with Catalog.open(store) as catalog:
        with catalog.write() as changes:
            changes.put_pack(pack)
            changes.put_loose(*large)
        assert catalog.has_blobs([small, large.digest, bytes(32)]) == {small, large.digest}

        blobs.path_of(large.digest).unlink()
        assert catalog.has_blobs([small, large.digest]) == {small}


def test_nothing_is_recorded_when_the_block_fails(store: Store) -> None:
    with Catalog.open(store) as catalog:
        pack = bytecode_pack(store, range(5))
        with pytest.raises(RuntimeError), catalog.write() as changes:
            changes.put_pack(pack)
            raise RuntimeError
        assert catalog.packs() == {}


def test_map_grows_by_itself(store: Store) -> None:
    packs = [bytecode_pack(store, range(n * 500, n * 500 + 500)) for n in range(4)]
    with Catalog.open(store, map_size=64 << 10) as catalog:
        for pack in packs:
            with catalog.write() as changes:
                changes.put_pack(pack)
        assert len(catalog.variants_of(map(source, range(2000)), BUILD, 0)) == 2000


def test_map_that_another_process_made_grow(store: Store) -> None:
    with Catalog.open(store, map_size=256 << 10) as catalog:
        run(
            """
            pack = bytecode_pack(store, range(5000))
            with Catalog.open(store) as catalog, catalog.write() as changes:
                changes.put_pack(pack)
            """,
            store.home,
        )
        assert len(catalog.variants_of(map(source, range(5000)), BUILD, 0)) == 5000


# -- what is not there ------------------------------------------------------------------------------


def test_pack_that_is_gone_takes_its_variants_along(store: Store, sealed: SealedPack) -> None:
    sealed.path.unlink()

    with Catalog.open(store) as catalog:
        assert catalog.variants_of(SOURCES, BUILD, 0) == {}
        assert catalog.has_blobs([sealed.entries[0].digest]) == set()
        assert catalog.pack(sealed.id) is None


def test_damaged_pack_counts_as_missing_and_is_healed(store: Store, sealed: SealedPack) -> None:
    flip_bit(sealed.path, sealed.entries[0].offset)

    with Catalog.open(store) as catalog:
        assert catalog.variants_of(SOURCES, BUILD, 0) == {}
        again = bytecode_pack(store, range(50))
        with catalog.write() as changes:
            changes.put_pack(again)
        assert again.id == sealed.id
        assert len(catalog.variants_of(SOURCES, BUILD, 0)) == 50
        present = catalog.pack(sealed.id)
        assert present is not None
        assert present.stamp == again.stamp


def test_copied_store_is_verified_once_and_works(store: Store, sealed: SealedPack, tmp_path: Path) -> None:
    """A store restored into a CI job has other inodes; nothing has to be compiled again."""
    shutil.copytree(store.home, tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")

    with Catalog.open(copy) as catalog:
        assert len(catalog.variants_of(SOURCES, BUILD, 0)) == 50
        present = catalog.pack(sealed.id)
        assert present is not None
        assert present.stamp.ino == copy.pack_path(sealed.id).stat().st_ino != sealed.stamp.ino
        with catalog.write():
            pass
        assert catalog.packs()[sealed.id] == present


def test_catalogue_can_be_deleted(store: Store, sealed: SealedPack) -> None:
    shutil.rmtree(store.catalogue)

    with Catalog.open(store) as catalog:
        assert len(catalog.variants_of(SOURCES, BUILD, 0)) == 50
        assert catalog.packs()[sealed.id].label == "demo-1.0"


def test_rebuilt_catalogue_knows_loose_blobs_and_skips_strangers(store: Store, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"large")
    blob = Blobs(store).put_file(tmp_path / "large")
    Blobs(store).path_of(blob.digest).with_name("stranger").touch()
    (store.packs / "zz").mkdir()
    (store.packs / "zz" / "nonsense.pack").write_bytes(b"nonsense")
    (store.packs / "zz" / "folder.pack").mkdir()

    with Catalog.open(store) as catalog:
        assert catalog.has_blobs([blob.digest]) == {blob.digest}
        assert catalog.packs() == {}


def test_pack_damaged_before_the_rebuild_is_not_believed(store: Store, sealed: SealedPack) -> None:
    flip_bit(sealed.path, sealed.entries[0].offset)
    shutil.rmtree(store.catalogue)

    with Catalog.open(store) as catalog:
        assert catalog.variants_of(SOURCES, BUILD, 0) == {}


def test_removed_pack_is_not_recorded_again(store: Store, sealed: SealedPack) -> None:
    """After a rebuild every pack is verified at its first use, and that is noted with the next change."""
    with Catalog.rebuild(store) as catalog:
        assert catalog.variants_of([source(1)], BUILD, 0) != {}
        with catalog.write() as changes:
            changes.remove_pack(sealed.id)

        assert catalog.packs() == {}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3 * 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def scribble(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def scribble_behind_the_head(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:8192] + bytes(len(data) - 8192))


def halve_the_meta_page(path: Path) -> None:
    os.truncate(path, 100)


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def lock_becomes_a_folder(path: Path) -> None:
    become_a_folder(path.with_name("lock.mdb"))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        empty,
        scribble,
        scribble_behind_the_head,
        halve_the_meta_page,
        Path.unlink,
        become_a_pipe,
        become_a_folder,
        lock_becomes_a_folder,
    ],
)
def test_damaged_catalogue_is_made_again(
    store: Store, sealed: SealedPack, damage: Callable[[Path], None]
) -> None:
    damage(store.catalogue / "data.mdb")

    with Catalog.open(store) as catalog:
        assert len(catalog.variants_of(SOURCES, BUILD, 0)) == 50
    assert (store.home / "meta.db.damaged").is_dir()
    with Catalog.open(store) as catalog:
        assert len(catalog.packs()) == 1


def test_a_link_that_leads_nowhere_is_no_catalogue(store: Store, sealed: SealedPack) -> None:
    """Somebody moved it to another disk, which has gone."""
    shutil.rmtree(store.catalogue)
    store.catalogue.symlink_to("/no/such/folder")

    with Catalog.open(store) as catalog:
        assert len(catalog.packs()) == 1


def test_catalogue_that_was_never_completed_is_made_again(
    store: Store, sealed: SealedPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it was being filled: the mark of completeness is missing."""
    shutil.rmtree(store.catalogue)

    whole = rebuild.batches

    def killed(store: Store, progress: rebuild.Progress) -> Iterator[rebuild.Batch]:
        yield next(whole(store, progress))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "batches", killed)
        with pytest.raises(KeyboardInterrupt):
            Catalog.open(store)
    with Catalog.open(store) as catalog:
        assert len(catalog.variants_of(SOURCES, BUILD, 0)) == 50


def test_shorter_file_that_is_sound_is_kept(
    store: Store, sealed: SealedPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB need not write the last pages when they are free; the other process that looks finds all well."""
    probe: list[str] = []
    real = subprocess.run

    def watched(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        probe.extend(command[:1])
        return real(command, **options)  # type: ignore[call-overload, no-any-return]

    page = os.pread(fd := os.open(store.catalogue / "data.mdb", os.O_RDWR), 8192, 0)
    for place in (0, 4096):  # a last page number beyond the end of the file
        os.pwrite(
            fd, (int.from_bytes(page[place + 136 :][:8], "little") + 5).to_bytes(8, "little"), place + 136
        )
    os.close(fd)
    monkeypatch.setattr(subprocess, "run", watched)

    with Catalog.open(store) as catalog:
        assert catalog.manifests() == {"cpython-312-venv": MANIFEST}
    assert len(probe) == 1


def test_damaged_rows_count_as_missing(store: Store, sealed: SealedPack) -> None:
    environment = lmdb.open(str(store.catalogue), max_dbs=16)
    tables = {name: environment.open_db(name) for name in (b"blobs", b"variants", b"packs", b"manifests")}
    with environment.begin(write=True) as transaction:
        transaction.put(sealed.entries[0].digest, b"short", db=tables[b"blobs"])
        transaction.put(source(0) + b"\0" + BUILD.encode(), b"short", db=tables[b"variants"])
        transaction.put(b"\1" * 32, b"\xff\xff", db=tables[b"packs"])
        transaction.put(b"\2" * 32, b"\xa1\x65label\x01", db=tables[b"packs"])
        transaction.put(b"\xff\xfe", b"\xa0", db=tables[b"manifests"])
        transaction.put(b"key", b"\x80", db=tables[b"manifests"])
    environment.close()

    with Catalog.open(store) as catalog:
        assert source(0) not in catalog.variants_of(SOURCES, BUILD, 0)
        assert catalog.has_blobs([sealed.entries[0].digest]) == set()
        assert list(catalog.packs()) == [sealed.id]
        assert list(catalog.manifests()) == ["cpython-312-venv"]


# -- where it may be ---------------------------------------------------------------------------------


def test_read_only_store_can_be_read_and_not_written(store: Store, sealed: SealedPack) -> None:
    with Catalog.open(Store.open(store.home, readonly=True)) as catalog:
        assert len(catalog.variants_of(SOURCES, BUILD, 0)) == 50
        with pytest.raises(VeloError, match="reading only"), catalog.write():
            pass


def test_read_only_store_without_a_catalogue(store: Store) -> None:
    with pytest.raises(StoreMissing):
        Catalog.open(Store.open(store.home, readonly=True))
    assert not store.catalogue.exists()


def test_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        store = Store.open(disk / "home", create=True)
        pack = bytecode_pack(store, range(50))
        with Catalog.open(store) as catalog, catalog.write() as changes:
            changes.put_pack(pack)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        with Catalog.open(Store.open(store.home, readonly=True)) as catalog:
            assert len(catalog.variants_of(SOURCES, BUILD, 0)) == 50
        with pytest.raises(VeloError):
            Catalog.open(store)


def test_full_disk_is_explained_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = Store.open(disk / "home", create=True)
        pack = bytecode_pack(store, range(50))
        with Catalog.open(store) as catalog:
            with catalog.write() as changes:
                changes.put_pack(pack)
            with pytest.raises(VeloError) as caught, catalog.write() as changes:
                for number in range(20_000):
                    changes.put_loose(digest_of(b"%d" % number), 1)
            assert caught.value.hint
        with Catalog.open(store) as catalog:
            assert len(catalog.variants_of(SOURCES, BUILD, 0)) == 50


def test_network_file_system_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "filesystem_of", lambda path: named("nfs4"))

    with pytest.raises(VeloError, match=r"network file system \(nfs4\)") as caught:
        Catalog.open(store)
    assert "VELO_HOME" in caught.value.hint


def test_catalogue_is_private(store: Store, sealed: SealedPack) -> None:
    assert stat.S_IMODE(store.catalogue.stat().st_mode) == 0o700
    for path in store.catalogue.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    store = Store.open(tmp_path / os.fsdecode(b"h\xf6me"), create=True)
    pack = bytecode_pack(store, range(5))
    with Catalog.open(store) as catalog:
        with catalog.write() as changes:
            changes.put_pack(pack)
        assert catalog.variants_of([source(1)], BUILD, 0)[source(1)] == Variant(
            pack.id,
            *next(
                (each.offset, each.length, each.digest) for each in pack.entries if each.source == source(1)
            ),
        )

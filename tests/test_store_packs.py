# SPDX-License-Identifier: Apache-2.0
"""Packs and loose blobs on disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.stores import (
    BUILD,
    bytecode_pack,
    digest_of,
    flip_bit,
    payload,
    replace,
    run,
    small_disk,
    source,
    temporaries,
)
from velo_import.errors import StoreCorrupt, StoreMissing, VeloError
from velo_import.format import pack
from velo_import.host.files import Data, copy_shown, stamp_of
from velo_import.store import blobs as blobs_module
from velo_import.store.blobs import Blobs
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, open_pack, seal_all


def test_what_went_in_comes_out(store: Store) -> None:
    sealed = bytecode_pack(store, range(200))

    with open_pack(sealed.path) as file:
        assert (file.kind, file.label, file.build, file.optimisation) == ("bytecode", "demo-1.0", BUILD, 0)
        assert file.id == sealed.id
        assert file.stamp == sealed.stamp == stamp_of(sealed.path.stat())
        assert file.entries == sealed.entries
        assert file.damaged() == []
        for number in range(200):
            entry = file.find(digest_of(payload(number)))
            assert entry is not None
            assert file.read(entry) == payload(number)
        assert file.find(bytes(32)) is None
        assert file.find(b"\xff" * 32) is None


def test_equal_payloads_are_stored_once(store: Store) -> None:
    writer = PackWriter(store, label="x", kind="bytecode", build=BUILD)
    first = writer.add(b"same", source=source(1))
    size = writer.size
    second = writer.add(b"same", source=source(2))

    assert writer.add(b"same", source=source(1)) == first
    assert (second.offset, second.source) == (first.offset, source(2))
    assert writer.size == size
    sealed = writer.seal()
    assert sealed is not None
    assert len(sealed.entries) == 2
    with open_pack(sealed.path) as file:
        assert file.damaged() == []


def test_equal_content_gives_an_equal_id(tmp_path: Path) -> None:
    stores = [Store.open(tmp_path / name, create=True) for name in "ab"]

    assert len({bytecode_pack(store, range(20)).id for store in stores}) == 1


@pytest.mark.parametrize("before", [False, True], ids=["from plain", "from zstd"])
@pytest.mark.parametrize("after", [False, True], ids=["to plain", "to zstd"])
def test_payloads_move_between_packs(store: Store, before: bool, after: bool) -> None:
    """Whether either of them compresses: what comes out is what went in, and damage does not travel."""
    texts = [b"line %d of a source\n" % number * 30 for number in range(9)]
    old = PackWriter(store, label="old", kind="content", compress=before)
    for text in texts:
        old.add(text)
    first = old.seal()
    assert first is not None
    with open_pack(first.path) as file, PackWriter(store, label="new", kind="content", compress=after) as new:
        for entry in file.entries:
            new.copy(file, entry)
        second = new.seal()
    assert second is not None

    with open_pack(second.path) as file:
        assert file.damaged() == []
        assert {entry.codec for entry in file.entries} == {pack.ZSTD if after else pack.PLAIN}
        assert sorted(map(file.read, file.entries)) == sorted(texts)
    flip_bit(second.path, second.entries[0].offset + 1)
    with (
        open_pack(second.path) as file,
        PackWriter(store, label="third", kind="content", compress=before) as third,
        pytest.raises(StoreCorrupt),
    ):
        third.copy(file, second.entries[0])


def test_sealing_again_keeps_the_file_that_manifests_refer_to(store: Store) -> None:
    first = bytecode_pack(store, range(20))
    second = bytecode_pack(store, range(20))

    assert second == first
    assert temporaries(store.home) == []


def test_sealing_again_heals_a_damaged_pack(store: Store) -> None:
    first = bytecode_pack(store, range(20))
    flip_bit(first.path, 200)

    second = bytecode_pack(store, range(20))

    assert second.id == first.id
    with open_pack(second.path) as file:
        assert file.damaged() == []


def test_sealed_pack_cannot_be_written_by_accident(store: Store) -> None:
    assert stat.S_IMODE(bytecode_pack(store, range(2)).path.stat().st_mode) == 0o444


def test_empty_pack_is_none_and_leaves_nothing(store: Store) -> None:
    assert PackWriter(store, label="x", kind="content").seal() is None
    assert list(store.packs.iterdir()) == []


def test_abandoned_pack_leaves_nothing(store: Store) -> None:
    with PackWriter(store, label="x", kind="content") as writer:
        writer.add(os.urandom(1 << 20))
        (temporary,) = temporaries(store.home)
        # Ours to append to, and nobody's to read before it is sealed.
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    assert temporaries(store.home) == []


def test_many_packs_at_once_need_no_descriptors(store: Store) -> None:
    """A thousand distributions, and a limit of 256 open files as on many machines."""
    code = """
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    writers = [PackWriter(store, label=str(n), kind="content") for n in range(300)]
    for n, writer in enumerate(writers):
        writer.add(b"%d" % n * 100_000)
    print(len(seal_all(writers)))
    """
    assert run(code, store.home) == "300\n"
    assert len(list(store.packs.glob("*/*.pack"))) == 300


def test_big_payloads_do_not_stay_in_memory(store: Store) -> None:
    code = """
    writer = PackWriter(store, label="big", kind="content")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(40):
        writer.add(n.to_bytes(2, "big") * (1 << 20))
    writer.seal()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    assert int(run(code, store.home)) < 30_000  # KiB, for 80 MiB of payloads


def test_failed_flush_seals_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="injected"):
        bytecode_pack(store, range(9))

    assert list(store.packs.rglob("*.pack")) == []
    assert temporaries(store.home) == []


@pytest.mark.parametrize("limit", [0, 100, 50_000, 300_000, 600_000])
def test_file_size_limit_is_explained_and_leaves_nothing(store: Store, limit: int) -> None:
    code = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    writers = [PackWriter(store, label=str(n), kind="content") for n in range(2)]
    try:
        for writer in writers:
            for n in range(10):
                writer.add(os.urandom(70_000))
        seal_all(writers)
    except VeloError as error:
        for writer in writers:
            writer.abandon()
        print(error, "|", error.hint)
    """
    message = run(code, store.home, str(limit))
    assert "file too large" in message
    assert "ulimit" in message
    assert list(store.packs.rglob("*.pack")) == []
    assert temporaries(store.home) == []


def test_full_disk_is_explained_and_keeps_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = Store.open(disk / "home", create=True)
        good = bytecode_pack(store, range(50))
        with (
            pytest.raises(VeloError, match="no space left"),
            PackWriter(store, label="big", kind="content") as writer,
        ):
            for _ in range(40):
                writer.add(os.urandom(100_000))

        assert temporaries(store.home) == []
        with open_pack(good.path) as file:
            assert file.damaged() == []


def test_pack_cut_short_while_open_is_an_error_and_no_signal(store: Store) -> None:
    sealed = bytecode_pack(store, range(200))
    with open_pack(sealed.path) as file:
        sealed.path.chmod(0o600)
        os.truncate(sealed.path, 100)
        with pytest.raises(StoreCorrupt, match="shorter"):
            file.read(max(sealed.entries, key=lambda entry: entry.length))
        assert set(file.damaged()) == set(sealed.entries)


def test_damaged_payload_is_named(store: Store) -> None:
    sealed = bytecode_pack(store, range(200))
    victim = sealed.entries[7]
    flip_bit(sealed.path, victim.offset)

    with open_pack(sealed.path) as file:
        assert [entry.digest for entry in file.damaged()] == [victim.digest]
        with pytest.raises(StoreCorrupt):
            file.read(victim)


def test_read_only_store_refuses_writers(store: Store) -> None:
    reader = Store.open(store.home, readonly=True)

    with pytest.raises(VeloError, match="reading only"):
        PackWriter(reader, label="x", kind="content")
    with pytest.raises(VeloError, match="reading only"):
        Blobs(reader).put_files([])


def test_sealing_nothing(store: Store) -> None:
    assert seal_all([]) == []


# -- loose blobs ------------------------------------------------------------------------------------


def test_loose_blob_is_a_copy_with_a_mode_of_its_own(store: Store, tmp_path: Path) -> None:
    original = tmp_path / "lib.so"
    original.write_bytes(b"native" * 1000)
    original.chmod(0o755)
    before = original.stat()

    blob = Blobs(store).put_file(original)

    place = Blobs(store).path_of(blob.digest)
    assert blob == (digest_of(b"native" * 1000), 6000)
    assert place.read_bytes() == b"native" * 1000
    assert stat.S_IMODE(place.stat().st_mode) == 0o444
    assert place.stat().st_ino != before.st_ino
    after = original.stat()
    assert (after.st_mode, after.st_nlink, after.st_ctime_ns) == (
        before.st_mode,
        before.st_nlink,
        before.st_ctime_ns,
    )
    assert place.parts[-3:] == (blob.digest.hex()[:2], blob.digest.hex()[2:4], blob.digest.hex())


def test_equal_files_are_one_blob(store: Store, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"same")
    blobs = Blobs(store)

    assert len(set(blobs.put_files(tmp_path / name for name in "abc"))) == 1
    inode = blobs.path_of(digest_of(b"same")).stat().st_ino
    blobs.put_file(tmp_path / "a")
    assert blobs.path_of(digest_of(b"same")).stat().st_ino == inode
    assert temporaries(store.home) == []


def test_damaged_blob_is_refused_and_then_healed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    blobs = Blobs(store)
    digest = blobs.put_file(tmp_path / "file").digest
    replace(blobs.path_of(digest), b"cONTENT")

    with pytest.raises(StoreCorrupt):
        blobs.read(digest)
    blobs.put_file(tmp_path / "file")
    assert blobs.read(digest) == b"content"


def test_missing_blob(store: Store) -> None:
    with pytest.raises(StoreMissing):
        Blobs(store).read(bytes(32))


def test_name_is_that_of_the_stored_bytes_when_the_source_changes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def copy_then_change(source: int, target: int, show: Callable[[Data], object]) -> int:
        result = copy_shown(source, target, show)
        path.write_bytes(b"changed meanwhile")
        return result

    monkeypatch.setattr(blobs_module, "clone", lambda source, target: False)
    monkeypatch.setattr(blobs_module, "copy_shown", copy_then_change)
    blobs = Blobs(store)

    assert blobs.read(blobs.put_file(path).digest) == b"old"


def test_special_files_are_refused(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(VeloError, match="no regular file"):
        Blobs(store).put_file(tmp_path / "pipe")
    assert temporaries(store.home) == []


def test_one_bad_file_in_a_batch_leaves_no_temporary_files(store: Store, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"x")

    with pytest.raises(FileNotFoundError):
        Blobs(store).put_files([tmp_path / "good", tmp_path / "missing"])
    assert temporaries(store.home) == []

# SPDX-License-Identifier: Apache-2.0
"""Reading files into the store: each under the name of what was stored, though somebody is writing."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from tests.support.stores import temporaries
from velo_import.errors import VeloError
from velo_import.format.manifest import siphash
from velo_import.format.pack import PLAIN, ZSTD
from velo_import.ingest import content
from velo_import.ingest.content import LOOSE_FROM, SHORT, Contents, read_contents, read_whole
from velo_import.ingest.plan import Unread
from velo_import.ingest.scan import list_folder
from velo_import.store.blobs import Blob, Blobs, Staged, identify
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import open_pack

LARGE = LOOSE_FROM + 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def take(folder: Path, store: Store) -> Callable[..., Contents]:
    """Read every file of the folder into the store."""

    def read(is_source: bool = False) -> Contents:
        unread = [
            Unread(f"{folder}/{entry.name}", entry, True, is_source)
            for entry in list_folder(str(folder)).files
        ]
        with Catalog.open(store) as catalog:
            contents = read_contents(
                unread, store, catalog, label="test", threads=2, advance=lambda count: None
            )
            with catalog.write() as writing:
                for pack in contents.packs:
                    writing.put_pack(pack)
                for blob in contents.loose:
                    writing.put_loose(blob.digest, blob.size)
        return contents

    return read


@pytest.fixture
def take_source(take: Callable[..., Contents]) -> Callable[[], Contents]:
    """Read every file of the folder as a module's source."""
    return lambda: take(is_source=True)


def digest(path: Path) -> bytes:
    return blake3(path.read_bytes()).digest()


def is_stored(store: Store, name: bytes) -> bool:
    with Catalog.open(store) as catalog:
        return name in catalog.has_blobs([name])


def after(
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    path: Path,
    times: int,
    change: Callable[[], object],
) -> None:
    """Let something happen each time after a file was read by that function, so many times."""
    real = getattr(place, name)
    left = [times]

    def read(*given: Any) -> object:
        found = real(*given)
        if left[0] > 0 and os.readlink(f"/proc/self/fd/{given[-1]}") == str(path):
            left[0] -= 1
            change()
        return found

    monkeypatch.setattr(place, name, read)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is copied into the store as a file of its own."""
    made: list[int] = []
    real = Blobs.stage

    def stage(self: Blobs, file: int) -> Staged:
        made.append(os.fstat(file).st_size)
        return real(self, file)

    monkeypatch.setattr(Blobs, "stage", stage)
    return made


@pytest.mark.parametrize("size", [0, 1, SHORT - 1, SHORT, SHORT + 1, 3 * SHORT, LARGE])
def test_files_of_every_size_are_read_whole(folder, size):
    (folder / "a").write_bytes(os.urandom(size))

    with open(folder / "a", "rb", buffering=0) as file:
        assert read_whole(file.fileno()) == (folder / "a").read_bytes()
    with open(folder / "a", "rb", buffering=0) as file:
        assert identify(file.fileno()) == Blob(digest(folder / "a"), size)


def test_short_reads_are_continued(folder, monkeypatch):
    """A network file system may give less than was asked for."""
    (folder / "a").write_bytes(b"some text")
    real = os.read
    monkeypatch.setattr(content.os, "read", lambda descriptor, count: real(descriptor, min(count, 4)))

    with open(folder / "a", "rb", buffering=0) as file:
        assert read_whole(file.fileno()) == b"some text"


def test_small_and_large_files_are_stored_under_the_name_of_what_was_stored(folder, store, take):
    (folder / "small").write_bytes(b"small")
    (folder / "large").write_bytes(b"l" * LARGE)

    contents = take()

    assert {path: read.digest for path, read in contents.read.items()} == {
        str(folder / name): digest(folder / name) for name in ("small", "large")
    }
    assert is_stored(store, digest(folder / "small")) and is_stored(store, digest(folder / "large"))
    assert contents.new_blobs == 2 and contents.new_bytes == 5 + LARGE


def test_small_files_are_compressed_where_that_pays(folder, store, take, monkeypatch):
    """In the order of the folder, however many batches are on their way: equal trees give equal packs."""
    monkeypatch.setattr(content, "BATCH_FILES", 3)
    texts = [b"def answer():\n    return %d\n" % number * 40 for number in range(20)]
    noise = os.urandom(5000)
    for number, data in enumerate([*texts, noise]):
        (folder / f"{number:02}.py").write_bytes(data)
    (folder / "library.so").write_bytes(texts[0] * 1000)

    (packed,) = take().packs

    codecs = {entry.digest: entry.codec for entry in packed.entries}
    assert [codecs[blake3(text).digest()] for text in texts] == [ZSTD] * len(texts)
    assert codecs[blake3(noise).digest()] == PLAIN
    with open_pack(packed.path) as file:
        in_order = [file.read(entry) for entry in sorted(file.entries, key=lambda entry: entry.offset)]
    assert in_order == [*texts, noise]
    assert Blobs(store).read(blake3(texts[0] * 1000).digest()) == texts[0] * 1000, "it may be mapped"


def test_a_new_large_file_is_read_once(folder, take, monkeypatch):
    (folder / "large").write_bytes(os.urandom(3 << 20))
    read: list[int] = []
    real = os.pread

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        data = real(descriptor, count, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", pread)
    take()

    assert sum(read) == 3 << 20


def test_what_the_store_has_is_not_copied_again(folder, take, copies):
    (folder / "large").write_bytes(b"l" * LARGE)
    take()
    (folder / "twin").write_bytes(b"l" * LARGE)

    again = take()

    assert copies == [LARGE]
    assert again.new_blobs == 0 and again.loose == []
    assert set(again.read) == {str(folder / "large"), str(folder / "twin")}


def test_another_file_of_the_same_size_is_stored_too(folder, store, take):
    (folder / "one").write_bytes(b"1" * LARGE)
    take()
    (folder / "two").write_bytes(b"2" * LARGE)
    (folder / "three").write_bytes(b"2" * LARGE)

    again = take()

    assert again.new_blobs == 1 and is_stored(store, digest(folder / "two"))


def test_a_large_file_that_changes_while_it_is_copied_is_copied_again(folder, store, take, monkeypatch):
    path = folder / "large"
    path.write_bytes(b"a" * LARGE)
    after(monkeypatch, Blobs, "stage", path, 1, lambda: path.write_bytes(b"b" * LARGE))

    contents = take()

    assert contents.changed == []
    read = contents.read[str(path)]
    status = path.stat()
    assert read.digest == digest(path) and is_stored(store, read.digest)
    assert (read.entry.mtime_ns, read.entry.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)
    assert temporaries(store.home) == []


def test_a_large_file_that_changes_again_and_again_is_reported(folder, store, take, monkeypatch):
    path = folder / "large"
    path.write_bytes(b"a" * LARGE)
    (folder / "calm").write_bytes(b"c" * LARGE)
    most: list[int] = []

    def change() -> None:
        most.append(len(temporaries(store.home)))
        path.write_bytes(str(time.time_ns()).encode() * LOOSE_FROM)

    after(monkeypatch, Blobs, "stage", path, 99, change)

    contents = take()

    assert contents.changed == [str(path)] and set(contents.read) == {str(folder / "calm")}
    assert contents.loose == [Blob(digest(folder / "calm"), LARGE)]
    assert len(most) > 1 and max(most) <= 2  # One copy of each file at a time.
    assert temporaries(store.home) == []


def test_equal_files_do_not_lose_their_content_with_the_one_that_changes(folder, store, take, monkeypatch):
    """The store has a blob of their size, so they are hashed; then one of them changes, another one goes."""
    (folder / "known").write_bytes(b"known" * LOOSE_FROM)
    take()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(b"same!" * LOOSE_FROM)
    after(monkeypatch, content, "identify", folder / "a", 1, lambda: (folder / "a").write_bytes(b"x" * LARGE))
    after(monkeypatch, content, "identify", folder / "c", 1, (folder / "c").unlink)

    contents = take()

    assert contents.changed == [str(folder / "c")]
    for name in ("a", "b"):
        read = contents.read[str(folder / name)]
        assert read.digest == digest(folder / name) and is_stored(store, read.digest)
    assert str(folder / "c") not in contents.read


def test_a_large_source_is_stored_as_the_text_that_was_read(folder, store, take_source, monkeypatch):
    path = folder / "large.py"
    path.write_bytes(b"x = 1\n" * LOOSE_FROM)

    contents = take_source()

    read = contents.read[str(path)]
    assert (read.digest, read.source_check) == (digest(path), siphash(path.read_bytes()))
    assert is_stored(store, read.digest)


def test_a_large_source_that_changes_before_it_is_copied_is_reported(folder, take_source, monkeypatch):
    """Its bytecode would be that of the old text."""
    path = folder / "large.py"
    path.write_bytes(b"x = 1\n" * LOOSE_FROM)
    real = content.siphash

    def check_then_change(data: bytes) -> int:
        path.write_bytes(b"x = 2\n" * LOOSE_FROM)
        return real(data)

    monkeypatch.setattr(content, "siphash", check_then_change)

    contents = take_source()

    assert contents.changed == [str(path)] and contents.read == {}


def test_a_full_disk_ends_it_and_leaves_nothing(folder, store, take, monkeypatch):
    for number in range(5):
        (folder / str(number)).write_bytes(bytes([number]) * LARGE)
    real = os.write

    def write(descriptor: int, data: memoryview) -> int:
        if len(data) > 4096:
            raise OSError(errno.ENOSPC, "no space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(VeloError, match="no space left"):
        take()

    assert temporaries(store.home) == []


def sparse(path: Path, size: int, parts: dict[int, bytes]) -> None:
    with open(path, "wb") as file:
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
        file.truncate(size)
        os.fsync(file.fileno())  # Until then some file systems have no holes.
    if path.stat().st_blocks * 512 >= size:
        pytest.skip("this file system keeps no holes")


def test_a_sparse_file_keeps_its_holes(folder, store, take):
    path = folder / "disk.img"
    sparse(path, 64 << 20, {1 << 20: b"begin", 40 << 20: b"middle"})

    contents = take()

    (blob,) = contents.loose
    assert blob == Blob(digest(path), 64 << 20)
    copy = store.loose_path(blob.digest)
    assert copy.read_bytes() == path.read_bytes()
    assert copy.stat().st_blocks * 512 < 1 << 20


def test_five_gigabytes_of_nothing_are_stored_in_seconds(folder, store, take):
    path = folder / "disk.img"
    sparse(path, 5 << 30, {1 << 30: b"something"})
    used = time.process_time()

    contents = take()

    (blob,) = contents.loose
    copy = store.loose_path(blob.digest).stat()
    assert copy.st_size == 5 << 30 and copy.st_blocks * 512 < 1 << 20
    assert time.process_time() - used < 60  # Some 4 s; a machine may be slow, but not that slow.

# SPDX-License-Identifier: Apache-2.0
"""Reading files into the store: each under the name of what was stored, though somebody is writing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from velo_import.ingest import content
from velo_import.ingest.content import (
    ATTEMPTS,
    LOOSE_FROM,
    SHORT,
    Contents,
    hash_whole,
    read_contents,
    read_whole,
)
from velo_import.ingest.plan import Unread
from velo_import.ingest.scan import list_folder
from velo_import.store.blobs import Blob, Blobs
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store

LARGE = LOOSE_FROM + 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def take(folder: Path, store: Store) -> Callable[[], Contents]:
    """Read every file of the folder into the store."""

    def read() -> Contents:
        unread = [
            Unread(f"{folder}/{entry.name}", entry, True, False) for entry in list_folder(str(folder)).files
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


def digest(path: Path) -> bytes:
    return blake3(path.read_bytes()).digest()


def is_stored(store: Store, name: bytes) -> bool:
    with Catalog.open(store) as catalog:
        return name in catalog.has_blobs([name])


def changing(monkeypatch: pytest.MonkeyPatch, path: Path, times: int, change: Callable[[], object]) -> None:
    """Let a file change after it was hashed and before it is copied, so many times."""
    real = Blobs.put_files
    left = [times]

    def put_files(self: Blobs, sources: list[Path]) -> list[Blob]:
        if path in sources and left[0] > 0:
            left[0] -= 1
            change()
        return real(self, sources)

    monkeypatch.setattr(Blobs, "put_files", put_files)


@pytest.mark.parametrize("size", [0, 1, SHORT - 1, SHORT, SHORT + 1, 3 * SHORT, LARGE])
def test_files_of_every_size_are_read_whole(folder, size):
    (folder / "a").write_bytes(os.urandom(size))

    with open(folder / "a", "rb", buffering=0) as file:
        assert read_whole(file.fileno()) == (folder / "a").read_bytes()
    with open(folder / "a", "rb", buffering=0) as file:
        assert hash_whole(file.fileno()) == digest(folder / "a")


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


def test_a_large_file_that_changes_before_it_is_copied_is_looked_at_again(folder, store, take, monkeypatch):
    path = folder / "large"
    path.write_bytes(b"a" * LARGE)
    changing(monkeypatch, path, 1, lambda: path.write_bytes(b"b" * LARGE))

    contents = take()

    assert contents.changed == []
    read = contents.read[str(path)]
    status = path.stat()
    assert read.digest == digest(path) and is_stored(store, read.digest)
    assert (read.entry.mtime_ns, read.entry.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)


def test_a_large_file_that_changes_again_and_again_is_reported(folder, store, take, monkeypatch):
    path = folder / "large"
    path.write_bytes(b"a" * LARGE)
    changing(
        monkeypatch, path, 2 * ATTEMPTS, lambda: path.write_bytes(str(time.time_ns()).encode() * LOOSE_FROM)
    )

    contents = take()

    assert contents.changed == [str(path)] and contents.read == {}
    assert all(Blobs(store).read(blob.digest) for blob in contents.loose)


def test_a_large_file_that_goes_before_it_is_copied_is_reported(folder, take, monkeypatch):
    (folder / "calm").write_bytes(b"c" * LARGE)
    path = folder / "large"
    path.write_bytes(b"a" * LARGE)
    changing(monkeypatch, path, 1, path.unlink)

    contents = take()

    assert contents.changed == [str(path)]
    assert set(contents.read) == {str(folder / "calm")}


def test_equal_files_do_not_lose_their_content_with_the_one_that_changes(folder, store, take, monkeypatch):
    """One of them is copied for both; it is the one that changes."""
    for name in ("a", "b"):
        (folder / name).write_bytes(b"same" * LOOSE_FROM)
    changing(monkeypatch, folder / "a", 1, lambda: (folder / "a").write_bytes(b"x" * LARGE))

    contents = take()

    assert contents.changed == []
    for name in ("a", "b"):
        read = contents.read[str(folder / name)]
        assert read.digest == digest(folder / name) and is_stored(store, read.digest)


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

# SPDX-License-Identifier: Apache-2.0
"""Publishing, reading, private folders, copies."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stores import small_disk, temporaries
from velo_import.errors import VeloError
from velo_import.host import files
from velo_import.host.files import (
    clone_or_copy,
    private_folder,
    publish,
    publish_many,
    read_file,
    stamp_of,
    write_all,
)


def test_published_file_has_content_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "er" / "file"

    publish(place, [b"one ", memoryview(b"two"), bytearray(b"!")], mode=0o444)

    assert place.read_bytes() == b"one two!"
    assert stat.S_IMODE(place.stat().st_mode) == 0o444
    assert os.listdir(place.parent) == ["file"]


def test_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        publish(tmp_path / "file", [b"x"], mode=0o644)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_old_content_stays_when_the_producer_fails(tmp_path: Path) -> None:
    place = tmp_path / "file"
    publish(place, [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("producer")

    with pytest.raises(RuntimeError, match="producer"):
        publish(place, broken())

    assert place.read_bytes() == b"old"
    assert temporaries(tmp_path) == []


def test_open_file_keeps_its_content_while_a_new_one_is_published(tmp_path: Path) -> None:
    """A running program that mapped the old manifest never sees the new one in it."""
    place = tmp_path / "file"
    publish(place, [b"old"])

    with open(place, "rb") as reader:
        publish(place, [b"new"])
        assert reader.read() == b"old"
    assert place.read_bytes() == b"new"


def test_one_failure_in_a_batch_publishes_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), publish_many() as batch:
        batch.add(tmp_path / "a" / "one", [b"1"])
        batch.add(tmp_path / "b" / "two", [b"2"])
        raise RuntimeError

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_file_is_flushed_before_its_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this order a power cut leaves a name with zero bytes behind, or no name at all."""
    events = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        events.append(("flush", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real_fsync(descriptor)

    def rename(old: Path, new: Path) -> None:
        events.append(("rename", new.name))
        real_rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    place = tmp_path / "new" / "file"
    publish(place, [b"x"])

    renamed = events.index(("rename", "file"))
    assert [name[:5] for kind, name in events[:renamed] if kind == "flush"].count(".tmp-") == 1
    assert ("flush", "new") in events[renamed:]
    assert ("flush", tmp_path.name) in events  # It names the new folder.


def test_failed_flush_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="injected"):
        publish(tmp_path / "file", [b"x"])

    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        with pytest.raises(VeloError, match="no space left") as caught:
            publish(disk / "file", [bytes(1 << 20)])

        assert "VELO_HOME" in caught.value.hint
        assert list(disk.iterdir()) == []


def test_writing_loops_until_all_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    written = bytearray()

    def write(descriptor: int, data: memoryview) -> int:
        written.extend(data[:3])
        return min(3, len(data))

    monkeypatch.setattr(os, "write", write)
    write_all(0, memoryview(b"a longer text"))

    assert written == b"a longer text"


def test_access_time_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(10**18, 2 * 10**18))

    assert read_file(path) == b"content"
    assert path.stat().st_atime_ns == 10**18


def test_reading_a_pipe_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert read_file(tmp_path / "pipe") == b""


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"n\xff\xfeme")
    publish(place, [b"x"])

    assert read_file(place) == b"x"


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_copy_has_the_same_content(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)

    with open(tmp_path / "source", "rb") as source, open(tmp_path / "copy", "wb") as copy:
        clone_or_copy(source.fileno(), copy.fileno())

    assert (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "copy").stat().st_ino != (tmp_path / "source").stat().st_ino


PARTS = [(), (0,), (5 << 20,), (0, 3 << 20), (1, (2 << 20) + 7, (6 << 20) - 3)]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("size", [6 << 20, (6 << 20) + 1])
def test_content_with_holes_comes_whole_and_in_order(
    tmp_path: Path, parts: tuple[int, ...], size: int
) -> None:
    """Data at the beginning, in the middle, at the end, or nowhere."""
    source = with_holes(tmp_path / "source", size, parts)

    with open(source, "rb") as file:
        found = list(files.pieces(file.fileno()))

    assert b"".join(piece for piece, _ in found) == source.read_bytes()
    assert not any(bytes(piece).strip(b"\0") for piece, is_hole in found if is_hole)
    assert max(len(piece) for piece, _ in found) <= 1 << 20


@pytest.mark.parametrize("parts", PARTS)
def test_copies_keep_their_holes(tmp_path: Path, parts: tuple[int, ...]) -> None:
    source = with_holes(tmp_path / "source", 6 << 20, parts)
    shown = []

    with open(source, "rb") as old, open(tmp_path / "one", "wb") as one, open(tmp_path / "two", "wb") as two:
        assert files.copy_shown(old.fileno(), one.fileno(), lambda data: shown.append(bytes(data))) == 6 << 20
        clone_or_copy(old.fileno(), two.fileno())
        for file in (one, two):
            os.fsync(file.fileno())

    assert b"".join(shown) == source.read_bytes()
    for name in ("one", "two"):
        assert (tmp_path / name).read_bytes() == source.read_bytes()
        assert (tmp_path / name).stat().st_blocks <= source.stat().st_blocks + 64


def test_holes_are_read_where_the_file_system_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = with_holes(tmp_path / "source", 6 << 20, (3 << 20,))

    def lseek(descriptor: int, offset: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(os, "lseek", lseek)
    with open(source, "rb", buffering=0) as file:
        found = list(files.pieces(file.fileno()))

    assert b"".join(piece for piece, _ in found) == source.read_bytes()
    assert not any(is_hole for _, is_hole in found)


def test_a_file_that_is_cut_or_grows_while_it_is_read_ends_where_it_ends(tmp_path: Path) -> None:
    source = with_holes(tmp_path / "source", 6 << 20, (0, 5 << 20))
    with open(source, "rb") as file:
        reading = files.pieces(file.fileno())
        next(reading)
        os.truncate(source, 1 << 20)
        assert sum(len(piece) for piece, is_hole in reading if not is_hole) <= 1 << 20

    source = with_holes(tmp_path / "other", 6 << 20, (0,))
    with open(source, "rb") as file, open(source, "ab") as more:
        reading = files.pieces(file.fileno())
        first, _ = next(reading)
        more.write(b"more")
        more.flush()
        assert first + b"".join(piece for piece, _ in reading) == source.read_bytes()


def with_holes(path: Path, size: int, parts: tuple[int, ...]) -> Path:
    with open(path, "wb") as file:
        for offset in parts:
            file.seek(offset)
            file.write(b"data")
        file.truncate(size)
        os.fsync(file.fileno())  # until then some file systems have no holes
    if path.stat().st_blocks * 512 >= size:
        pytest.skip("this file system keeps no holes")
    return path


def test_copy_where_the_kernel_can_only_read(tmp_path: Path) -> None:
    """procfs answers copy_file_range with zero bytes; the content has to arrive all the same."""
    if not os.path.exists("/proc/version"):
        pytest.skip("no procfs")
    with open("/proc/version", "rb") as source, open(tmp_path / "copy", "wb") as copy:
        assert clone_or_copy(source.fileno(), copy.fileno()) is False

    assert (tmp_path / "copy").read_bytes() == Path("/proc/version").read_bytes()


def test_private_folder_is_ours_alone(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b")

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert private_folder(folder) == folder


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_folder_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)

    with pytest.raises(VeloError, match="can be written by other users") as caught:
        private_folder(folder)
    assert "chmod go-w" in caught.value.hint


def test_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a folder away needs root")
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 4321, 4321)

    with pytest.raises(VeloError, match="belongs to user 4321"):
        private_folder(tmp_path / "theirs")


def test_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(VeloError, match="is not a folder"):
        private_folder(tmp_path / "file")


def test_stamp_changes_with_every_kind_of_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    stamps = [stamp_of(path.stat())]
    path.write_bytes(b"longer")
    stamps.append(stamp_of(path.stat()))
    os.utime(path, ns=(1, 1))
    stamps.append(stamp_of(path.stat()))
    publish(path, [b"longer"])
    stamps.append(stamp_of(path.stat()))

    assert len(set(stamps)) == len(stamps)


def test_many_threads_may_make_the_same_folders(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            publish(tmp_path / "a" / "b" / "c" / str(number), [b"x"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(list((tmp_path / "a/b/c").iterdir())) == 8


def test_flush_of_a_folder_that_cannot_be_flushed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not for folders")

    monkeypatch.setattr(os, "fsync", fsync)
    publish(tmp_path / "file", [b"x"])

    assert files.read_file(tmp_path / "file") == b"x"

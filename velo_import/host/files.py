# SPDX-License-Identifier: Apache-2.0
"""Files on disk: reading without traces, publishing so that others see all of a file or nothing.

Knows temporary names, flushing, renames, folders and copies; leaves the meaning of the bytes to its callers.
Its surprise: a rename changes the ctime of a file, so take the stamp of a published file after publishing it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import VeloError

Data = bytes | bytearray | memoryview

TEMPORARY_PREFIX = ".tmp-"
_FICLONE = 0x40049409
_HERE, _RENAME_EXCHANGE = -100, 2  # of Linux: AT_FDCWD, and a flag of renameat2
_COPY_STEP = 1 << 30
_BUFFER = 1 << 20
_ZEROS = bytes(_BUFFER)
# Flushes wait for the disk, not for the processor: together they share the journal's commits.
_FLUSHERS = 8


class Stamp(NamedTuple):
    """What the kernel says about a file that changes whenever the file does."""

    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


# -- reading ---------------------------------------------------------------------------------------


def open_quietly(path: str | bytes | Path, more: int = 0) -> int:
    """A descriptor for reading that leaves no access time behind where the kernel allows it.

    Never waits: a named pipe opens at once (O_NONBLOCK), and it is for the caller to refuse it. `more` are
    flags such as O_DIRECTORY.
    """
    flags = more | os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    except PermissionError:  # O_NOATIME is for the owner of a file only
        return os.open(path, flags)


def read_file(path: str | bytes | Path) -> bytes:
    """The whole of a file, without touching its access time where that is allowed."""
    with os.fdopen(open_quietly(path), "rb", buffering=0) as file:
        return file.readall()


# -- writing ---------------------------------------------------------------------------------------


@contextmanager
def explained(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn the refusals of a disk into errors that a user can act on."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0)
        if hint is None:
            raise
        reason = os.strerror(error.errno or 0).lower()
        raise VeloError(f"could not {doing} {path}: {reason}", hint=hint) from error


_HINTS = {
    errno.ENOSPC: "free some space on that disk, or set VELO_HOME to a folder on another one",
    errno.EDQUOT: "free some space in your quota, or set VELO_HOME to a folder on another disk",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or set VELO_HOME to another disk",
    errno.EROFS: "set VELO_HOME to a folder on a disk that can be written",
    errno.EACCES: "check the owner and the permissions of that folder, or set VELO_HOME to another one",
    errno.EPERM: "check the owner and the permissions of that folder, or set VELO_HOME to another one",
}


def temporary_name(folder: Path) -> Path:
    """A fresh name in that folder, recognised as left behind if its writer dies."""
    return folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}"


def create_temporary(folder: Path) -> tuple[int, Path]:
    """A new empty file in that folder that only we can read, and its path."""
    path = temporary_name(folder)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600), path


def write_all(descriptor: int, data: Data) -> None:
    view = memoryview(data).cast("B")
    while view:  # one call writes at most 2 GiB, and less when a signal arrives
        view = view[os.write(descriptor, view) :]


def remove_quietly(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def flush_all(paths: Sequence[Path]) -> None:
    """Wait until these files or folders have reached the disk; any failure is raised."""
    if len(paths) <= 2:
        for path in paths:
            _flush(path)
        return
    from concurrent.futures import ThreadPoolExecutor  # 5 ms that most runs need not pay

    with ThreadPoolExecutor(_FLUSHERS) as pool:
        for _ in pool.map(_flush, paths):
            pass


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems have nothing to flush for a folder and say so.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def rename_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Give flushed temporary files their names and flush the folders: afterwards a power cut loses none.

    When one step fails, files that already have their name keep it (each is complete); the caller
    removes the temporary files that are left.
    """
    folders = dict.fromkeys(path.parent for _, path in moves)
    changed = set(folders)
    for folder in folders:
        changed |= make_folders(folder)
    for temporary, path in moves:
        os.rename(temporary, path)
    flush_all(sorted(changed))


def exchange(first: Path, second: Path) -> None:
    """Let two folders, or files, change names at once: neither name is ever missing.

    Raises:
        OSError: they cannot; also where the system or the file system does not know how.
    """
    import ctypes  # 10 ms that hardly anybody has to pay

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    names = [os.fsencode(os.path.abspath(path)) for path in (first, second)]
    if call(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(first))


def make_folders(folder: Path, *, mode: int = 0o755) -> set[Path]:
    """Create a folder and its parents; return the folders that gained an entry and need a flush."""
    changed: set[Path] = set()
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with suppress(FileExistsError):  # another process was quicker
            new.mkdir(mode=mode)
        changed.add(new.parent)
    return changed


class Batch:
    """Files that will be published together. Made by `publish_many`."""

    def __init__(self) -> None:
        self._moves: list[tuple[Path, Path]] = []
        self._changed: set[Path] = set()  # Folders that gained a folder.

    def add(self, path: Path, chunks: Iterable[Data], *, mode: int = 0o444) -> None:
        """Write a file under a temporary name beside its place."""
        with explained(path):
            self._changed |= make_folders(path.parent)
            descriptor, temporary = create_temporary(path.parent)
            self._moves.append((temporary, path))
            try:
                for chunk in chunks:
                    write_all(descriptor, chunk)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    def _commit(self) -> None:
        if self._moves:
            with explained(self._moves[0][1].parent):
                flush_all([*sorted(self._changed), *(temporary for temporary, _ in self._moves)])
                rename_all(self._moves)

    def _discard(self) -> None:
        for temporary, _ in self._moves:
            remove_quietly(temporary)


@contextmanager
def publish_many() -> Iterator[Batch]:
    """Publish several files at the end of the block: one round of flushes for all of them."""
    batch = Batch()
    try:
        yield batch
        batch._commit()
    except BaseException:
        batch._discard()
        raise


def publish(path: Path, chunks: Iterable[Data], *, mode: int = 0o444) -> None:
    """Put a file in its place so that readers, and power cuts, find the old one or all of the new one."""
    with publish_many() as batch:
        batch.add(path, chunks, mode=mode)


def put_unflushed(path: Path, data: Data) -> None:
    """Put a file in its place without waiting for the disk: for a cache whose readers check every byte,
    because after a power cut it may hold anything.
    """
    descriptor, temporary = create_temporary(path.parent)
    try:
        try:
            write_all(descriptor, data)
            os.fchmod(descriptor, 0o444)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        remove_quietly(temporary)
        raise


# -- folders ---------------------------------------------------------------------------------------


def private_folder(path: Path) -> Path:
    """Make sure that a folder exists which only we can write; refuse one that others could have filled."""
    changed = {folder.parent for folder in (path, *path.parents) if not folder.exists()}
    with explained(path, "create"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        with suppress(PermissionError):  # one may create in a folder that one may not read, and so not flush
            flush_all(sorted(changed))
    check_private(path)
    return path


def check_private(path: Path) -> None:
    """Raise unless this is a folder of ours, or of root, that nobody else may write."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise VeloError(f"{path} is not a folder", hint="move it away, or set VELO_HOME to another folder")
    if status.st_uid not in (os.geteuid(), 0):
        raise VeloError(
            f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()}",
            hint="set VELO_HOME to a folder of your own: code is run from there",
        )
    if status.st_mode & 0o022:
        raise VeloError(
            f"{path} can be written by other users (mode {stat.S_IMODE(status.st_mode):04o})",
            hint=f"run `chmod go-w '{path}'`: code is run from there",
        )


# -- copying ---------------------------------------------------------------------------------------


def clone(source: int, target: int) -> bool:
    """Let an empty file share the blocks of another; False where the file systems cannot."""
    with suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        return True
    return False


def clone_or_copy(source: int, target: int) -> bool:
    """Fill an empty file with the content of another; True when they share the blocks on disk.

    Never a hard link: the store must not own an inode that somebody else can write.
    """
    if clone(source, target):
        return True
    if _has_holes(source):
        copy_shown(source, target, lambda piece: None)
        return False
    # Neither call is believed about the end of the file: some file systems (procfs, some FUSE) answer 0
    # early, and the file may be growing. Plain reads have the last word.
    with suppress(OSError, AttributeError):
        while os.copy_file_range(source, target, _COPY_STEP):
            pass
    while data := os.read(source, _BUFFER):
        write_all(target, data)
    return False


def copy_shown(source: int, target: int, show: Callable[[Data], object]) -> int:
    """Fill an empty file with the content of another and show every byte that was stored; return how many.

    Holes stay holes.
    """
    size = 0
    for piece, is_hole in pieces(source):
        show(piece)
        if is_hole:
            os.lseek(target, len(piece), os.SEEK_CUR)
        else:
            write_all(target, piece)
        size += len(piece)
    os.ftruncate(target, size)  # it may end in a hole
    return size


def pieces(descriptor: int) -> Iterator[tuple[Data, bool]]:
    """The content of a file in pieces; True with those that lie in a hole: zeros that nobody had to read."""
    at = 0
    if _has_holes(descriptor):
        size = os.fstat(descriptor).st_size
        while at < size:
            try:
                begin = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # this file system does not tell
                    break
                begin = size  # a hole up to the end
            for start in range(at, begin, _BUFFER):
                yield memoryview(_ZEROS)[: begin - start], True
            at = begin
            end = os.lseek(descriptor, at, os.SEEK_HOLE) if at < size else at
            while at < end:
                piece = os.pread(descriptor, min(_BUFFER, end - at), at)
                if not piece:  # it was cut meanwhile
                    return
                yield piece, False
                at += len(piece)
    while piece := os.pread(descriptor, _BUFFER, at):  # all of most files; of a growing one, what is new
        yield piece, False
        at += len(piece)


def _has_holes(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return status.st_blocks * 512 < status.st_size

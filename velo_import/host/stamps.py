# SPDX-License-Identifier: Apache-2.0
"""The stamps of many known paths at once, for those who only want to know whether anything has changed.

Imports next to nothing, because an unchanged tree is looked at in less time than typing takes to import. The
surprise: folders are not listed. A folder's own times move when a name in it comes or goes, so its stamp
stands for its names; that is what every accelerated import relies on as well.
"""

from __future__ import annotations

import _thread
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = (
    40  # Bytes of a stamp: i64 size (0 of a folder), i64 mtime, i64 ctime in ns, u64 inode, u32 mode, zeros
)
_FOLDER = 0o040000
_PARTS = 16  # More than threads: one may be kept waiting by the disk


def stamp(size: int, mtime_ns: int, ctime_ns: int, ino: int, mode: int) -> bytes:
    """One stamp as bytes, little-endian."""
    if mode & 0o170000 == _FOLDER:
        size = 0
    return b"".join(
        (
            size.to_bytes(8, "little"),
            mtime_ns.to_bytes(8, "little", signed=True),
            ctime_ns.to_bytes(8, "little", signed=True),
            ino.to_bytes(8, "little"),
            mode.to_bytes(8, "little"),
        )
    )


def stamps(paths: bytes) -> bytes:
    """The stamps of paths that each end with NUL; zeros for what is not there.

    A path that does not begin with a slash lies in the last one that does. Links are followed.
    """
    found = []
    folder = b""
    for path in paths.split(b"\0")[:-1]:
        if path.startswith(b"/"):
            folder = path
        else:
            path = folder.rstrip(b"/") + b"/" + path
        try:
            status = os.stat(path)
        except OSError:
            found.append(bytes(SIZE))
            continue
        found.append(
            stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
        )
    return b"".join(found)


def fastest() -> Callable[[bytes], bytes]:
    """The native `stamps` where it was built for this byte order."""
    try:
        from velo_import._native import folders
    except ImportError:
        return stamps
    import sys

    return folders.stamps if sys.byteorder == "little" else stamps


def stamps_of(paths: bytes, threads: int) -> bytes:
    """As `stamps`, by several threads."""
    read = fastest()
    todo = list(enumerate(_parts(paths)))
    done: dict[int, bytes] = {}

    def work() -> None:
        while todo:
            try:
                number, part = todo.pop()
            except IndexError:  # another thread took the last one
                return
            done[number] = read(part)

    locks = []
    for _ in range(threads - 1):
        locks.append(_started(work))
    work()
    for lock in locks:
        lock.acquire()
    return b"".join(done[number] for number in sorted(done))


def _started(work: Callable[[], None]) -> _thread.LockType:
    """Do the work in a thread of its own; the lock is free when it has ended. `threading` would cost 2 ms."""
    lock = _thread.allocate_lock()
    lock.acquire()

    def run() -> None:
        try:
            work()
        finally:
            lock.release()

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:  # no more threads here: the others do it all
        lock.release()
    return lock


def _parts(paths: bytes) -> list[bytes]:
    """The paths in some parts of about one size, each of which begins with a folder."""
    parts = []
    begin = 0
    for number in range(1, _PARTS):
        end = paths.find(b"\0/", max(begin, len(paths) * number // _PARTS)) + 1
        if end > begin:
            parts.append(paths[begin:end])
            begin = end
    parts.append(paths[begin:])
    return parts

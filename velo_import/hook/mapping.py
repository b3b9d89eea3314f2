# SPDX-License-Identifier: Apache-2.0
"""Files mapped read-only, stamps compared, a lock taken: by the native module, or by its twin here.

No descriptor may outlive a call. CPython's `mmap` keeps one before 3.13, which a program that closes all
descriptors would hand to a stranger; there the twin reads the file instead of mapping it.
"""

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader
from _imp import create_dynamic, exec_dynamic
from posix import (
    O_CLOEXEC,
    O_CREAT,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    close,
    fstat,
    open,
    read,
    stat,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REGULAR_FILE = 8  # st_mode >> 12


def map_file(path: bytes) -> "tuple[Any, tuple[int, int, int, int, int, int]]":
    """A buffer over the file, and (uid, mode, size, mtime_ns, ctime_ns, ino). Links are not followed.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    try:
        status = fstat(descriptor)
        if status.st_mode >> 12 != REGULAR_FILE:
            raise OSError("not a regular file")
        stamp = (
            status.st_uid,
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_ino,
        )
        if sys.version_info >= (3, 13) and status.st_size:
            mapper = _borrowed("mmap")
            return mapper.mmap(descriptor, 0, access=mapper.ACCESS_READ, trackfd=False), stamp
        parts = []
        while part := read(descriptor, 1 << 24):
            parts.append(part)
        return b"".join(parts), stamp
    finally:
        close(descriptor)


def is_unchanged(path: str, size: int, mtime_ns: int, ctime_ns: int, ino: int) -> "bool | None":
    """Whether the file still has this stamp; None when only a time or the inode differs.

    A size of -1 is any size.
    """
    try:
        status = stat(path)
    except OSError:
        return False
    if size >= 0 and status.st_size != size:
        return False
    if status.st_mtime_ns == mtime_ns and status.st_ctime_ns == ctime_ns and status.st_ino == ino:
        return True
    return None


def take_lock(path: bytes) -> int:
    """Open a lock file, made if need be, and lock it without waiting; gives the descriptor.

    Raises:
        OSError: it cannot be opened, or another process holds it (BlockingIOError).
    """
    fcntl = _borrowed("fcntl")
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        close(descriptor)
        raise
    return descriptor


def nothing() -> None:
    """Stands in for `forget` where nothing is mapped."""


def _borrowed(name: str) -> "Any":
    """A module of the standard library that is not left in `sys.modules` if it was not there."""
    was_there = name in sys.modules
    module = __import__(name)
    if not was_there:
        del sys.modules[name]
    return module


def use_native(path: str) -> bool:
    """Replace these functions by the native module's, if it was built and fits this interpreter."""
    global map_file, is_unchanged, take_lock
    try:
        spec = ModuleSpec(
            "velo_import._native.core", ExtensionFileLoader("velo_import._native.core", path), origin=path
        )
        native = create_dynamic(spec)
        exec_dynamic(native)
    except (ImportError, OSError, SystemError):
        return False
    map_file, is_unchanged, take_lock = native.map_file, native.is_unchanged, native.take_lock
    return True

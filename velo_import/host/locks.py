# SPDX-License-Identifier: Apache-2.0
"""Locks between processes: flock on a file that names its holder.

The kernel frees the lock when the holder dies, however it dies; the file stays, because removing a lock file
lets two processes hold "the" lock on two inodes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import StoreLocked, VeloError
from .files import explained

_PAUSE = 0.02


@contextmanager
def exclusive(path: Path, *, wait: float = 0) -> Iterator[int]:
    """Hold the lock for the block and yield its descriptor; StoreLocked when it is not free in time."""
    with _hold(path, fcntl.LOCK_EX, wait) as descriptor:
        with suppress(OSError):  # on a full disk the lock is held all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield descriptor


@contextmanager
def shared(path: Path, *, wait: float = 0) -> Iterator[None]:
    """Hold the lock together with all others who ask for it this way; StoreLocked while one has it alone."""
    with _hold(path, fcntl.LOCK_SH, wait):
        yield


def held(descriptor: int) -> bool:
    """Whether we hold the lock behind a descriptor that we inherited (or can take it this instant)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def release(descriptor: int) -> None:
    """Give the lock behind a descriptor back; the descriptor stays open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def _hold(path: Path, kind: int, wait: float) -> Iterator[int]:
    deadline = time.monotonic() + wait
    while True:
        # Who only reads may not be allowed to write; a flock does not ask for it.
        flags = os.O_RDWR if kind == fcntl.LOCK_EX else os.O_RDONLY
        with explained(path):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try(descriptor, path, kind):
                if time.monotonic() >= deadline:
                    raise StoreLocked(
                        f"{path} is held by process {_holder(descriptor)}, which is writing there",
                        hint="wait for it, or run `velo doctor`",
                    )
                time.sleep(_PAUSE)
            if _is_in_place(descriptor, path):
                yield descriptor
                return
            # The file was removed while we waited: whoever comes now locks the one in its place.
        finally:
            os.close(descriptor)


def _try(descriptor: int, path: Path, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise VeloError(
            f"the file system of {path.parent} cannot lock files",
            hint="set VELO_HOME to a folder on a local disk",
        ) from error
    return True


def _is_in_place(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 32, 0).strip()
    return text.decode() if text.isdigit() else "unknown"

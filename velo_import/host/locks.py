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

_PAUSE = 0.02


@contextmanager
def exclusive(path: Path, *, wait: float = 0) -> Iterator[int]:
    """Hold the lock for the block and yield its descriptor; StoreLocked when it is not free in time."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait
        while not _try(descriptor, path):
            if time.monotonic() >= deadline:
                raise StoreLocked(
                    f"{path} is held by process {_holder(descriptor)}, which is writing there",
                    hint="wait for it, or run `velo doctor`",
                )
            time.sleep(_PAUSE)
        with suppress(OSError):  # on a full disk the lock is held all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


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


def _try(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise VeloError(
            f"the file system of {path.parent} cannot lock files",
            hint="set VELO_HOME to a folder on a local disk",
        ) from error
    return True


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 32, 0).strip()
    return text.decode() if text.isdigit() else "unknown"

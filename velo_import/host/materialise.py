# SPDX-License-Identifier: Apache-2.0
"""Making files, folders and links below one folder, by descriptors and single names: nothing that is made on
the way, a symbolic link least of all, can lead a later step out of it.

Knows how content gets to its place (a clone, a hard link, a copy); what belongs where is for its callers.
Its surprise: a hard link shares its inode with the store, so what is made that way is read-only.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from ..errors import VeloError
from .files import Data, clone, copy_shown, open_quietly, pieces, temporary_name, write_all

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# What a file system says when it cannot do this, here or at all; anything else is a failure.
_CANNOT = {
    errno.ENOENT,  # the name that was to be linked has just gone; its content is open
    errno.EXDEV,
    errno.EMLINK,
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.ENOTTY,
    errno.EINVAL,
}


class Way(Enum):
    """How content gets to its place; the next one is taken where a file system cannot do the first."""

    HARDLINK = "hardlink"
    CLONE = "clone"
    COPY = "copy"


@contextmanager
def new_folder(path: Path) -> Iterator[int]:
    """A folder to fill, as a descriptor; it gets its name when the block is done, and vanishes if that fails.

    An empty folder that is there already is filled where it is, since it may be a mount point.

    Raises:
        VeloError: there is something else, or the folder cannot be made.
    """
    path = Path(os.path.realpath(path))
    place = path
    try:
        if path.exists():
            if not path.is_dir() or any(path.iterdir()):
                raise VeloError(f"{path} is not an empty folder", hint="name a folder that is not there yet")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            place = temporary_name(path.parent)
            place.mkdir()
        descriptor = os.open(place, _FOLDER)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise VeloError(f"cannot make {path}: {reason}", hint="name a folder that you can write") from error
    try:
        yield descriptor
        if place != path:
            place.rename(path)
    except BaseException as error:
        _empty(place)
        if place != path:
            with suppress(OSError):
                place.rmdir()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VeloError(f"no space left for {path}", hint="free some space on that disk") from error
        raise
    finally:
        os.close(descriptor)


def make_folder(parent: int, name: bytes) -> int:
    """A new folder in an open one, and its descriptor."""
    os.mkdir(name, dir_fd=parent)
    return os.open(name, _FOLDER, dir_fd=parent)


def make_link(parent: int, name: bytes, target: bytes) -> None:
    """A symbolic link; where it leads is not looked at."""
    os.symlink(target, name, dir_fd=parent)


def make_file(parent: int, name: bytes, data: Data, mode: int, mtime_ns: int | None) -> None:
    """A new file with this content; `mode` is subject to the umask."""
    descriptor = os.open(name, _NEW, mode, dir_fd=parent)
    try:
        write_all(descriptor, data)
        if mtime_ns is not None:
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(descriptor)


def place_file(
    parent: int,
    name: bytes,
    source: Path,
    way: Way,
    mode: int,
    mtime_ns: int | None,
    show: Callable[[Data], object],
) -> Way:
    """Put the content of a file in its place and show every byte that is there now; say how it got there.

    A hard link is made only of a file that nobody may write.
    """
    original = open_quietly(source)
    try:
        if way is Way.HARDLINK:
            if _hard_link(parent, name, source, original):
                _show_all(original, show)
                return Way.HARDLINK
            way = Way.CLONE
        descriptor = os.open(name, _NEW, mode, dir_fd=parent)
        try:
            if way is Way.CLONE and clone(original, descriptor):
                _show_all(descriptor, show)
            else:
                way = Way.COPY
                copy_shown(original, descriptor, show)
            if mtime_ns is not None:
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(descriptor)
        return way
    finally:
        os.close(original)


def _hard_link(parent: int, name: bytes, source: Path, original: int) -> bool:
    status = os.fstat(original)
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o222:
        return False
    try:
        os.link(source, name, dst_dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    made = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if os.path.samestat(made, status):
        return True
    os.unlink(name, dir_fd=parent)  # the store has put another file in its place meanwhile
    return False


def _show_all(descriptor: int, show: Callable[[Data], object]) -> None:
    for piece, _ in pieces(descriptor):
        show(piece)


def _empty(folder: Path) -> None:
    """Remove what is in a folder that was empty when we came."""
    for path in list(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()

# SPDX-License-Identifier: Apache-2.0
"""One folder's listing with the stamps of its files, as the kernel gives it.

Knows names, kinds and stamps; which folders are listed, and what it means, is ingest/scan.py's. The surprise:
this is the twin of `_native/folders.c`, which gives the same answers three times as fast where it was built.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, TypeVar

from .files import open_quietly

Entry = TypeVar("Entry", bound=tuple[object, ...])


def read_folder(
    path: str, suffixes: tuple[str, ...], make: type[Entry]
) -> tuple[int, int, int, int, list[Entry], list[str], list[str], list[str]]:
    """List one folder, in the file system's order; leaves no access time behind where that is allowed.

    Gives mtime_ns, ctime_ns, inode and mode of the folder, taken before it was listed; its files; the names
    of folders, of symbolic links to folders, and of everything else. Files are named tuples of the type
    `make`: name, size, mtime_ns, ctime_ns, inode, mode, is it a link (the numbers are those of what it leads
    to). Given suffixes, files without any of them are only names.

    Raises:
        OSError: it cannot be read, is gone, or is no folder.
    """
    files: list[Entry] = []
    folders: list[str] = []
    links: list[str] = []
    others: list[str] = []
    descriptor = open_quietly(path, os.O_DIRECTORY)
    try:
        status = os.fstat(descriptor)
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                    continue
                is_link = entry.is_symlink()
                if suffixes and not is_link and not name.endswith(suffixes):
                    others.append(name)
                    continue
                try:
                    found = entry.stat()
                except (
                    OSError
                ):  # A link that leads nowhere or round in circles, or a file that has just gone.
                    others.append(name)
                    continue
                if stat.S_ISREG(found.st_mode):
                    values = (
                        name,
                        found.st_size,
                        found.st_mtime_ns,
                        found.st_ctime_ns,
                        found.st_ino,
                        found.st_mode,
                        is_link,
                    )
                    files.append(tuple.__new__(make, values))
                elif is_link and stat.S_ISDIR(found.st_mode):
                    links.append(name)
                else:
                    others.append(name)
    finally:
        os.close(descriptor)
    return (
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_mode,
        files,
        folders,
        links,
        others,
    )


def fastest_reader() -> Callable[[str, tuple[str, ...], type[Any]], tuple[Any, ...]]:
    """The native `read_folder` where it was built."""
    try:
        from velo_import._native import folders
    except ImportError:
        return read_folder
    return folders.read_folder

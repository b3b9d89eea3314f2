# SPDX-License-Identifier: Apache-2.0
"""Dropping chosen files from the page cache, and proving that they are gone.

`evict` asks with posix_fadvise(DONTNEED), file by file, so that the rest of the machine keeps its cache;
`residency` counts the pages that are still there with mincore. Pages that some process has mapped (libc
always, the interpreter if this very process runs on it) cannot be dropped by anyone; that is why the
residue is reported and not assumed to be zero.

The surprise: only data goes. Names and inodes stay in the kernel's caches, as they do on any machine that
has just unpacked or listed the tree; writing 2 to /proc/sys/vm/drop_caches would take those too, from
everybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_MAP_FAILED = ctypes.c_void_p(-1).value


class Residency(NamedTuple):
    files: int
    pages: int
    resident: int

    @property
    def share(self) -> float:
        return self.resident / self.pages if self.pages else 0.0


def files_below(roots: Iterable[Path]) -> list[Path]:
    """Every regular file in these folders, and the roots that are files themselves; each once."""
    found: dict[Path, None] = {}
    for root in roots:
        if root.is_file():
            found[root] = None
        for folder, _, names in os.walk(root):
            for name in names:
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    found[path] = None
    return list(found)


def evict(paths: Iterable[Path]) -> None:
    """Ask the kernel to forget the content of these files. Call `os.sync()` first: dirty pages stay."""
    for path in paths:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def residency(paths: Iterable[Path]) -> Residency:
    """How much of these files is in memory. For files of another owner the kernel answers 'all of it'."""
    files = pages = resident = 0
    for path in paths:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if size := os.fstat(descriptor).st_size:
                    files += 1
                    here = _resident_pages(descriptor, size)
                    pages += len(here)
                    resident += sum(byte & 1 for byte in here)
            finally:
                os.close(descriptor)
    return Residency(files, pages, resident)


def _resident_pages(descriptor: int, size: int) -> bytes:
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    try:
        vector = ctypes.create_string_buffer((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE)
        if _libc.mincore(address, size, vector) != 0:
            raise OSError(ctypes.get_errno(), "mincore")
        return vector.raw
    finally:
        _libc.munmap(address, size)


def drop_everything() -> bool:
    """The blunt tool: all clean page cache of the machine. False when we may not."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")
    except OSError:
        return False
    return True

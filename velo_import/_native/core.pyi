# SPDX-License-Identifier: Apache-2.0
from types import CodeType

class Map:
    """A read-only buffer over one mapped file; holds no descriptor."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

def map_file(path: bytes, /) -> tuple[Map, tuple[int, int, int, int, int, int]]:
    """Map a regular file; gives the map and (uid, mode, size, mtime_ns, ctime_ns, ino). Raises OSError."""

class Watch:
    """The entries of a search path, to be asked in one call."""

    def is_current(self, count: int, importers: dict[str, object], /) -> bool:
        """Whether the first `count` entries still have their importers and their stamps."""

def watch(entries: list[tuple[str, object, bytes | None, bool, int, int, int]], /) -> Watch:
    """Each entry: key and value in `sys.path_importer_cache` (None for no value), path in bytes or None if
    the kernel need not be asked, whether it is no folder, then mtime_ns, ctime_ns and inode.
    """

def take_lock(path: bytes, /) -> int:
    """Open a lock file and lock it without waiting; gives the descriptor. Raises OSError."""

def is_unchanged(path: str, size: int, mtime_ns: int, ctime_ns: int, ino: int, /) -> bool | None:
    """Whether the file still has this stamp; None when only a time or the inode differs."""

def load_code(
    path: str, cached: str, records: memoryview, at: int, asks: bool, pack: Map, /
) -> CodeType | bool | None:
    """The code of the module whose record is at word `at`, with `path` as its file name; False if the source
    is another, None when only a time or the inode differs. Raises IndexError for what is not there.
    """

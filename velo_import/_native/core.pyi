# SPDX-License-Identifier: Apache-2.0
class Map:
    """A read-only buffer over one mapped file; holds no descriptor."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def forget(self) -> None:
        """Give the pages back to the kernel; they are read again when they are touched."""

def map_file(path: bytes, /) -> tuple[Map, tuple[int, int, int, int, int, int]]:
    """Map a regular file; gives the map and (uid, mode, size, mtime_ns, ctime_ns, ino). Raises OSError."""

def take_lock(path: bytes, /) -> int:
    """Open a lock file and lock it without waiting; gives the descriptor. Raises OSError."""

def is_unchanged(path: str, size: int, mtime_ns: int, ctime_ns: int, ino: int, /) -> bool | None:
    """Whether the file still has this stamp; None when only a time or the inode differs."""

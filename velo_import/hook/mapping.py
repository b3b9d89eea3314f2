# SPDX-License-Identifier: Apache-2.0
"""Files mapped, stamps compared, code made of mapped bytes, a lock taken: where there is no native module.

With one, that module is `velo_import.hook.mapping` to the others, and this file is not even read. No
descriptor may outlive a call. CPython's `mmap` keeps one before 3.13, which a program that closes all
descriptors would hand to a stranger; so the twin reads files instead of mapping them. It imports nothing,
because an import would go through the program's own hooks.
"""

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader
from _imp import (  # type: ignore[attr-defined]
    _fix_co_filename,
    create_builtin,
    create_dynamic,
    exec_builtin,
    exec_dynamic,
    extension_suffixes,
)
from marshal import loads
from posix import (
    O_CLOEXEC,
    O_CREAT,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    close,
    fstat,
    geteuid,
    open,
    read,
    stat,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

REGULAR_FILE = 8  # st_mode >> 12
OPEN_FLAGS = O_RDONLY | O_CLOEXEC
# For os.fsencode's answer without its frame, which a tracer would see in the middle of an import.
ENCODING = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
RECORD_WORDS = 10  # FORMAT.md, section 3


class Unusable(Exception):
    """Why a file of ours is not used; the text is the reason that is counted. Never leaves the hook."""


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
        parts = []
        while part := read(descriptor, 1 << 24):
            parts.append(part)
        return b"".join(parts), stamp
    finally:
        close(descriptor)


def map_private(path: str, owner: int) -> "tuple[Any, tuple[int, ...]]":
    """Map a file that only its owner (we, root, or the store's) could have written; with its size, times and
    inode.
    """
    mapped, (uid, mode, *stamp) = map_file(path.encode(*ENCODING))
    if uid not in (0, geteuid(), owner) or mode & 0o022:
        raise Unusable("owner")
    return mapped, tuple(stamp)


def is_unchanged(path: "str | bytes", size: int, mtime_ns: int, ctime_ns: int, ino: int) -> "bool | None":
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


def load_code(
    path: str, cached: str, records: memoryview, at: int, asks: bool, pack: "Any"
) -> "CodeType | bool | None":
    """The code of the module whose record is at word `at`, with `path` as its file name.

    If the kernel is to be asked (`asks`) and says that the source is another: False, or None when only a time
    or the inode differs. `pack` is what `map_file` gave.

    Raises:
        IndexError: no such record, or a range that the pack does not have.
        EOFError, TypeError, ValueError: the bytes are no code.
        Exception: whatever an auditor raises.
    """
    if not 0 <= at <= len(records) - RECORD_WORDS:
        raise IndexError("no such range")
    _, start, length, mtime, ctime, ino, size, _, _, _ = records[at : at + RECORD_WORDS]
    view = memoryview(pack)[start : start + length]
    if not length or len(view) != length:
        raise IndexError("no such range")
    if asks:
        unchanged = is_unchanged(path, size, mtime, ctime, ino)
        if unchanged is not True:
            return unchanged
    # Auditors see the event that reading the cached file would have raised.
    sys.audit("open", cached, "r", OPEN_FLAGS)
    code: CodeType = loads(view)
    _fix_co_filename(code, path)  # refuses what is no code
    return code


# What is alive and would do something when destroyed; only C can see whose code cleans up (remains.py).
look_at_remains: "Any" = None


def serve(loader: "Any", fullname: str) -> "CodeType | None":
    """The native module's short way to a module's code. Here there is none: the loader goes its own way."""
    return None


class Watch:
    """The entries of a search path, to be asked in one call."""

    def __init__(self, entries: "list[tuple[str, Any, bytes | None, bool, int, int, int]]") -> None:
        self.entries = entries

    def is_current(self, count: int, importers: "dict[str, Any]") -> bool:
        """Whether the first `count` entries still have their importers and their stamps."""
        for key, importer, path, is_absent, mtime, ctime, ino in self.entries[:count]:
            if importers.get(key) is not importer or (is_absent and key not in importers):
                return False
            if path is not None and is_unchanged(path, -1, mtime, ctime, ino) is not True:
                return False
        return True


def watch(entries: "list[tuple[str, Any, bytes | None, bool, int, int, int]]") -> "Any":
    """A `Watch`. Each entry: key and value in `sys.path_importer_cache` (None for no value), path in bytes or
    None if the kernel need not be asked, whether it is no folder, then mtime_ns, ctime_ns and inode.
    """
    return Watch(entries)


def note_read(mapped: "Any", length: int) -> None:
    """Note that so much is about to be read. Nothing is mapped here, so there are no pages to give back."""


def note_end() -> None:
    """Note that the program ends. As for `note_read`, there are no pages to give back."""


def set_loads(function: "Any") -> None:
    """What makes code of bytes from now on, instead of `marshal.loads`: for trace.py."""
    global loads
    loads = function


def is_audited() -> bool:
    """Whether any audit hook is installed, or may be. None is called."""
    if sys.version_info >= (3, 14):
        return True
    try:
        sys.audit(0)  # type: ignore[arg-type]
    except TypeError:  # Its argument is looked at only then.
        return True
    return False


def take_lock(path: bytes) -> int:
    """Open a lock file, made if need be, and lock it without waiting; gives the descriptor.

    Raises:
        OSError: it cannot be opened, or another process holds it (BlockingIOError).
    """
    fcntl = load_extension("fcntl")
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        close(descriptor)
        raise
    return descriptor


def load_extension(name: str) -> "Any":
    """A module of the standard library, loaded by its place and left out of `sys.modules`.

    Raises:
        OSError: this interpreter has it nowhere.
    """
    if name in sys.modules:
        return sys.modules[name]
    if name in sys.builtin_module_names:
        module = create_builtin(ModuleSpec(name, None))
        exec_builtin(module)
        return module
    for folder in sys.path:
        for suffix in extension_suffixes():
            path = f"{folder}/{name}{suffix}"
            if is_unchanged(path, -1, 0, 0, 0) is None:
                return load_native(name, path)
    raise OSError(f"no {name}")


def load_native(name: str, path: str) -> "Any":
    """A native module by its place, left out of `sys.modules`.

    Raises:
        ImportError, OSError, SystemError: it is not there, or does not fit this interpreter.
    """
    module = create_dynamic(ModuleSpec(name, ExtensionFileLoader(name, path), origin=path))
    exec_dynamic(module)
    return module


# Only native code can use images of code objects.
Images: "Any" = None

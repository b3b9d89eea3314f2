# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import CodeType
from typing import Any

HASH_KEY: int
STAT: int
ROOT_ONLY: int
NEVER: int

class Map:
    """A read-only buffer over one mapped file; holds no descriptor."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

def map_file(path: bytes, /) -> tuple[Map, tuple[int, int, int, int, int, int]]:
    """Map a regular file; gives the map and (uid, mode, size, mtime_ns, ctime_ns, ino). Raises OSError."""

def is_audited() -> bool:
    """Whether any audit hook is installed. None is called."""

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

def note_read(map: Map, length: int, /) -> None:
    """Note that so much of a map is about to be read. The pages of all maps are given back once there were
    enough.
    """

def note_end() -> None:
    """Note that the program ends: the pages of all maps are given back before the exit needs memory of its
    own.
    """

def set_loads(loads: Callable[[memoryview], object], /) -> None:
    """What makes code of bytes from now on, instead of `marshal.loads`."""

def serve(loader: Any, fullname: str, /) -> CodeType | None:
    """The code of the module from its pack, counted; None where anything is out of the ordinary, and nothing
    has been done then. Raises what unmarshalling or an auditor raises.
    """

class Images:
    """One mapped file of images (FORMAT.md, section 13). Raises OSError, and Unusable with the reason."""

    def __init__(self, path: str, owner: int, identity: bytes, code_type: type, /) -> None: ...
    def take(self, source_check: int, bytecode_check: int, path: str, /) -> CodeType | None:
        """The code of this source and bytecode, with `path` as its file name; None where there is no image,
        and the second time if it has functions.
        """

    def absent(self) -> int:
        """How often somebody asked for what the file does not know."""

# What follows has its twins, and its documentation, in velo_import/hook/manifest.py and finder.py.

class Unusable(Exception): ...

class Folder:
    path: str
    importer: Any
    names: set[str] | None
    manifest: Manifest | None
    asks: int
    mtime: int
    ctime: int
    ino: int
    records: memoryview
    table: dict[str, int]
    root: int

class Manifest:
    path: str

    def __init__(self, path: str, pack_folder: str, identity: bytes, owner: int = 0, /) -> None: ...
    def prefix(self) -> bytes: ...
    def block(self, path: bytes, /) -> Folder | None: ...
    def root(self, index: int, /) -> tuple[str, int, int, int, int]: ...
    def pack_name(self, index: int, /) -> str: ...
    def pack(self, index: int, /) -> Map | None: ...

class VeloFinder:
    counts: Any
    check: int | None
    manifests: tuple[Manifest, ...]
    folders: dict[str, Folder]

    def __init__(
        self,
        manifests: Any,
        counts: Any,
        check: int | None,
        entry_hooks: tuple[Any, Any],
        suffixes: list[tuple[str, Any]],
        /,
    ) -> None: ...
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None: ...
    def invalidate_caches(self) -> None: ...

def look_at_remains(
    python_class: type,
    weak: type,
    function: type,
    stdlib: bytes,
    ignored: tuple[object, ...],
    get_objects: Callable[[], list[object]],
    deep: bool,
    /,
) -> tuple[list[object], list[object], set[str]]:
    """Objects alive that have a finaliser, callbacks of weak references, and files of foreign native code
    that cleans up. Raises OverflowError when there is too much, RuntimeError outside the main interpreter.
    """

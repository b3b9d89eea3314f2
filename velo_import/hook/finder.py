# SPDX-License-Identifier: Apache-2.0
"""The finder: gives the answer `PathFinder` would give for the current path list, or None.

Walks the path entries in order, as `PathFinder` does. Each entry is a `Folder`: the manifest's table of that
folder while its stamp holds, a live listing of it (CPython's own method) once it does not. Where other people
have changed the import system, it answers None and they are served as before.
"""

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import (
    ExtensionFileLoader,
    FileFinder,
    PathFinder,
    SourceFileLoader,
)
from posix import getcwd, listdir, stat

import velo_import.hook.mapping as mapping
from velo_import.hook.loader import VeloSourceLoader
from velo_import.hook.manifest import NEVER, ROOT_ONLY, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

    from velo_import.hook.counts import Counts
    from velo_import.hook.manifest import Block, Manifest

# Module flags and the bits of a record's first word (FORMAT.md, section 3).
IS_FOLDER, DEFER, IS_SYMLINK = 1 << 24, 2 << 24, 4 << 24
MASK, BARE_NAME = 0xFFFF, 1
REGULAR_FILE = 8  # st_mode >> 12
# Searched for at each start, mostly in vain, and then again by PathFinder: asking twice gains nothing.
LEFT_OUT = frozenset(("sitecustomize", "usercustomize"))
MISSING: "Any" = object()
FEW = 4  # folders on sys.path that no manifest knows
# Until 3.14 each import works out the name of the cached file; later ones leave it until it is asked for.
IMPORT_NAMES_CACHED = sys.version_info < (3, 15)
NO_RECORDS = memoryview(b"").cast("Q")

# What CPython's own classes must still be for our answer to stand for theirs.
GET_CODE = SourceFileLoader.get_code
EXEC_MODULE = SourceFileLoader.exec_module
COMPILE = SourceFileLoader.source_to_code
FILE_FINDER_FIND = FileFinder.find_spec
PATH_FINDER = PathFinder.__dict__
PATH_FINDER_FIND = PATH_FINDER["find_spec"]


def is_import_system_patched() -> bool:
    """Whether someone replaced a method whose behaviour our answer stands for, or removed `PathFinder`."""
    loader = SourceFileLoader
    return not (
        loader.get_code is GET_CODE
        and loader.exec_module is EXEC_MODULE
        and loader.source_to_code is COMPILE
        and FileFinder.find_spec is FILE_FINDER_FIND
        and PATH_FINDER["find_spec"] is PATH_FINDER_FIND
        and PathFinder in sys.meta_path
    )


def is_regular_file(path: str) -> bool:
    """What `FileFinder` asks before it believes a listing."""
    try:
        return stat(path).st_mode >> 12 == REGULAR_FILE
    except OSError:
        return False


class Folder:
    """One path entry: the manifest's block of it if there is one, and the listing once the stamp has moved.

    `asks` says whether the kernel is asked on each use (check `stat`). `names` is None while the folder is
    what the block describes. `importer` is what `sys.path_importer_cache` held when the folder was opened.
    """

    __slots__ = (
        "asks",
        "cached",
        "ctime",
        "importer",
        "ino",
        "manifest",
        "mtime",
        "names",
        "path",
        "prefix",
        "records",
        "table",
    )
    manifest: "Any"  # a Manifest, or None

    def __init__(self, path: str, importer: "Any", block: "Block | None", asks: bool) -> None:
        self.path = path
        self.prefix = path.rstrip("/") + "/"
        self.cached = f"{self.prefix}__pycache__/"
        self.importer = importer
        self.asks = asks
        self.names: set[str] | None = None
        if block is None:
            # No stamp can equal -1: the first use lists the folder.
            self.mtime = self.ctime = self.ino = -1
            self.records = NO_RECORDS
            self.table: dict[str, int] = {}
            self.manifest = None
        else:
            self.mtime = block.mtime
            self.ctime = block.ctime
            self.ino = block.ino
            self.records = block.records
            self.table = block.table
            self.manifest = block.manifest

    def ask(self) -> None:
        """Compare the folder with its stamp; list it if it has moved, as `FileFinder` does on each use."""
        if mapping.is_unchanged(self.path, -1, self.mtime, self.ctime, self.ino):
            return
        try:
            status = stat(self.path)
            self.names = set(listdir(self.path))
        except OSError:
            self.names = set()
            self.mtime = self.ctime = self.ino = -1
            return
        self.mtime = status.st_mtime_ns
        self.ctime = status.st_ctime_ns
        self.ino = status.st_ino


class SearchPath:
    """A whole search path as one table: one look-up and one call instead of a walk.

    `places` maps each name to the index of the first entry that lists it; entries that are no folders are
    None in `folders`. `watch` asks all entries up to an index whether they still are what they were. `stems`
    gives the module names that a listing offers.
    """

    __slots__ = ("entries", "folders", "places", "watch")

    def __init__(
        self, entries: "list[str]", folders: "list[Any]", stems: "Callable[[set[str]], set[str]]"
    ) -> None:
        self.entries = entries
        self.folders = folders
        self.places: dict[str, int] = {}
        for index in range(len(folders) - 1, -1, -1):
            folder = folders[index]
            if folder is not None:
                names = folder.table if folder.names is None else stems(folder.names)
                self.places.update(dict.fromkeys(names, index))
        self.watch = mapping.watch(
            [
                (entry, None, None, True, 0, 0, 0)
                if folder is None
                else (
                    entry,
                    folder.importer,
                    folder.path.encode(*mapping.ENCODING) if folder.asks else None,
                    False,
                    folder.mtime,
                    folder.ctime,
                    folder.ino,
                )
                for entry, folder in zip(entries, folders, strict=True)
            ]
        )


class VeloFinder:
    """A meta-path finder; stands just before `PathFinder`. Never raises.

    Args:
        manifests: consulted in order for each folder; the first that describes it as it is now wins.
        counts: where outcomes are counted.
        check: STAT, ROOT_ONLY or NEVER for every root, or None for what each root's record says.
        entry_hooks: `sys.path_hooks` as CPython sets it up: the zip importer, then `FileFinder`'s. Where that
            is not how it begins (None for one that is not there), others are asked what to make of a path.
        suffixes: every file suffix of this interpreter and its loader class, in `FileFinder`'s order.
    """

    def __init__(
        self,
        manifests: "Sequence[Manifest]",
        counts: "Counts",
        check: "int | None",
        entry_hooks: "tuple[Any, Any]",
        suffixes: "list[tuple[str, Any]]",
    ) -> None:
        self.manifests = manifests
        self.counts = counts
        self.check = check
        self.zip_hook, self.file_hook = entry_hooks
        self.suffixes = suffixes
        self.is_hooked = (
            False  # others have path hooks: a folder is ours once `PathFinder` has made a FileFinder
        )
        self.folders: dict[str, Folder] = {}
        self.search: SearchPath | None = None
        self.scattered: list[str] | None = None  # the `sys.path` that could not be made one table
        optimise = sys.flags.optimize
        self.cached_suffix = f".{sys.implementation.cache_tag}{f'.opt-{optimise}' if optimise else ''}.pyc"

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec `PathFinder` would return, or None to let it speak for itself."""
        try:
            return self._find(name, path)
        except Exception:
            self.counts.errors += 1
            return None

    def invalidate_caches(self) -> None:
        """Forget every folder: the next import asks the kernel again, whatever the check."""
        self.folders.clear()
        self.search = self.scattered = None
        for manifest in self.manifests:
            manifest.roots_checked.clear()

    def _find(self, name: str, path: "Sequence[str] | None") -> "ModuleSpec | None":
        counts = self.counts
        if is_import_system_patched():
            counts.defer("import system changed")
            return None
        hooks = sys.path_hooks
        self.is_hooked = len(hooks) < 2 or hooks[0] is not self.zip_hook or hooks[1] is not self.file_hook
        if name in LEFT_OUT:
            return None
        tail = name.rpartition(".")[2]
        if path is None:
            path = sys.path
            search = None if self.is_hooked else self._search_path()
            if search is not None:
                index = search.places.get(tail, -1)
                if index < 0:
                    # PathFinder asks every folder now, so we need not. If it finds something after all, that
                    # is seen at exit.
                    counts.absent.add(name)
                    counts.defer("not found")
                    return None
                if not search.watch.is_current(index + 1, sys.path_importer_cache):
                    self.search = None
                else:
                    folder = search.folders[index]
                    if folder.names is None:
                        spec: ModuleSpec | None = self._answer(name, tail, folder, folder.table[tail])
                        if spec is not MISSING:
                            return spec
            is_on_sys_path = True
        else:
            is_on_sys_path = False
        for entry in path:
            folder = self._folder(entry, is_on_sys_path)
            if folder is MISSING:
                continue
            if type(folder) is not Folder:
                if type(folder) is self.zip_hook and folder.find_spec(name) is None:
                    continue
                counts.defer("other importer")
                return None
            if folder.asks:
                folder.ask()
            at = folder.table.get(tail, -1)
            if folder.names is not None:
                mask = self._live_mask(folder.names, tail)
                if mask == 0:
                    continue
                if (
                    at < 0
                    or folder.records[at] & MASK != mask
                    or (mask & BARE_NAME and not folder.records[at] & IS_FOLDER)
                ):
                    self._unknown(name, folder, tail, mask)
                    return None
            elif at < 0:
                continue
            spec = self._answer(name, tail, folder, at)
            if spec is not MISSING:
                return spec
        counts.defer("not found")
        return None

    def _answer(self, name: str, tail: str, folder: Folder, at: int) -> "Any":
        """The spec of what `folder` offers under this name, None to leave it to `PathFinder`, or MISSING."""
        head = folder.records[at]
        if head & IS_FOLDER:
            if self.is_hooked:
                # The folder that holds it looks inside by itself: nobody is asked yet.
                path = folder.prefix + tail
                child = Folder(path, None, *self._block(path))
            else:
                child = self._folder(folder.prefix + tail, False)
            if type(child) is not Folder:
                self.counts.defer("other importer")
                return None
            if child.asks:
                child.ask()
            inner = child.table.get("__init__", -1)
            found = 0 if inner < 0 else child.records[inner] & MASK
            if child.names is not None:
                mask = self._live_mask(child.names, "__init__")
                if mask != found:
                    self._unknown(name, child, "__init__", mask)
                    return None
            if found > BARE_NAME:
                return self._spec(name, "__init__", child, inner, True)
            if not head & MASK & ~BARE_NAME:
                self.counts.defer("namespace package")
                return None
        if head & MASK & ~BARE_NAME:
            return self._spec(name, tail, folder, at, False)
        return MISSING

    def _search_path(self) -> "SearchPath | None":
        """`sys.path` as one table, if every entry of it is a folder or nothing at all."""
        search = self.search
        if search is not None and search.entries == sys.path:
            return search
        if self.scattered == sys.path:
            return None
        entries: list[Any] = list(sys.path)
        folders = []
        is_whole = True
        unknown = 0
        for entry in entries:
            # An empty entry is the current folder, which may be another one at the next import.
            folder = self._folder(entry, True) if isinstance(entry, str) and entry else None
            if type(folder) is Folder and folder.asks:
                folder.ask()
            if type(folder) is Folder:
                unknown += folder.manifest is None
            elif folder is not MISSING:
                is_whole = False
            folders.append(None if folder is MISSING else folder)
        if unknown > FEW:
            # A single script in a new folder is not worth a learner; a long path listed at each start is.
            self.counts.wanted["sys.path"] = ""
        self.scattered = None if is_whole else entries
        self.search = SearchPath(entries, folders, self.stems) if is_whole else None
        return self.search

    def stems(self, names: "set[str]") -> "set[str]":
        """Every name that `_live_mask` finds something for in this listing."""
        known = {suffix for suffix, _ in self.suffixes}
        split = (name.partition(".") for name in names)
        return {stem for stem, dot, rest in split if not dot or dot + rest in known}

    def _folder(self, entry: "Any", is_on_sys_path: bool) -> "Any":
        """A path entry's folder, as it was opened before unless its importer has changed; else as `_open`."""
        folder = self.folders.get(entry)
        if folder is not None and self._is_as_opened(entry, folder):
            return folder
        return self._open(entry, is_on_sys_path)

    def _is_as_opened(self, entry: str, folder: Folder) -> bool:
        """Whether `PathFinder` would still ask the same importer, or make the one that we spared."""
        importer = sys.path_importer_cache.get(entry)
        return importer is folder.importer and not (importer is None and self.is_hooked)

    def _unknown(self, name: str, folder: Folder, tail: str, mask: int) -> None:
        """Leave a module to `PathFinder` because the manifest does not know it as the folder lists it now."""
        bit = 2
        for suffix, _ in self.suffixes:
            if mask & bit:
                origin = f"{folder.prefix}{tail}{suffix}"
                if folder.manifest is None:
                    self.counts.defer_learnable("folder not known", name, origin)
                else:
                    self.counts.defer_stale("folder changed", name, origin)
                return
            bit <<= 1
        if tail != "__init__":
            # Only the bare name is there: a package that is new, or a namespace.
            child = Folder(folder.prefix + tail, None, None, True)
            child.ask()
            inner = self._live_mask(child.names or set(), "__init__")
            if inner > BARE_NAME:
                self._unknown(name, child, "__init__", inner)
                return
        self.counts.defer("namespace package")

    def _spec(self, name: str, tail: str, folder: Folder, at: int, is_package: bool) -> "ModuleSpec | None":
        counts = self.counts
        head = folder.records[at]
        if head & DEFER:
            counts.defer("left to Python")
            return None
        suffix, kind = self.suffixes[(head >> 16 & 0xFF) - 1]
        origin = f"{folder.prefix}{tail}{suffix}"
        # The listing says that the name is there; whether it is still a file only the kernel knows, once the
        # folder has changed or the name is a link.
        is_doubtful = folder.names is not None or (folder.asks and head & IS_SYMLINK)
        if (is_doubtful or (folder.asks and kind is ExtensionFileLoader)) and not is_regular_file(origin):
            counts.defer_stale("folder changed", name, origin)
            return None
        if kind is SourceFileLoader:
            if not head >> 32:
                counts.defer_learnable("no bytecode yet", name, origin)
                return None
            loader = VeloSourceLoader(name, origin)
            loader._folder = folder
            loader._at = at
            loader._counts = counts
            loader._cached = cached = f"{folder.cached}{tail}{self.cached_suffix}"
            spec = ModuleSpec(name, loader, origin=origin)
            if IMPORT_NAMES_CACHED and sys.pycache_prefix is None:
                spec._cached = cached  # type: ignore[attr-defined]
        elif kind is ExtensionFileLoader:
            spec = ModuleSpec(name, ExtensionFileLoader(name, origin), origin=origin)
            counts.native += 1
        else:
            counts.defer("sourceless module")
            return None
        spec._set_fileattr = True  # type: ignore[attr-defined]
        if is_package:
            spec.submodule_search_locations = [folder.path]
        return spec

    def _open(self, entry: "Any", is_on_sys_path: bool) -> "Any":
        """The folder of a path entry; MISSING if `PathFinder` would skip it, else an importer not ours."""
        if not isinstance(entry, str):
            return MISSING
        if entry == "":
            try:
                entry = getcwd()
            except FileNotFoundError:
                return MISSING
            known = self.folders.get(entry)
            if known is not None and self._is_as_opened(entry, known):
                return known
        importer = sys.path_importer_cache.get(entry, MISSING)
        is_sparing = importer is MISSING and not self.is_hooked
        block, asks = self._block(entry) if is_sparing else (None, True)
        if importer is MISSING and block is None and (is_on_sys_path or self.is_hooked):
            importer = PathFinder._path_importer_cache(entry)  # type: ignore[attr-defined]
        if importer is None:
            return MISSING
        path = entry
        if importer is MISSING:
            # PathFinder would make a FileFinder of it now. We spare that: the hooks are CPython's own.
            importer = None
        elif type(importer) is not FileFinder or vars(importer)["_loaders"] != self.suffixes:
            return importer
        else:
            known = self.folders.get(entry)
            if known is not None and known.path == importer.path:
                known.importer = importer  # PathFinder has made its own meanwhile; ours is as good as before
                return known
            path = importer.path
            block, asks = self._block(path)
        folder = Folder(path, importer, block, asks)
        self.folders[entry] = folder
        return folder

    def _block(self, path: str) -> "tuple[Block | None, bool]":
        """The first block whose stamp holds, else the first there is; and whether to ask on each use."""
        raw = path.encode(*mapping.ENCODING)
        known = []
        for manifest in self.manifests:
            try:
                block = manifest.block(raw)
                if block is not None:
                    known.append((block, self._asks(manifest, block.root)))
            except (Unusable, IndexError, ValueError):
                self.counts.errors += 1
        for block, asks in known if len(known) > 1 else ():
            if not asks or mapping.is_unchanged(path, -1, block.mtime, block.ctime, block.ino):
                return block, asks
        return known[0] if known else (None, True)

    def _asks(self, manifest: "Manifest", root: int) -> bool:
        """Whether folders of this root are compared with the kernel on each use."""
        path, check, mtime, ctime, _ = manifest.root(root)
        if self.check is not None:
            check = self.check
        if check == NEVER:
            return False
        if check != ROOT_ONLY:
            return True
        if root not in manifest.roots_checked:
            # No inode here: network file systems renumber on each mount.
            try:
                status = stat(path)
                manifest.roots_checked[root] = (status.st_mtime_ns, status.st_ctime_ns) == (mtime, ctime)
            except OSError:
                manifest.roots_checked[root] = False
        return not manifest.roots_checked[root]

    def _live_mask(self, names: "set[str]", tail: str) -> int:
        """The mask a manifest would record for this name in a folder that lists `names`."""
        mask = BARE_NAME if tail in names else 0
        bit = 2
        for suffix, _ in self.suffixes:
            if tail + suffix in names:
                mask |= bit
            bit <<= 1
        return mask

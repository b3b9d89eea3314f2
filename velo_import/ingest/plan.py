# SPDX-License-Identifier: Apache-2.0
"""What has to be done, out of what is there and what was known: pure, no clock, no disk.

A `Draft` is a manifest in the making: everything by path, so that parts of several can be put together;
`assemble` turns it into the records of format/manifest.py. The surprise: a module table describes a listing
and not packages. `pkg/__init__.py` is the module `__init__` of the folder `pkg`; the folder above only says
that `pkg` is a folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from velo_import.format.manifest import (
    DEFER,
    DIRECTORY,
    EXECUTABLE,
    IS_FOLDER,
    IS_SYMLINK,
    NEVER,
    NO_DIGEST,
    ROOT_ONLY,
    STAT,
    SYMBOLIC_LINK,
    TREE,
    Build,
    FileRecord,
    FolderRecord,
    Manifest,
    ModuleRecord,
    PackRecord,
    RootRecord,
    candidates,
)
from velo_import.host.filesystems import FileSystem

from .scan import FileEntry, Folder, Scan
from .secrets import is_secret
from .selection import EVERYTHING, Selection

SOURCE_SUFFIX = ".py"
BYTECODE_SUFFIX = ".pyc"
SOURCE_LIMIT = 32 << 20  # No hand wrote a larger module, and compiling one could take all memory.


class Code(NamedTuple):
    """Where the bytecode of one source lies, and the two checksums the hook may ask for."""

    pack: PackRecord
    offset: int
    length: int
    source_check: int
    bytecode_check: int

    @property
    def checks(self) -> tuple[int, int]:
        """What an image of this bytecode is known by."""
        return self.source_check, self.bytecode_check


class ModuleDraft(NamedTuple):
    """What a listing offers for one name; `path` is the file that wins, or empty."""

    tail: str
    mask: int
    flags: int
    suffix: int
    path: str


class FolderDraft(NamedTuple):
    """One folder that may stand on a search path."""

    path: str
    root: str
    mtime_ns: int
    ctime_ns: int
    ino: int
    modules: tuple[ModuleDraft, ...]


class Draft(NamedTuple):
    """A manifest in the making. All but `deferred` are keyed by path."""

    roots: dict[str, RootRecord]
    folders: dict[str, FolderDraft]
    files: dict[str, FileRecord]
    codes: dict[str, Code]
    deferred: set[str]  # Sources that can never be served as they are.

    @classmethod
    def empty(cls) -> Draft:
        return cls({}, {}, {}, {}, set())


class Unread(NamedTuple):
    """A file whose content has to be looked at: for the store, for its bytecode, or for both."""

    path: str
    entry: FileEntry
    is_content: bool
    is_source: bool
    is_guarded: bool = False  # Stored only if its content does not look like a secret.


class Plan(NamedTuple):
    """The draft as far as it is known without reading a file, and what remains to be done."""

    draft: Draft
    unread: tuple[Unread, ...]
    uncompiled: dict[str, FileEntry]  # Sources without bytecode, those still to be read among them.
    content: dict[str, bool]  # Files whose content belongs into the store, read or not -> is it guarded.
    secrets: list[str]  # Files left out of the store because their names look like secrets.
    excluded: int  # Files left out because the user says so.


def default_check(kind: int, filesystem: FileSystem) -> int:
    """How a root's freshness is checked when nobody says otherwise."""
    if filesystem.immutable:
        return NEVER
    # In a project on a network disk an edit in place must win at once: it changes no folder's stamp.
    return ROOT_ONLY if filesystem.network and kind != TREE else STAT


def draft_of(manifest: Manifest, usable_packs: Iterable[PackRecord] | None = None) -> Draft:
    """A published manifest by path; bytecode in packs that are not usable (default: all are) is forgotten."""
    usable = set(manifest.packs if usable_packs is None else usable_packs)
    draft = Draft.empty()
    draft.files.update((record.path, record) for record in manifest.files)
    draft.roots.update((root.path, root) for root in manifest.roots)
    for folder in manifest.folders:
        modules = []
        for module in folder.modules:
            path = manifest.files[module.file].path if module.file >= 0 else ""
            flags = module.flags
            if path and flags & DEFER:
                draft.deferred.add(path)
                flags &= ~DEFER
            if path and module.pack >= 0 and manifest.packs[module.pack] in usable:
                draft.codes[path] = Code(
                    manifest.packs[module.pack],
                    module.offset,
                    module.length,
                    module.source_check,
                    module.bytecode_check,
                )
            modules.append(ModuleDraft(module.tail, module.mask, flags, module.suffix, path))
        draft.folders[folder.path] = FolderDraft(
            folder.path,
            manifest.roots[folder.root].path,
            folder.mtime_ns,
            folder.ctime_ns,
            folder.ino,
            tuple(modules),
        )
    return draft


def plan_ingest(
    scan: Scan,
    known: Draft,
    build: Build,
    *,
    content_below: str = "",
    checks: Mapping[str, int],
    wanted: Sequence[str] | None = None,
    force: bool = False,
    selection: Selection = EVERYTHING,
) -> Plan:
    """Compare a scan with what was known.

    Args:
        known: the draft of the previous manifest; a file with the stamp recorded there is not read again.
        content_below: files in or below this folder go into the store; no others do.
        checks: area path -> the check its root gets.
        wanted: compile only these sources (learning); None compiles all.
        force: believe no recorded stamp.
        selection: files that it leaves out are neither stored nor served.
    """
    planner = _Planner(
        scan, known, build, content_below, None if wanted is None else frozenset(wanted), force, selection
    )
    for folder in scan.folders:
        planner.add_folder(folder)
    for folder in scan.folders:
        area = scan.areas[folder.area]
        if folder.path == area.path and area.kind is not None:
            planner.draft.roots[area.path] = RootRecord(
                area.path, area.kind, checks[area.path], folder.mtime_ns, folder.ctime_ns, folder.ino
            )
    return planner.plan()


class _Planner:
    def __init__(
        self,
        scan: Scan,
        known: Draft,
        build: Build,
        content_below: str,
        wanted: frozenset[str] | None,
        force: bool,
        selection: Selection,
    ) -> None:
        self.scan = scan
        self.known = known
        self.suffixes = build.suffixes
        self.content_prefix = content_below and content_below.rstrip("/") + "/"
        self.wanted = wanted
        self.force = force
        self.selection = selection
        self.draft = Draft.empty()
        self.unread: list[Unread] = []
        self.uncompiled: dict[str, FileEntry] = {}
        self.content: dict[str, bool] = {}
        self.secrets: list[str] = []
        self.excluded = 0

    def plan(self) -> Plan:
        return Plan(
            self.draft, tuple(self.unread), self.uncompiled, self.content, self.secrets, self.excluded
        )

    def add_folder(self, folder: Folder) -> None:
        prefix = folder.path.rstrip("/") + "/"
        is_content = bool(self.content_prefix) and prefix.startswith(self.content_prefix)
        if not is_content and not folder.importable:
            return
        area = self.scan.areas[folder.area]
        self.draft.files[folder.path] = FileRecord(
            folder.path, NO_DIGEST, 0, folder.mtime_ns, folder.ctime_ns, folder.ino, folder.mode, DIRECTORY
        )
        files, asked_for = self._taken(folder, prefix)
        winners: dict[str, ModuleDraft] = {}
        if folder.importable:
            modules = self._modules(folder, files, prefix)
            self.draft.folders[folder.path] = FolderDraft(
                folder.path, area.path, folder.mtime_ns, folder.ctime_ns, folder.ino, modules
            )
            winners = {module.path: module for module in modules if module.path}
        is_guarded = is_content and area.kind == TREE
        below_area = len(area.path.rstrip("/")) + 1
        for entry in files.values():
            path = prefix + entry.name
            if path in self.scan.changing:
                continue
            keep = is_content
            guard = is_guarded and path not in asked_for
            if guard and is_secret(path[below_area:]):
                self.secrets.append(path)
                keep = False
            if keep:
                self.content[path] = guard
            if keep or path in winners:
                is_source = path in winners and entry.name.endswith(SOURCE_SUFFIX)
                self._add_file(path, entry, keep, is_source)

    def _taken(self, folder: Folder, prefix: str) -> tuple[dict[str, FileEntry], frozenset[str]]:
        """The files that are not left out, by name; and the paths of those that the user asked for."""
        files = {entry.name: entry for entry in folder.files}
        if self.selection.is_empty:
            return files, frozenset()
        verdicts = {name: self.selection.verdict(prefix + name) for name in files}
        self.excluded += sum(verdict is False for verdict in verdicts.values())
        taken = {name: entry for name, entry in files.items() if verdicts[name] is not False}
        return taken, frozenset(prefix + name for name, verdict in verdicts.items() if verdict)

    def _modules(self, folder: Folder, files: dict[str, FileEntry], prefix: str) -> tuple[ModuleDraft, ...]:
        below = {*folder.folders, *folder.links}
        links = set(folder.links)
        modules = []
        for tail, mask in candidates(folder.names(), self.suffixes).items():
            flags = 0
            if mask & 1 and tail in below:
                flags |= IS_FOLDER | (IS_SYMLINK if tail in links else 0)
            suffix, path = -1, ""
            if mask > 1:
                suffix = (mask >> 1 & -(mask >> 1)).bit_length() - 1
                entry = files.get(tail + self.suffixes[suffix])
                if entry is None:
                    # A folder called `x.py`, or a broken link: Python goes on to the next suffix. Or a file
                    # that is left out: Python looks after it.
                    flags |= DEFER
                else:
                    path = prefix + entry.name
                    flags |= IS_SYMLINK if entry.is_link else 0
                    if self.suffixes[suffix] == BYTECODE_SUFFIX:
                        self.draft.deferred.add(path)
            modules.append(ModuleDraft(tail, mask, flags, suffix, path))
        return tuple(modules)

    def _add_file(self, path: str, entry: FileEntry, is_content: bool, is_source: bool) -> None:
        if is_source and entry.size > SOURCE_LIMIT:
            self.draft.deferred.add(path)
            is_source = False
        record = self.known.files.get(path)
        if self.force or record is None or not is_same_file(record, entry):
            record = None
        if is_source and self._needs_code(path, entry, record is not None):
            self.uncompiled[path] = entry
        needs_digest = is_content or path in self.uncompiled
        if record is not None and not (needs_digest and record.digest == NO_DIGEST):
            self.draft.files[path] = record
        else:
            self.draft.files[path] = file_record(path, entry)
        if path in self.uncompiled or (needs_digest and self.draft.files[path].digest == NO_DIGEST):
            guard = self.content.get(path, False)
            self.unread.append(Unread(path, entry, is_content, is_source, guard))

    def _needs_code(self, path: str, entry: FileEntry, is_known: bool) -> bool:
        """Whether a source has to be compiled; what is known of it goes into the draft."""
        if is_known and path in self.known.codes:
            self.draft.codes[path] = self.known.codes[path]
            return False
        if is_known and path in self.known.deferred:
            self.draft.deferred.add(path)
            return False
        return self.wanted is None or path in self.wanted


def is_same_file(record: FileRecord, entry: FileEntry) -> bool:
    return (
        record.size == entry.size
        and record.mtime_ns == entry.mtime_ns
        and record.ctime_ns == entry.ctime_ns
        and record.ino == entry.ino
    )


def file_record(path: str, entry: FileEntry, digest: bytes = NO_DIGEST) -> FileRecord:
    flags = (SYMBOLIC_LINK if entry.is_link else 0) | (EXECUTABLE if entry.mode & 0o111 else 0)
    return FileRecord(path, digest, entry.size, entry.mtime_ns, entry.ctime_ns, entry.ino, entry.mode, flags)


def carry_over(draft: Draft, previous: Draft, scanned: Iterable[str], still_there: Sequence[str]) -> None:
    """Add to `draft` what `previous` holds outside of what was scanned, in folders that are still there."""
    prefixes = tuple(path.rstrip("/") + "/" for path in scanned)
    roots = {
        path: root
        for path, root in previous.roots.items()
        if path in set(still_there) and not f"{path}/".startswith(prefixes)
    }
    draft.roots.update(roots)
    # Not only roots: of an environment, also what is in no folder of its search path.
    kept = tuple(path.rstrip("/") + "/" for path in still_there if not f"{path}/".startswith(prefixes))
    for path, record in previous.files.items():
        place = f"{path}/"
        if place.startswith(kept) and not place.startswith(prefixes):
            draft.files[path] = record
            if path in previous.codes:
                draft.codes[path] = previous.codes[path]
            if path in previous.deferred:
                draft.deferred.add(path)
    for path, folder in previous.folders.items():
        if folder.root in roots and not f"{path}/".startswith(prefixes):
            draft.folders[path] = folder


def keep_content(draft: Draft, previous: Draft, scan: Scan, target: str) -> None:
    """Keep what an earlier ingest recorded in folders that this one went through for their modules only.

    What has changed there since is recorded without a digest: nobody has read it.
    """
    prefix = target.rstrip("/") + "/"
    for folder in scan.folders:
        place = folder.path.rstrip("/") + "/"
        if place.startswith(prefix) or folder.path not in previous.files:
            continue
        draft.files.setdefault(folder.path, previous.files[folder.path])
        for entry in folder.files:
            record = previous.files.get(place + entry.name)
            if record is not None and record.path not in draft.files:
                is_same = stat.S_ISLNK(record.mode) or is_same_file(record, entry)
                draft.files[record.path] = record if is_same else file_record(record.path, entry)
        for name in (*folder.links, *folder.others):
            record = previous.files.get(place + name)
            if record is not None and record.link:
                draft.files.setdefault(record.path, record)


def outermost(draft: Draft) -> list[str]:
    """The folders that no other recorded folder holds."""
    folders = {path for path, record in draft.files.items() if record.flags & DIRECTORY}
    return sorted(path for path in folders if os.path.dirname(path) not in folders)


def entry_of_record(record: FileRecord) -> FileEntry:
    """The scan's view of a recorded file."""
    return FileEntry(
        os.path.basename(record.path),
        record.size,
        record.mtime_ns,
        record.ctime_ns,
        record.ino,
        record.mode,
        bool(record.flags & SYMBOLIC_LINK),
    )


def with_other(first: Draft, other: Draft) -> Draft:
    """Both drafts' knowledge of files; where both know one, the one with bytecode for it counts."""
    files = dict(first.files)
    for path, record in other.files.items():
        if path not in files or path in other.codes:
            files[path] = record
    codes = {path: code for path, code in first.codes.items() if files[path] == first.files[path]}
    codes.update(other.codes)
    deferred = {path for path in first.deferred if files.get(path) == first.files.get(path)} | other.deferred
    return Draft(first.roots, first.folders, files, codes, deferred)


def only_folders(draft: Draft, folders: dict[str, FolderDraft]) -> Draft:
    """The part of a draft that these folders need."""
    paths = set(folders)
    roots = {folder.root for folder in folders.values()}
    for folder in folders.values():
        paths.update(module.path for module in folder.modules if module.path)
    return Draft(
        {path: root for path, root in draft.roots.items() if path in roots},
        dict(folders),
        {path: record for path, record in draft.files.items() if path in paths},
        {path: code for path, code in draft.codes.items() if path in paths},
        draft.deferred & paths,
    )


def assemble(draft: Draft, build: Build, prefix: str) -> Manifest:
    """The manifest that a draft describes; equal drafts give equal manifests, however they came about."""
    roots = sorted(draft.roots.values(), key=lambda root: os.fsencode(root.path))
    root_index = {root.path: index for index, root in enumerate(roots)}
    files = sorted(draft.files.values(), key=lambda record: os.fsencode(record.path))
    file_index = {record.path: index for index, record in enumerate(files)}
    packs: dict[PackRecord, int] = {}
    folders = []
    for folder in sorted(draft.folders.values(), key=lambda folder: os.fsencode(folder.path)):
        modules = []
        for tail, mask, flags, suffix, path in folder.modules:
            code = draft.codes.get(path) if path else None
            if path in draft.deferred:
                flags |= DEFER
            if code is None or flags & DEFER:
                modules.append(ModuleRecord(tail, mask, flags, suffix, file_index.get(path, -1)))
                continue
            pack = packs.setdefault(code.pack, len(packs))
            modules.append(
                ModuleRecord(
                    tail,
                    mask,
                    flags,
                    suffix,
                    file_index[path],
                    pack,
                    code.offset,
                    code.length,
                    code.source_check,
                    code.bytecode_check,
                )
            )
        folders.append(
            FolderRecord(
                folder.path,
                root_index[folder.root],
                folder.mtime_ns,
                folder.ctime_ns,
                folder.ino,
                tuple(modules),
            )
        )
    return Manifest(build, prefix, roots, folders, files, list(packs))

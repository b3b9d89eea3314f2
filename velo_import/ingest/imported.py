# SPDX-License-Identifier: Apache-2.0
"""The folders that a program imported from, listed again.

Knows which folders the notes of a program mean, and which of those that earlier programs taught have to be
looked at once more; what becomes of them is learning.py's. The surprise: a search meets folders that no
module came from (the parts of namespace packages), and a miss in these has to be known as well.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from velo_import.format.manifest import ROOT_ONLY, TREE
from velo_import.host.filesystems import filesystem_of

from .notes import Notes
from .plan import Draft, FolderDraft
from .scan import Area, Scan, area_kind, scan


def look(notes: Notes, upper: Draft) -> tuple[Scan, dict[str, FolderDraft]]:
    """List this program's folders and those of earlier ones that have changed; carry the others over."""
    roots = [path for path in notes.path if os.path.isdir(path)]
    folders, own_roots = _folders_of(notes, roots)
    areas = [Area(path, area_kind(path, notes.stdlib)) for path in roots]
    areas += [Area(path, TREE) for path in own_roots]
    carried: dict[str, FolderDraft] = {}
    known_areas = {area.path for area in areas}
    for path, folder in upper.folders.items():
        if path in folders or not os.path.isdir(path):
            continue
        root = upper.roots[folder.root]
        if _is_unchanged(folder) and not (root.check == ROOT_ONLY and root.path in known_areas):
            carried[path] = folder
        elif os.path.isdir(root.path):
            folders[path] = root.path
            if root.path not in known_areas:
                known_areas.add(root.path)
                areas.append(Area(root.path, root.kind))
                folders.setdefault(root.path, root.path)
    index = {area.path: number for number, area in enumerate(areas)}
    found = _scan(notes, areas, {path: index[root] for path, root in folders.items()})
    return _with_search_path(notes, found, roots, index), carried


def _scan(notes: Notes, areas: Sequence[Area], only: dict[str, int]) -> Scan:
    slow = any(filesystem_of(area.path).network for area in areas)
    return scan(areas, slow=slow, only=only, suffixes=notes.build.suffixes)


def _with_search_path(notes: Notes, found: Scan, roots: list[str], index: dict[str, int]) -> Scan:
    """Add the folders that a search met though no module came from them: namespace packages."""
    listed = {folder.path: folder for folder in found.folders}
    spots: dict[str, list[str]] = {"": roots}
    names: set[str] = set()
    for name, origin in notes.modules:
        if os.path.basename(origin).startswith("__init__."):
            spots.setdefault(name, []).append(os.path.dirname(origin))
        while name:
            names.add(name)
            name = name.rpartition(".")[0]
    by_depth: dict[int, list[str]] = {}
    for name in names:
        by_depth.setdefault(name.count("."), []).append(name)
    for depth in sorted(by_depth):
        missing: dict[str, int] = {}
        for name in by_depth[depth]:
            parent, _, tail = name.rpartition(".")
            for place in spots.get(parent, ()):
                folder = listed.get(place)
                if folder is not None and (tail in folder.folders or tail in folder.links):
                    child = f"{place.rstrip('/')}/{tail}"
                    if child not in spots.setdefault(name, []):
                        spots[name].append(child)
                    if child not in listed:
                        missing[child] = index.get(child, folder.area)
        more = _scan(notes, found.areas, missing)
        listed.update((folder.path, folder) for folder in more.folders)
        found = found._replace(
            folders=found.folders + more.folders,
            unreadable=found.unreadable + more.unreadable,
            unsettled=found.unsettled + more.unsettled,
        )
    return found


def _folders_of(notes: Notes, roots: list[str]) -> tuple[dict[str, str], list[str]]:
    """The folders to list -> their root: every root, every folder a module came from, and all between.

    A module from outside of the search path (a `__path__` that was extended) brings a root of its own; those
    are returned as well.
    """
    folders = {path: path for path in roots}
    own_roots: dict[str, None] = {}
    for _, origin in notes.modules:
        folder = os.path.dirname(origin)
        if folder in folders:
            continue
        above = [root for root in (*roots, *own_roots) if folder.startswith(root.rstrip("/") + "/")]
        root = max(above, key=len, default=folder)
        if not above:
            own_roots[folder] = None
        while folder != root:
            folders.setdefault(folder, root)
            folder = os.path.dirname(folder)
        folders.setdefault(root, root)
    return folders, list(own_roots)


def _is_unchanged(folder: FolderDraft) -> bool:
    try:
        status = os.stat(folder.path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and (
        (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        == (folder.mtime_ns, folder.ctime_ns, folder.ino)
    )

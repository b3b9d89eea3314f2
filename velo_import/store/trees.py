# SPDX-License-Identifier: Apache-2.0
"""Trees of what a manifest describes (FORMAT.md, section 7).

Knows vnodes; the bytes of nodes are format/tree.py's, content is reading.py's. Its surprise: a manifest can
describe several folders (an environment, a project, the standard library), and each has a tree of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from ..format import manifest as m
from ..format import tree as t


class Grown(NamedTuple):
    """A tree that was just made."""

    tree: t.Tree
    encoded: dict[bytes, bytes]  # The bytes of its nodes, by id.
    left_out: list[str]  # Paths whose content nobody recorded: unreadable, changing, or not asked for.


def own_folders(manifest: m.Manifest) -> list[str]:
    """The topmost folders that a manifest describes, without the standard library."""
    stdlib = tuple(_inside(root.path) for root in manifest.roots if root.kind == m.STDLIB)
    folders = {record.path for record in manifest.files if record.flags & m.DIRECTORY}
    found = {root.path for root in manifest.roots if root.kind != m.STDLIB} & folders
    found |= {
        path
        for path in folders
        if os.path.dirname(path) not in folders and not _inside(path).startswith(stdlib)
    }
    return sorted(path for path in found if not any(_is_below(path, other) for other in found))


def tree_of_manifest(manifest: m.Manifest, folder: str, *, times: bool = False) -> Grown:
    """The tree of one folder as a manifest describes it.

    Args:
        times: keep the mtimes of files, which makes the id differ wherever they do.

    Raises:
        StoreCorrupt: the manifest describes something that cannot be.
    """
    left_out: list[str] = []
    tree, encoded = t.build(_entries_below(manifest, _inside(folder), times, left_out))
    return Grown(tree, encoded, left_out)


def _entries_below(
    manifest: m.Manifest, prefix: str, times: bool, left_out: list[str]
) -> Iterator[tuple[bytes, t.Entry]]:
    links = {record.path for record in manifest.files if record.link}
    behind: dict[str, bool] = {}
    for record in manifest.files:
        if not record.path.startswith(prefix):
            continue
        # A search path may lead through a link; what is behind it belongs to the folder it leads to.
        parent = os.path.dirname(record.path)
        if parent not in behind:
            behind[parent] = _is_behind(parent, links, len(prefix))
        if behind[parent]:
            continue
        path = os.fsencode(record.path[len(prefix) :])
        if record.flags & m.DIRECTORY:
            yield path, t.Entry(t.FOLDER)
        elif record.link:
            yield path, t.Entry(t.LINK, target=os.fsencode(record.link))
        elif record.digest == m.NO_DIGEST:
            left_out.append(record.path)
        else:
            kind = t.EXECUTABLE if record.flags & m.EXECUTABLE else t.FILE
            mtime = record.mtime_ns if times else None
            yield path, t.Entry(kind, record.digest, record.size, mtime_ns=mtime)


def _is_behind(folder: str, links: set[str], stop: int) -> bool:
    while len(folder) >= stop:
        if folder in links:
            return True
        folder = os.path.dirname(folder)
    return False


def _inside(folder: str) -> str:
    return folder.rstrip("/") + "/"


def _is_below(path: str, folder: str) -> bool:
    return path != folder and path.startswith(_inside(folder))

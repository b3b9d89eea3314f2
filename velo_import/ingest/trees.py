# SPDX-License-Identifier: Apache-2.0
"""The tree of a folder as it is now: what an ingest would take in, without what it would leave out.

Knows the rules of an ingest and reads every file; what is compared with it is store/trees.py's. So the tree
of a folder that was ingested and not touched since is the tree of its manifest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from blake3 import blake3

from velo_import.errors import VeloError
from velo_import.format import tree as t
from velo_import.format.manifest import TREE
from velo_import.host.files import open_quietly, pieces
from velo_import.store.trees import Grown

from .scan import Area, Folder, scan
from .secrets import is_key, is_secret

_HINT = "a tree needs every file of a folder"


def tree_of_folder(folder: str, kind: int | None, *, times: bool = False) -> Grown:
    """Read a folder and make its tree.

    Args:
        kind: what an ingest would take it for; None leaves out nothing but `__pycache__`.
        times: keep the mtimes of files.

    Raises:
        VeloError: it is no folder, or something in it cannot be read or keeps changing.
    """
    scanned = scan([Area(folder.rstrip("/") or "/", kind)])
    for path, reason in scanned.unreadable:
        raise VeloError(f"cannot read {path}: {reason.lower()}", hint=_HINT)
    for path in (*scanned.unsettled, *sorted(scanned.changing)):
        raise VeloError(f"{path} keeps changing", hint="try again when it is at rest")
    left_out: list[str] = []
    prefix = len(folder.rstrip("/")) + 1
    entries = (
        entry
        for listed in scanned.folders
        for entry in _entries(listed, prefix, kind == TREE, times, left_out)
    )
    try:
        tree, encoded = t.build(entries)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise VeloError(f"cannot read {os.fsdecode(error.filename)}: {reason}", hint=_HINT) from error
    return Grown(tree, encoded, left_out)


def _entries(
    folder: Folder, prefix: int, is_project: bool, times: bool, left_out: list[str]
) -> Iterator[tuple[bytes, t.Entry]]:
    place = folder.path.rstrip("/") + "/"
    if len(place) > prefix:
        yield os.fsencode(folder.path[prefix:]), t.Entry(t.FOLDER)
    plain = [entry.name for entry in folder.files if not entry.is_link]
    links = [entry.name for entry in folder.files if entry.is_link]
    for name in plain:
        path = place + name
        if not (is_project and is_secret(path[prefix:])):
            entry = _read(path, is_project, times)
            if entry is not None:
                yield os.fsencode(path[prefix:]), entry
    for name in (*links, *folder.links, *folder.others):
        path = place + name
        if not os.path.islink(path):
            left_out.append(path)
        elif not (is_project and is_secret(path[prefix:])):
            yield os.fsencode(path[prefix:]), t.Entry(t.LINK, target=os.fsencode(os.readlink(path)))


def _read(path: str, is_project: bool, times: bool) -> t.Entry | None:
    """A file's entry; None if its content is a key."""
    descriptor = open_quietly(path)
    try:
        hasher = blake3()
        size = 0
        for piece, _ in pieces(descriptor):
            if is_project and not size and is_key(bytes(piece)):
                return None
            hasher.update(piece)
            size += len(piece)
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    kind = t.EXECUTABLE if status.st_mode & 0o111 else t.FILE
    return t.Entry(kind, hasher.digest(), size, mtime_ns=status.st_mtime_ns if times else None)

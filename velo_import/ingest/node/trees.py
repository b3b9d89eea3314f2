# SPDX-License-Identifier: Apache-2.0
"""Whole trees of Node modules, ahead of time: every file below a folder that some program may require.

Knows which folders and files these are; learning them is learning.py's, without a program being run. The
surprise: the folder that counts is the one that holds `node_modules`, whichever of the two is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from velo_import.errors import UsageFault
from velo_import.format.node import TREE, index_name
from velo_import.host.locks import exclusive
from velo_import.store import leases
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store

from ..owner import shown
from .interpreters import Node
from .learning import NodeSummary, learn_from, unchanged_files
from .notes import Notes
from .resolve import MODULES

SUFFIXES = (".js", ".cjs", ".json")
MOST_FILES = 100_000
LOCK_PATIENCE = 600.0


def is_modules(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is what `npm install` makes."""
    return os.path.basename(os.path.abspath(folder)) == MODULES and os.path.isdir(folder)


def holds_modules(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is that, or holds it."""
    return is_modules(folder) or os.path.isdir(os.path.join(folder, MODULES))


def ingest_node(
    target: Path,
    node: Node,
    store: Store,
    *,
    jobs: int,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> NodeSummary:
    """Learn all modules below a folder for one Node; what has not changed is not read again, unless forced.

    Raises:
        UsageFault: nothing is installed there, or there are too many files.
        VeloError: that Node or the store cannot be used.
    """
    folder = os.path.realpath(target)
    if os.path.basename(folder) == MODULES:
        folder = os.path.dirname(folder)
    if not holds_modules(folder):
        raise UsageFault(f"{shown(folder)} has no {MODULES}", hint="install its packages first")
    files = list(islice(modules_below(folder), MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise UsageFault(f"{shown(folder)} has more than {MOST_FILES} modules", hint="ingest a part of it")
    name = index_name(TREE, node.identity, folder)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(f"Node {node.version}", done, len(files))

    with (
        exclusive(store.run / f"{name}.lock", wait=LOCK_PATIENCE),
        leases.shared(store),
        Catalog.open(store) as catalog,
    ):
        known = set() if force else unchanged_files(store, name)
        files = [path for path in files if path not in known]
        notes = Notes(node.identity, folder, node.executable, (), (), (), tuple(files), (), {})
        return learn_from(notes, store, catalog, kind=TREE, jobs=jobs, advance=advance)


def modules_below(folder: str) -> Iterator[str]:
    """The files that a program may require, in the order of their names; no link is followed, because Node
    asks for what is behind one by its own name.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") or _is_store(place, name))
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.endswith(SUFFIXES) and not os.path.islink(path) and _is_text(path):
                yield path


def _is_store(place: str, name: str) -> bool:
    """pnpm keeps the packages in a folder with a dot, and links to them."""
    return name == ".pnpm" and os.path.basename(place) == MODULES


def _is_text(path: str) -> bool:
    """The worker is given lines of UTF-8."""
    return path.isprintable()

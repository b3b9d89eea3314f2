# SPDX-License-Identifier: Apache-2.0
"""Learning what is installed: the folders of a search path as the interpreter's own `importlib.metadata` sees
them.

Knows which folders are kept; the looking is done by metadata_worker.py, in a process of that interpreter.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from velo_import.errors import StoreCorrupt, VeloError
from velo_import.format.distributions import (
    ANY_SIZE,
    MOST_ROOTS,
    Distribution,
    Root,
    Stamp,
    Table,
    decode_distributions,
    encode_distributions,
)
from velo_import.format.manifest import Build
from velo_import.host.files import read_file
from velo_import.host.filesystems import filesystem_of
from velo_import.store.layout import Store

from .plan import default_check
from .publish import publish_manifest
from .scan import area_kind

MOST_KEPT = 64  # Folders of one environment; what was learned first goes.
PATIENCE_SECONDS = 60
assert MOST_KEPT <= MOST_ROOTS


def distributions_path(store: Store, key: str) -> Path:
    """Where the table of an environment is."""
    return store.manifest_folder(key) / "metadata.table"


def learn_distributions(
    store: Store, key: str, build: Build, executable: str, path: Iterable[str], stdlib: tuple[str, ...]
) -> bool:
    """Look at these folders and keep what is in them beside what was learned before; whether that changed
    anything.

    Raises:
        VeloError: the interpreter cannot do the work.
        OSError: the store cannot be written.
    """
    target = distributions_path(store, key)
    try:
        old = decode_distributions(read_file(target))
    except (OSError, StoreCorrupt):
        old = Table(b"", ())
    folders = [entry for entry in path if os.path.isdir(entry)]
    current = {root.path for root in old.roots if is_current(root)}
    if old.identity.startswith(build.identity() + b"\0") and current.issuperset(folders):
        return False
    version, roots = _asked(executable, folders, stdlib)
    identity = build.identity() + b"\0" + version.encode()
    kept = {root.path: root for root in old.roots} if old.identity == identity else {}
    for root in roots:
        kept.pop(root.path, None)
        kept[root.path] = root
    table = Table(identity, tuple(kept.values())[-MOST_KEPT:])
    return publish_manifest(target, encode_distributions(table))


def is_current(root: Root) -> bool:
    """Whether the folder and all that was read of it still have their stamps."""
    try:
        status = os.stat(root.path)
        if (status.st_mtime_ns, status.st_ctime_ns, status.st_ino) != root[3:6]:
            return False
        for each in root.distributions:
            folder = f"{root.path}/{each.child}"
            is_there = each.entry_points_file[3] != ANY_SIZE
            if not _has_stamp(f"{folder}/entry_points.txt" if is_there else folder, each.entry_points_file):
                return False
            if any(each.metadata) and not _has_stamp(f"{folder}/METADATA", each.metadata):
                return False
    except OSError:
        return False
    return True


def _has_stamp(path: str, stamp: Stamp) -> bool:
    status = os.stat(path)
    size = ANY_SIZE if stamp[3] == ANY_SIZE else status.st_size
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, size) == stamp


def _asked(executable: str, folders: list[str], stdlib: tuple[str, ...]) -> tuple[str, list[Root]]:
    """The interpreter's `sys.version`, and what it found."""
    worker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "metadata_worker.py")
    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-B", worker],
            input=b"".join(os.fsencode(folder) + b"\0" for folder in folders),
            env={**os.environ, "VELO_DISABLE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
        texts = iter(done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1])
        return next(texts), list(_roots(texts, stdlib))
    except (OSError, subprocess.SubprocessError, ValueError, StopIteration) as error:
        raise VeloError(
            f"{executable} could not say what is installed: {error}",
            hint="run `velo doctor` in that environment",
        ) from error


def _roots(texts: Iterator[str], stdlib: tuple[str, ...]) -> Iterator[Root]:
    for mark in texts:
        if mark != "root":
            raise ValueError("the answer is not whole")
        path, mtime, ctime, ino, left, count = _next(texts, 6)
        check = default_check(area_kind(path, stdlib), filesystem_of(path))
        found = tuple(_distribution(texts) for _ in range(int(count)))
        yield Root(path, check, left == "1", int(mtime), int(ctime), int(ino), found)


def _distribution(texts: Iterator[str]) -> Distribution:
    child, normalized, name, version = _next(texts, 4)
    stamps = tuple(map(int, _next(texts, 8)))
    (count,) = _next(texts, 1)
    points = tuple(_next(texts, 3 * int(count)))
    metadata, beside = stamps[:4], stamps[4:]
    return Distribution(child, normalized, name, version, metadata, beside, points)  # type: ignore[arg-type]


def _next(texts: Iterator[str], count: int) -> list[str]:
    taken = [text for _, text in zip(range(count), texts, strict=False)]
    if len(taken) != count:
        raise ValueError("the answer is not whole")
    return taken

# SPDX-License-Identifier: Apache-2.0
"""The cells: conditions under which all arms are compared. Cells are never averaged together.

A cell says which environment programs start from, which variables every arm gets, and what happens around
each single run (files evicted, a file system mounted). It does not know the arms.

The surprise: in the slow file system's cell each run has its own mount, so that a run cannot profit from
what the run before it made the kernel remember.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import pagecache, slowfs
from bench.environment import Environment, build, check_bare
from bench.interpreters import Interpreter
from bench.measure import BenchmarkFault

NAMES = ("warm", "nopyc", "cold", "slowfs-0.3ms", "slowfs-1ms", "path50")
ALIASES: Mapping[str, tuple[str, ...]] = {"slowfs": ("slowfs-0.3ms", "slowfs-1ms"), "all": NAMES}
_PATH_FOLDERS = 50
_RESIDUE_ALLOWED = 0.01


@dataclass
class Cell:
    """One cell, ready to be measured."""

    name: str
    conditions: str
    environment: Environment
    variables: Mapping[str, str] = field(default_factory=dict)
    around: Callable[[], contextlib.AbstractContextManager[dict[str, int]]] = field(
        default=lambda: contextlib.nullcontext({})
    )
    prove: Callable[[], None] = field(default=lambda: None)


def expand(request: str) -> list[str]:
    """`warm,slowfs` -> the names of the cells, in the order asked for."""
    chosen: list[str] = []
    for word in request.split(","):
        for name in ALIASES.get(word, (word,)):
            if name not in NAMES:
                raise BenchmarkFault(f"no cell called {name}; there are {', '.join(NAMES)}")
            if name not in chosen:
                chosen.append(name)
    return chosen


def prepare(
    name: str,
    work: Path,
    interpreter: Interpreter,
    store: Path,
    extra_files: Sequence[Path],
    packages: bool = True,
) -> Cell:
    """Make a cell ready; raises slowfs.Unavailable when this machine cannot.

    `store` is Velo's folder; `extra_files` are roots of the launcher. Only `cold` cares for them.
    Without `packages` the environment is empty: for programs that need the standard library alone.
    """
    if name == "nopyc":
        bare = build(work, interpreter, "bare" if packages else "empty")
        variables = {"PYTHONDONTWRITEBYTECODE": "1"}
        text = "no .pyc in site-packages, PYTHONDONTWRITEBYTECODE=1 in every arm; standard library compiled"
        return Cell(name, text, bare, variables, prove=lambda: check_bare(bare))
    compiled = build(work, interpreter, "pyc" if packages else "empty")
    if name == "cold":
        return _cold(compiled, store, extra_files)
    if name.startswith("slowfs"):
        return _slow(name, work, compiled)
    if name == "path50":
        folders = ":".join(map(str, _path_folders(work / "path50")))
        text = (
            f"{_PATH_FOLDERS} extra folders with four files each on PYTHONPATH; page cache warm, .pyc present"
        )
        return Cell(name, text, compiled, {"PYTHONPATH": folders})
    return Cell(name, "page cache warm, .pyc present", compiled)


def _cold(environment: Environment, store: Path, extra_files: Sequence[Path]) -> Cell:
    interpreter = environment.interpreter
    roots = [environment.prefix, interpreter.stdlib, interpreter.executable, *extra_files]
    roots += [interpreter.library] if interpreter.library else []
    fixed: list[Path] = []

    @contextlib.contextmanager
    def around() -> Iterator[dict[str, int]]:
        if not fixed:
            fixed.extend(pagecache.files_below(roots))
        paths = fixed + pagecache.files_below([store])  # the store grows while it learns
        os.sync()
        pagecache.evict(paths)
        left = pagecache.residency(paths)
        if left.share > _RESIDUE_ALLOWED and pagecache.drop_everything():
            left = pagecache.residency(paths)
        yield {"evicted_files": left.files, "resident_pages": left.resident, "pages": left.pages}

    text = (
        "page cache of environment, standard library, interpreter, launcher and store dropped before each run"
        " and checked with mincore; names and inodes stay cached"
    )
    return Cell("cold", text, environment, around=around)


def _slow(name: str, work: Path, compiled: Environment) -> Cell:
    server = slowfs.require(work)
    visible = build(work, compiled.interpreter, "mount")
    delay = {"slowfs-0.3ms": 300, "slowfs-1ms": 1000}[name]
    text = (
        f"site-packages (with .pyc) on a read-only file system that delays each request {delay / 1000:g} ms,"
        " freshly mounted for each run, attributes and names remembered for 3 s;"
        " interpreter, standard library and store on the local disk"
    )
    return Cell(
        name,
        text,
        visible,
        {"PYTHONDONTWRITEBYTECODE": "1"},  # the mount is read-only: stop Python from trying to write into it
        lambda: slowfs.mounted(server, compiled.site_packages, visible.site_packages, delay),
    )


def _path_folders(parent: Path) -> list[Path]:
    folders = []
    for number in range(_PATH_FOLDERS):
        folder = parent / f"{number:02}"
        folder.mkdir(parents=True, exist_ok=True)
        for word in ("first", "second", "third"):
            (folder / f"velo_bench_{word}_{number:02}.py").write_text(
                f"NUMBER = {number}\n", encoding="utf-8"
            )
        (folder / "README.txt").write_text(
            "A folder on sys.path that holds nothing of interest.\n", encoding="utf-8"
        )
        folders.append(folder)
    return folders

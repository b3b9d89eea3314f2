# SPDX-License-Identifier: Apache-2.0
"""Which installed distribution a file belongs to, so that environments can share one pack for each.

Reads the RECORD files that installers leave in site-packages. They are other people's data: a line that
makes no sense is skipped, and a wrong answer costs sharing, never correctness.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from typing import NamedTuple

from velo_import.format.manifest import SITE, STDLIB, Build

from .scan import Scan

INFO_SUFFIX = ".dist-info"
RECORD_LIMIT = 64 << 20  # The largest real ones are 2 MB; more is not a RECORD.


class Distribution(NamedTuple):
    """One installed distribution: its label in the store, and where its metadata lies."""

    label: str
    info_folder: str


class Owners:
    """The distributions of one site-packages folder, and whose each file is."""

    def __init__(self, folder: str, names: tuple[str, ...]) -> None:
        self._folder = folder.rstrip("/")
        self.distributions = tuple(
            Distribution(label_of(name), f"{self._folder}/{name}")
            for name in names
            if name.endswith(INFO_SUFFIX)
        )
        self._owned: dict[str, str] | None = None

    def owner(self, path: str) -> str | None:
        """The label of the distribution that installed `path` (below this folder), if one says so."""
        if self._owned is None:
            self._owned = {}
            for distribution in self.distributions:
                for installed in _python_files(distribution.info_folder):
                    self._owned[installed] = distribution.label
        return self._owned.get(path[len(self._folder) + 1 :])


class Labels:
    """The label of the pack that a source's bytecode goes into."""

    def __init__(self, scanned: Scan, build: Build) -> None:
        self._stdlib = f"stdlib-{build.cache_tag}"
        self._areas = {folder.path: scanned.areas[folder.area] for folder in scanned.folders}
        self._owners = {
            folder.path: Owners(folder.path, folder.folders)
            for folder in scanned.folders
            if folder.path == scanned.areas[folder.area].path and scanned.areas[folder.area].kind == SITE
        }
        self._trees: dict[str, str] = {}

    def of(self, path: str) -> str:
        area = self._areas[os.path.dirname(path)]
        if area.kind == STDLIB:
            return self._stdlib
        owner = self._owners[area.path].owner(path) if area.path in self._owners else None
        if owner is None:
            owner = self._trees.get(area.path)
            if owner is None:
                owner = self._trees[area.path] = tree_label(area.path)
        return owner


def label_of(info_name: str) -> str:
    """`Foo_Bar-1.2.dist-info` -> `foo-bar-1.2`: only the spelling of the name does not matter."""
    readable = os.fsencode(info_name).decode("utf-8", "backslashreplace")
    name, _, version = readable.removesuffix(INFO_SUFFIX).partition("-")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}-{version}" if version else name.lower()


def tree_label(path: str) -> str:
    """The label for a folder that no distribution accounts for; stable, and silent about the path itself."""
    return "tree:" + blake2b(os.fsencode(path), digest_size=8).hexdigest()


def _python_files(info_folder: str) -> list[str]:
    """The `.py` files that a RECORD names, relative to site-packages."""
    try:
        with open(f"{info_folder}/RECORD", "rb") as file:
            text = file.read(RECORD_LIMIT).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    # Nearly every line is `path,sha256=...,size`. A quoted path has a comma or a quote in it and no
    # importable name, so the csv module, ten times slower, has nothing to add.
    return [path for line in text.splitlines() if (path := line.partition(",")[0]).endswith(".py")]

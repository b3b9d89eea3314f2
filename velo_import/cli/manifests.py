# SPDX-License-Identifier: Apache-2.0
"""Manifests for the commands that show them: which there are, and which one a user means. Decoding is
format/'s work.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import StoreCorrupt, UsageFault
from ..format.manifest import Manifest, decode
from ..host.files import read_file
from ..store.layout import Store

LAYERS = ("base", "upper")


class ManifestFile(NamedTuple):
    """One published manifest: `base` was ingested, `upper` was learned."""

    key: str
    layer: str
    path: Path
    size: int
    updated: float


def published(store: Store) -> list[ManifestFile]:
    """Every manifest in the store, by key."""
    found = []
    try:
        keys = sorted(entry.name for entry in os.scandir(store.manifests) if entry.is_dir())
    except OSError:
        return []
    for key in keys:
        for layer in LAYERS:
            path = store.manifests / key / f"{layer}.velo"
            try:
                status = path.stat()
            except OSError:
                continue
            found.append(ManifestFile(key, layer, path, status.st_size, status.st_mtime))
    return found


def read_manifest(path: Path) -> Manifest:
    """Decode one file; what is no manifest is refused with its name."""
    try:
        data = read_file(path)
    except OSError as error:
        raise UsageFault(f"cannot read {path}: {error.strerror}", hint="see `velo manifest list`") from None
    try:
        return decode(data)
    except StoreCorrupt as error:
        raise StoreCorrupt(
            f"{path}: {error.message}", hint=error.hint or "make it again with `velo ingest`"
        ) from None


def chosen(store: Store | None, which: str) -> list[Path]:
    """The manifests a user means: a file, a key, the folder of an environment, or one that was ingested."""
    if os.path.isfile(which):
        return [Path(which)]
    if store is None:
        raise UsageFault(f"no such manifest: {which}", hint="give a file, or see `velo manifest list`")
    files = published(store)
    by_key = [file.path for file in files if file.key == which]
    if by_key:
        return by_key
    wanted = os.path.abspath(which)
    by_prefix = [
        file.path for file in files if readable_prefix(file.path) in (wanted, os.path.realpath(wanted))
    ]
    by_root = by_prefix or [file.path for file in files if wanted in _readable_roots(file.path)]
    if not by_root:
        raise UsageFault(
            f"no manifest for {which}", hint="see `velo manifest list`, or make one with `velo ingest`"
        )
    return by_root


def _readable_roots(path: Path) -> set[str]:
    try:
        return {root.path for root in decode(read_file(path)).roots}
    except (OSError, StoreCorrupt):
        return set()


def readable_prefix(path: Path) -> str:
    """The environment a manifest is for; empty when the file cannot be read."""
    try:
        return decode(read_file(path)).prefix
    except (OSError, StoreCorrupt):
        return ""

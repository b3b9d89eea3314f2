# SPDX-License-Identifier: Apache-2.0
"""Manifests in the store: what is published for an environment, and publishing another.

Knows the two layers: `base.velo` is ingested, `upper.velo` is learned, and the hook asks the upper one
first. So the surprise: whoever publishes a base must take from the upper what it now knows better, or the
old answer would win.
"""

from __future__ import annotations

import os
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

from velo_import.errors import StoreCorrupt
from velo_import.format.manifest import (
    CHECK_NAMES,
    KIND_NAMES,
    Build,
    Manifest,
    decode,
    encode,
)
from velo_import.host.files import flush_all, publish, read_file
from velo_import.store.layout import Store

from . import hookcode
from .codes import usable_packs
from .plan import Draft, assemble, draft_of, only_folders

BASE, UPPER = "base", "upper"
_PAGE = 4096


def published_draft(store: Store, key: str, layer: str) -> Draft:
    """What is published now, without bytecode in packs that have gone; empty if there is nothing usable."""
    try:
        manifest = decode(read_file(store.manifest_folder(key) / f"{layer}.velo"))
    except (OSError, StoreCorrupt):
        return Draft.empty()
    return draft_of(manifest, usable_packs(store, dict.fromkeys(manifest.packs)))


def publish_manifest(path: Path, data: bytes) -> bool:
    """Put a manifest, or a table beside it, in its place; False if the same bytes are there already."""
    try:
        if read_file(path) == data:
            flush_all([path, path.parent])  # Whoever wrote it may have died before it was on the disk.
            return False
    except OSError:
        pass
    # In pages: from Linux 6.18 on, who touches one page of a mapped file is given all that was written in one
    # piece with it, which counts as that program's memory.
    publish(path, (data[at : at + _PAGE] for at in range(0, len(data), _PAGE)))
    return True


def expect_base(store: Store, key: str) -> None:
    """Have the learned manifest say no longer that it is alone; before a base is published."""
    path = store.manifest_folder(key) / f"{UPPER}.velo"
    try:
        manifest = decode(read_file(path))
    except (OSError, StoreCorrupt):
        return
    if manifest.alone:
        publish_manifest(path, encode(manifest._replace(alone=False)))


def trim_upper(store: Store, key: str, build: Build, ingested: Set[str]) -> None:
    """Drop from the learned manifest every folder that has just been ingested: the base is younger."""
    path = store.manifest_folder(key) / f"{UPPER}.velo"
    try:
        manifest = decode(read_file(path))
    except FileNotFoundError:
        return
    except (OSError, StoreCorrupt):
        path.unlink(missing_ok=True)
        return
    upper = draft_of(manifest)
    kept = {name: folder for name, folder in upper.folders.items() if name not in ingested}
    if not kept:
        path.unlink(missing_ok=True)
    elif len(kept) < len(upper.folders):
        publish_manifest(path, encode(assemble(only_folders(upper, kept), build, manifest.prefix)))


def is_hook_current(store: Store, build: Build) -> bool:
    """Whether the hook's compiled code is there and younger than all of its sources."""
    try:
        compiled = os.stat(hookcode.place(store, build)).st_mtime_ns
        with os.scandir(hookcode.HOOK) as entries:
            sources = [entry.stat() for entry in entries if entry.name.endswith(".py")]
    except OSError:
        return False
    return all(max(source.st_mtime_ns, source.st_ctime_ns) < compiled for source in sources)


def manifest_record(manifest: Manifest) -> dict[str, Any]:
    """What the catalogue keeps of a manifest for those who list them."""
    return {
        "prefix": shown(manifest.prefix),
        "build": manifest.build.tag,
        "optimisation": manifest.build.optimisation,
        "roots": [shown(root.path) for root in manifest.roots],
        "root_checks": root_checks(manifest),
        "files": len(manifest.files),
        "modules": sum(module.pack >= 0 for folder in manifest.folders for module in folder.modules),
        "updated": int(time.time()),
    }


def root_checks(manifest: Manifest) -> list[dict[str, str]]:
    return [
        {"path": shown(root.path), "kind": KIND_NAMES[root.kind], "check": CHECK_NAMES[root.check]}
        for root in manifest.roots
    ]


def shown(path: str) -> str:
    """A path as text that every terminal and every format can carry."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")

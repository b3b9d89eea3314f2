# SPDX-License-Identifier: Apache-2.0
"""`velo manifest`: which there are, what they say about one path or module, and what they hold. Its commands
about whole folders are in trees.py.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import StoreCorrupt, StoreMissing, UsageFault
from ..format.manifest import (
    CHECK_NAMES,
    DEFER,
    KIND_NAMES,
    NO_DIGEST,
    FileRecord,
    FolderRecord,
    Manifest,
    ModuleRecord,
)
from ..store import names
from ..store.layout import Store
from . import render, trees
from .common import json_flag, open_store
from .manifests import chosen, published, read_manifest
from .node.indexes import published_indexes


@click.group("manifest")
def command() -> None:
    """List, query, measure, compare and export manifests."""


@command.command("list")
@json_flag
def list_(as_json: bool) -> None:
    """Every manifest in the store: `base` was ingested, `upper` was learned; and every index of Node's:
    `tree` was ingested, `start` was learned.
    """
    store = open_store()
    shown = []
    for file in published(store):
        entry: dict[str, Any] = {
            "key": file.key,
            "layer": file.layer,
            "path": str(file.path),
            "bytes": file.size,
        }
        entry["updated"] = file.updated
        try:
            manifest = read_manifest(file.path)
            entry |= {"prefix": manifest.prefix, "build": manifest.build.tag}
            entry |= {"optimisation": manifest.build.optimisation, "modules": module_count(manifest)}
            entry |= {"files": len(manifest.files), "problem": None}
        except (StoreCorrupt, UsageFault) as error:
            entry |= {"prefix": "", "build": "", "optimisation": 0, "modules": 0, "files": 0}
            entry["problem"] = error.message
        shown.append(entry)
    shown += [
        {
            "key": found.key,
            "layer": found.layer,
            "path": str(found.path),
            "bytes": found.size,
            "updated": found.updated,
            "prefix": found.subject,
            "build": found.said.build if found.said is not None else "",
            "optimisation": 0,
            "modules": len(found.said.files) if found.said is not None else 0,
            "files": len(found.said.files) if found.said is not None else 0,
            "problem": found.problem or None,
        }
        for found in published_indexes(store)
    ]
    if as_json:
        render.data({"manifests": shown})
        return
    rows = [
        (
            entry["key"],
            entry["layer"],
            entry["problem"] or entry["prefix"],
            str(entry["modules"]),
            str(entry["files"]),
            render.size(entry["bytes"]),
            render.age(time.time() - entry["updated"]),
        )
        for entry in shown
    ]
    render.table(("key", "layer", "environment", "modules", "files", "size", "age"), rows, right=(3, 4, 5, 6))
    if not rows:
        render.note("no manifests yet\nhint: `velo run` learns one, `velo ingest` makes one ahead of time")


@command.command("query")
@click.argument("wanted", metavar="MODULE|PATH|blob:ID...", nargs=-1, required=True)
@click.option("--manifest", "which", metavar="FILE|KEY|FOLDER", help="Default: every manifest in the store.")
@json_flag
def query(wanted: tuple[str, ...], which: str | None, as_json: bool) -> int:
    """What manifests say about modules, paths or content. Exit code 1 when one of them is in none."""
    manifests = list(_readable(which))
    found = []
    for name in wanted:
        ask = _question(name, [manifest for _, manifest in manifests])
        for path, manifest in manifests:
            found += [{"name": name, "manifest": str(path), **match} for match in ask(manifest)]
    missing = [name for name in wanted if not any(match["name"] == name for match in found)]
    if as_json:
        render.data({"found": found, "missing": missing})
        return int(bool(missing))
    for index, match in enumerate(found):
        if index:
            render.line()
        render.pairs(
            {name.replace("_", " "): str(value) for name, value in match.items() if value not in (None, "")}
        )
    for name in missing:
        render.note(f"not in any manifest: {name}")
    return int(bool(missing))


@command.command("stats")
@click.argument("which", metavar="FILE|KEY|FOLDER", required=False)
@json_flag
def stats(which: str | None, as_json: bool) -> None:
    """What manifests hold: roots, modules, bytecode, files, packs."""
    shown = [
        {"manifest": str(path), "bytes": path.stat().st_size, **measured(manifest)}
        for path, manifest in _readable(which)
    ]
    if as_json:
        render.data({"manifests": shown})
        return
    for index, entry in enumerate(shown):
        if index:
            render.line()
        flat = {name.replace("_", " "): value for name, value in entry.items() if name != "roots"}
        flat |= {name: render.size(flat[name]) for name in ("bytes", "file bytes", "bytecode bytes")}
        render.pairs({name: str(value) for name, value in flat.items()})
        rows = [
            (root["path"], root["kind"], root["check"], str(root["folders"]), str(root["modules"]))
            for root in entry["roots"]
        ]
        render.table(("root", "kind", "check", "folders", "modules"), rows, right=(3, 4))


def module_count(manifest: Manifest) -> int:
    """Modules with bytecode: what can be served."""
    return sum(module.pack >= 0 for folder in manifest.folders for module in folder.modules)


def measured(manifest: Manifest) -> dict[str, Any]:
    """The figures of one manifest."""
    modules = [module for folder in manifest.folders for module in folder.modules]
    folders_of = Counter(folder.root for folder in manifest.folders)
    modules_of: Counter[int] = Counter()
    for folder in manifest.folders:
        modules_of[folder.root] += len(folder.modules)
    return {
        "prefix": manifest.prefix,
        "build": manifest.build.tag,
        "optimisation": manifest.build.optimisation,
        "folders": len(manifest.folders),
        "names": len(modules),
        "modules": module_count(manifest),
        "bytecode_bytes": sum(module.length for module in modules),
        "deferred": sum(bool(module.flags & DEFER) for module in modules),
        "files": len(manifest.files),
        "file_bytes": sum(file.size for file in manifest.files),
        "packs": len(manifest.packs),
        "roots": [
            {
                "path": root.path,
                "kind": KIND_NAMES[root.kind],
                "check": CHECK_NAMES[root.check],
                "folders": folders_of[index],
                "modules": modules_of[index],
            }
            for index, root in enumerate(manifest.roots)
        ],
    }


def _question(name: str, manifests: Sequence[Manifest]) -> Callable[[Manifest], list[dict[str, Any]]]:
    """What to ask each manifest for what a user typed."""
    if not names.is_name(name, names.BLOB):
        return lambda manifest: of_path(manifest, name) if os.sep in name else of_module(manifest, name)
    digits = names.digits_of(name, names.BLOB)
    held = {
        file.digest
        for manifest in manifests
        for file in manifest.files
        if file.digest != NO_DIGEST and file.digest.hex().startswith(digits)
    }
    digest = names.resolve(name, names.BLOB, lambda _: held) if held else b""
    return lambda manifest: of_content(manifest, digest)


def of_content(manifest: Manifest, digest: bytes) -> list[dict[str, Any]]:
    """The path table's entries with that content."""
    return [_file(file) for file in manifest.files if file.digest == digest]


def _file(file: FileRecord) -> dict[str, Any]:
    return {
        "path": file.path,
        "size": file.size,
        "mode": oct(file.mode),
        "mtime_ns": file.mtime_ns,
        "digest": "" if file.digest == NO_DIGEST else f"blob:{file.digest.hex()}",
        "link": file.link,
    }


def of_path(manifest: Manifest, name: str) -> list[dict[str, Any]]:
    """The path table's entry for a file or folder, and the module that comes from it."""
    wanted = os.path.abspath(name)
    for index, file in enumerate(manifest.files):
        if file.path == wanted:
            entry = _file(file)
            for folder in manifest.folders:
                for module in folder.modules:
                    if module.file == index:
                        entry |= _module(manifest, folder, module)
            return [entry]
    return []


def of_module(manifest: Manifest, name: str) -> list[dict[str, Any]]:
    """Every record that could answer for a dotted name, root by root."""
    parent, _, tail = name.rpartition(".")
    package = parent.replace(".", os.sep)
    found = []
    for folder in manifest.folders:
        root = manifest.roots[folder.root].path
        if folder.path != (os.path.join(root, package) if package else root):
            continue
        for module in folder.modules:
            if module.tail != tail:
                continue
            initial = f"{folder.path}{os.sep}{tail}"
            inner = next((f for f in manifest.folders if f.path == initial), None)
            own = next((m for m in inner.modules if m.tail == "__init__"), None) if inner else None
            if inner is not None and own is not None:  # a package: its code is in its own folder
                found.append(_module(manifest, inner, own))
            else:
                found.append(_module(manifest, folder, module))
    return found


def _module(manifest: Manifest, folder: FolderRecord, module: ModuleRecord) -> dict[str, Any]:
    root = manifest.roots[folder.root]
    pack = manifest.packs[module.pack] if module.pack >= 0 else None
    return {
        "module": dotted(folder.path, root.path, module.tail),
        "folder": folder.path,
        "root": root.path,
        "check": CHECK_NAMES[root.check],
        "file": manifest.files[module.file].path if module.file >= 0 else None,
        "pack": pack.name if pack else None,
        "label": pack.label if pack else None,
        "offset": module.offset if pack else None,
        "bytecode_bytes": module.length if pack else None,
        "left_to_python": bool(module.flags & DEFER) or pack is None,
    }


def dotted(folder: str, root: str, tail: str) -> str:
    """The name that a program imports it by, when the root is on sys.path."""
    parts = [part for part in folder[len(root) :].split(os.sep) if part]
    return ".".join(parts if tail == "__init__" and parts else [*parts, tail])


def _readable(which: str | None) -> Iterator[tuple[Path, Manifest]]:
    """The manifests that are meant; where all are, a damaged one does not stand in the way of the others."""
    for path in _selected(which):
        try:
            yield path, read_manifest(path)
        except StoreCorrupt as error:
            if which is not None:
                raise
            render.note(f"warning: {error.message}\nhint: {error.hint}")


def _selected(which: str | None) -> list[Path]:
    if which is None:
        return [file.path for file in published(open_store())]
    store: Store | None = None
    try:
        store = open_store()
    except StoreMissing:
        pass
    return chosen(store, which)


for _each in (trees.tree_, trees.diff, trees.export_):
    command.add_command(_each)

# SPDX-License-Identifier: Apache-2.0
"""`velo status`: the store at a glance. The catalogue answers; a manifest it does not know is read from its
file.
"""

from __future__ import annotations

import os
import time
from typing import Any

import click

from ..errors import StoreCorrupt, UsageFault, VeloError
from ..ingest import startup
from ..store.catalog import Catalog
from ..store.layout import Store
from . import render
from .common import json_flag, open_store
from .manifest import module_count
from .manifests import published, read_manifest
from .node.indexes import published_indexes


@click.command("status")
@json_flag
def command(as_json: bool) -> None:
    """What the store knows, and how big it is."""
    store = open_store()
    sizes = store.size_report()
    packs, problem = _packs(store)
    manifests = environments(store)
    starts = known_starts(store, sorted({entry["key"] for entry in manifests}))
    if as_json:
        render.data(
            {
                "home": str(store.home),
                "sizes": sizes,
                "total": sum(sizes.values()),
                "packs": packs,
                "manifests": manifests,
                "starts": starts,
                "problem": problem,
            }
        )
        return
    render.pairs(
        {
            "store": str(store.home),
            "size": render.size(sum(sizes.values())),
            "packs": f"{len(packs)} ({render.size(sum(pack['bytes'] for pack in packs))})",
        }
    )
    if problem:
        render.note(f"warning: {problem}")
    if manifests:
        render.line()
    rows = [
        (
            entry["prefix"] or entry["key"],
            entry["build"],
            entry["layer"],
            str(entry["modules"]),
            str(entry["packs"]),
            render.size(entry["bytes"]),
            render.age(time.time() - entry["updated"]) + ("" if entry["exists"] else ", gone"),
        )
        for entry in manifests
    ]
    render.table(
        ("environment", "build", "layer", "modules", "packs", "size", "age"), rows, right=(3, 4, 5, 6)
    )
    if starts:
        render.line()
        render.table(
            ("start", "modules", "in start-up order", "edited"),
            [(each["command"], str(each["modules"]), share(each), str(each["changed"])) for each in starts],
            right=(1, 2, 3),
        )
    if not rows:
        render.note("no environments yet\nhint: start with `velo run -- python app.py`")


def environments(store: Store) -> list[dict[str, Any]]:
    """One entry for each manifest and each index in the store; `exists` tells whether what it is for is still
    there.
    """
    entries = []
    for file in published(store):
        entry: dict[str, Any] = {
            "key": file.key,
            "layer": file.layer,
            "bytes": file.size,
            "updated": file.updated,
        }
        try:
            manifest = read_manifest(file.path)
        except (StoreCorrupt, UsageFault) as error:
            entry |= {"prefix": "", "build": error.message, "modules": 0, "packs": 0, "exists": False}
        else:
            entry |= {
                "prefix": manifest.prefix,
                "build": manifest.build.tag,
                "modules": module_count(manifest),
                "packs": len(manifest.packs),
                "exists": os.path.isdir(manifest.prefix),
            }
        entries.append(entry)
    for found in published_indexes(store):
        index = found.said
        entries.append(
            {
                "key": found.key,
                "layer": found.layer,
                "bytes": found.size,
                "updated": found.updated,
                "prefix": found.subject,
                "build": index.build if index is not None else found.problem,
                "modules": len(index.files) if index is not None else 0,
                "packs": len(index.packs) if index is not None else 0,
                "exists": found.exists,
            }
        )
    return entries


def known_starts(store: Store, keys: list[str]) -> list[dict[str, Any]]:
    """The starts that are read ahead, and how much of each would be served from packs in start-up order."""
    entries: list[dict[str, Any]] = []
    for key in keys:
        kept = startup.kept(store, key)
        if kept:
            known = startup.known_to(store, key)
            entries += [
                {
                    "key": key,
                    "command": each.command,
                    "pack": each.pack,
                    **startup.hits(known, each)._asdict(),
                }
                for each in kept
            ]
    return entries


def share(start: dict[str, Any]) -> str:
    """The hit rate of packs in start-up order."""
    return f"{100 * start['packed'] / start['modules']:.0f} %" if start["packed"] else "-"


def _packs(store: Store) -> tuple[list[dict[str, Any]], str]:
    if not store.catalogue.exists():
        return [], ""
    try:
        with Catalog.open(store) as catalog:
            return [
                {
                    "id": pack.id,
                    "label": pack.label,
                    "kind": pack.kind,
                    "build": pack.build,
                    "bytes": pack.bytes,
                    "entries": pack.entries,
                }
                for pack in catalog.packs().values()
            ], ""
    except VeloError as error:
        return [], f"the catalogue cannot be read: {error.message}"

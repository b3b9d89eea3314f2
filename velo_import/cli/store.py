# SPDX-License-Identifier: Apache-2.0
"""`velo store`: where it is, how big, who may read it, and away with it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import click

from ..errors import StoreCorrupt, VeloError
from ..launch.enable import enabled_files, find_sites
from ..store import clear as clearing
from ..store.breakdown import Breakdown, breakdown
from ..store.layout import Store
from ..store.roots import REGISTERED, Root, prefix_of, roots
from . import render, repack, share
from .common import json_flag, open_store, settings, store_to_change


@click.group("store")
def command() -> None:
    """Path, size and end of the store."""


@command.command("path")
@json_flag
def path(as_json: bool) -> None:
    """The store's folder, whether it exists or not."""
    home = settings().home
    if as_json:
        render.data({"path": home})
    else:
        render.line(home)


@command.command("size")
@click.option("--detail", is_flag=True, help="What is stored, and what storing it costs; reads every index.")
@json_flag
def size(detail: bool, as_json: bool) -> None:
    """Bytes on disk, part by part."""
    store = open_store()
    if detail:
        _show_detail(store, breakdown(store), as_json)
        return
    parts = store.size_report()
    total = sum(parts.values())
    if as_json:
        render.data({"path": str(store.home), "parts": parts, "total": total})
        return
    rows = [(part, render.size(count)) for part, count in parts.items()]
    render.table(("part", "size"), [*rows, ("total", render.size(total))], right=(1,))


def _show_detail(store: Store, found: Breakdown, as_json: bool) -> None:
    blobs = found.blobs
    shares = {
        "of_stored": blobs.overhead / max(blobs.stored, 1),
        "of_content": blobs.overhead / max(blobs.content, 1),
    }
    if as_json:
        render.data(
            {
                "path": str(store.home),
                "detail": [{**part._asdict(), "overhead": part.overhead} for part in found.parts],
                "blobs": {**blobs._asdict(), "overhead": blobs.overhead},
                "overhead": {**found.causes, **shares},
                "stored_twice": {"blobs": found.twice, "bytes": found.twice_bytes},
                "unreadable": [str(path) for path in found.unreadable],
                "total": found.total,
            }
        )
        return
    rows = [
        (
            part.name,
            f"{part.files:,}",
            f"{part.blobs:,}" if part.blobs else "",
            *(render.size(count) if part.blobs else "" for count in (part.content, part.stored)),
            render.size(part.disk),
        )
        for part in found.parts
    ]
    total = ("total", f"{sum(part.files for part in found.parts):,}", f"{blobs.blobs:,}")
    sizes = (blobs.content, blobs.stored, found.total)
    rows.append((*total, *map(render.size, sizes)))
    render.table(("part", "files", "blobs", "content", "stored", "on disk"), rows, right=(1, 2, 3, 4, 5))
    render.line()
    causes = {**found.causes, "total": blobs.overhead}
    costs = [(name, render.size(count)) for name, count in causes.items()]
    render.table(("overhead of blobs", "size"), costs, right=(1,))
    render.line()
    each = blobs.overhead / max(blobs.blobs, 1)
    stored, content = shares.values()
    render.line(
        f"{each:,.0f} bytes for each blob: {stored:.2%} of what is stored, {content:.2%} of its content"
    )
    if found.twice:
        render.line(f"stored more than once: {found.twice:,} blobs, {render.size(found.twice_bytes)}")
    for path in found.unreadable:
        render.note(f"warning: {path} is damaged\nhint: run `velo verify`")


@command.command("clear")
@click.option("--yes", is_flag=True, help="Remove it; without this, only say what would go.")
@json_flag
def clear(yes: bool, as_json: bool) -> None:
    """Remove everything that Velo ever wrote into the store.

    A dry run unless --yes is given. Programs that run go on with what they have loaded.
    """
    store = store_to_change()
    total = sum(store.size_report().values())
    known = _known_roots(store)
    elsewhere = [root.name for root in known if root.kind == REGISTERED and os.path.isfile(root.name)]
    enabled = _enabled(known)
    left = clearing.clear(store) if yes else []
    if as_json:
        render.data(
            {
                "home": str(store.home),
                "removed": yes,
                "bytes": total,
                "left": left,
                "manifests_elsewhere": elsewhere,
                "enabled": enabled,
            }
        )
        return
    render.line(f"{'removed' if yes else 'would remove'} {store.home}: {render.size(total)}")
    for name in left:
        render.note(f"left, because it is not Velo's: {store.home / name}")
    for path in elsewhere:
        render.note(f"left, because you had it written there: {path}")
    for folder in enabled:
        render.note(f"Velo is still in {folder}\nhint: `velo disable {folder}`")
    if not yes:
        render.note("this was a dry run\nhint: `velo store clear --yes` removes it")


def _known_roots(store: Store) -> list[Root]:
    try:
        return roots(store)
    except StoreCorrupt:  # all the more reason to clear it
        return []


def _enabled(known: list[Root]) -> list[str]:
    """The environments among them that load Velo by themselves."""
    found = set()
    for root in known:
        prefix = prefix_of(root)
        with suppress(VeloError, OSError):
            if prefix and any(enabled_files(site) for site in find_sites(Path(prefix))):
                found.add(prefix)
    return sorted(found)


command.add_command(repack.command)
command.add_command(share.command)

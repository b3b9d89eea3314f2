# SPDX-License-Identifier: Apache-2.0
"""`velo store`: where it is and how big."""

from __future__ import annotations

import click

from . import render, share
from .common import json_flag, open_store, settings


@click.group("store")
def command() -> None:
    """Path and size of the store."""


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
@json_flag
def size(as_json: bool) -> None:
    """Bytes on disk, part by part."""
    store = open_store()
    parts = store.size_report()
    total = sum(parts.values())
    if as_json:
        render.data({"path": str(store.home), "parts": parts, "total": total})
        return
    rows = [(part, render.size(count)) for part, count in parts.items()]
    render.table(("part", "size"), [*rows, ("total", render.size(total))], right=(1,))


command.add_command(share.command)

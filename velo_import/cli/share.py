# SPDX-License-Identifier: Apache-2.0
"""`velo store share`: let other accounts on this machine start programs from this store."""

from __future__ import annotations

import shlex

import click

from ..store import sharing
from . import render
from .common import json_flag, settings, store_to_fill


@click.command("share")
@click.option("--off", is_flag=True, help="Close the store to other accounts again.")
@json_flag
def command(off: bool, as_json: bool) -> None:
    """Let every account of this machine read this store.

    \b
    They can start programs from it, but write nothing to it; what it lacks they learn into their own:
      VELO_SHARED=/path/of/this/store velo run -- python app.py
    Who uses a shared store runs code that its owner has put there.
    """
    store = store_to_fill(settings().home)
    blocked = []
    if off:
        sharing.unshare(store)
    else:
        blocked = [str(folder) for folder in sharing.share(store)]
    if as_json:
        render.data({"path": str(store.home), "shared": not off, "blocked_by": blocked})
        return
    if off:
        render.line(f"{store.home} is private again")
        return
    render.line(f"{store.home} can be read by everybody; others use it with")
    render.line(f"  VELO_SHARED={shlex.quote(str(store.home))} velo run -- COMMAND")
    for folder in blocked:
        render.note(f"warning: others cannot pass {folder}\nhint: chmod o+x {shlex.quote(str(folder))}")

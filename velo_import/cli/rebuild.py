# SPDX-License-Identifier: Apache-2.0
"""`velo rebuild`: the catalogue made again, from packs and loose blobs alone. Nothing is lost by it: the next
ingest of an unchanged environment has to look at it once more.
"""

from __future__ import annotations

import time

import click

from ..store import index, leases
from ..store.catalog import Catalog
from . import render
from .common import json_flag, store_to_change, wait_option


@click.command("rebuild")
@wait_option
@json_flag
def command(wait: float, as_json: bool) -> None:
    """Make the catalogue again from the packs and blobs in the store; the old one is kept aside.

    Velo does this by itself when the catalogue is missing or cannot be opened.
    """
    store = store_to_change()
    with (
        render.progress("rebuild") as show,
        leases.maintenance(store, wait=wait),
        leases.exclusive(store, wait=wait),
    ):
        began = time.perf_counter()
        with Catalog.rebuild(store, show) as catalog:
            seconds = time.perf_counter() - began
            counts = catalog.counts()
        index.write_index(store)
    entries = counts["blobs"] + counts["variants"]
    if as_json:
        render.data({"home": str(store.home), **counts, "seconds": seconds})
        return
    render.pairs(
        {
            "catalogue": str(store.catalogue),
            "found": f"{counts['blobs']} blobs, {counts['variants']} bytecode variants, "
            f"{counts['packs']} packs",
            "time": f"{seconds:.2f} s, {entries / seconds:.0f} rows/s",
        }
    )

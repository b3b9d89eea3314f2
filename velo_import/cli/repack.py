# SPDX-License-Identifier: Apache-2.0
"""`velo store repack`: content moves to where it is best kept. Shows what store/repack.py did."""

from __future__ import annotations

import time
from typing import Any

import click

from ..config.units import parse_duration
from ..errors import StoreCorrupt
from ..host.processes import available_cores
from ..store import index, leases
from ..store.catalog import Catalog
from ..store.compaction import compact
from ..store.repack import Report, repack
from . import render
from .common import json_flag, store_to_change, wait_option


def _duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command("repack")
@click.option(
    "--cold-after",
    callback=_duration,
    default="30d",
    metavar="TIME",
    show_default=True,
    help="Compress files that no environment has used for so long.",
)
@wait_option
@json_flag
def command(cold_after: float, wait: float, as_json: bool) -> int:
    """Compress large files that nobody has used for long, take back out what is used again, join small packs.

    Small content is compressed when it is stored; that of an older Velo is compressed now. Content keeps its
    id, and bytecode stays where programs map it. Safe beside running programs, ingests and learners.
    """
    store = store_to_change()
    began = time.perf_counter()
    with (
        render.progress("repack") as show,
        leases.maintenance(store, wait=wait),
        Catalog.open(store) as catalog,
    ):
        report = repack(
            store, catalog, cold_after=cold_after, jobs=available_cores(), progress=show, wait=wait
        )
        if (store.packs / index.NAME).exists():
            index.write_index(store)
    compact(store)
    seconds = time.perf_counter() - began
    if as_json:
        render.data({"home": str(store.home), **document(report), "seconds": seconds})
    else:
        _show(report, seconds)
    return StoreCorrupt.exit_code if report.damaged else 0


def document(report: Report) -> dict[str, Any]:
    """The report for scripts; sizes in bytes."""
    return {**vars(report), "damaged": [str(path) for path in report.damaged]}


def _show(report: Report, seconds: float) -> None:
    saved = report.bytes_removed - report.bytes_made
    sign = "smaller" if saved >= 0 else "larger"
    render.pairs(
        {
            "compressed": f"{report.cooled} blobs, {report.packed} of them had been files",
            "taken out": f"{report.warmed} blobs, {report.unpacked} of them into files",
            "packs": f"{report.packs_removed} replaced by {report.packs_made}",
            "size": f"{render.size(report.bytes_removed)} became {render.size(report.bytes_made)}, "
            f"{render.size(abs(saved))} {sign}",
            "time": f"{seconds:.2f} s",
        }
    )
    for path in report.damaged:
        render.note(f"warning: {path} is damaged and stays as it is\nhint: run `velo verify`")

# SPDX-License-Identifier: Apache-2.0
"""`velo tour`: what Velo does for real packages, measured here and now, losses included.

Puts together tour_environment.py (where) and tour_measure.py (how long); keeps nothing.
"""

from __future__ import annotations

import os
import platform
import signal
import tempfile
from pathlib import Path
from statistics import geometric_mean

import click

from ..errors import VeloError
from . import render
from .common import json_flag
from .tour_environment import Place, prepare
from .tour_measure import Bench, Row

MEASURABLE = 0.1  # ms; on a busy machine the difference of two quartiles may even be negative


@click.command("tour")
@click.option("--runs", type=click.IntRange(1, 1000), default=7, show_default=True, help="Runs of each arm.")
@click.option(
    "--module", "modules", multiple=True, metavar="NAME", help="Measure this instead; may be repeated."
)
@click.option("--offline", is_flag=True, help="Install nothing: measure what this Python already has.")
@json_flag
def command(runs: int, modules: tuple[str, ...], offline: bool, as_json: bool) -> int:
    """Measure plain and accelerated imports of real packages on this machine.

    Makes a throw-away environment and a store of its own, and removes both. Exit code 1 when an accelerated
    program answered differently from the plain one.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _leave)
    with (
        tempfile.TemporaryDirectory(prefix="velo-tour-", ignore_cleanup_errors=True) as name,
        render.progress("tour") as say,
    ):
        folder = Path(name)
        place = prepare(folder, modules, offline=offline, say=say)
        if not place.modules:
            raise VeloError("there is nothing to import here", hint="name modules with --module")
        bench = Bench(place, folder)
        try:
            rows = list(bench.measure(runs, say))
            launcher = bench.launcher_cost(runs)
        finally:
            bench.settle()
    if as_json:
        render.data(
            {
                "python": platform.python_version(),
                "machine": {
                    "system": platform.system(),
                    "processor": platform.machine(),
                    "cores": os.cpu_count(),
                },
                "source": place.source,
                "reason": place.reason,
                "runs": runs,
                "results": [row.document() for row in rows],
                "velo_run_ms": round(launcher, 2),
            }
        )
    else:
        show(place, rows, runs, launcher)
    return int(not all(row.equal for row in rows))


def _leave(number: int, frame: object) -> None:
    """A terminal that is closed, or a CI job that is over: half a gigabyte is not left behind for that."""
    raise SystemExit(128 + number)


def show(place: Place, rows: list[Row], runs: int, launcher: float) -> None:
    """Table, chart, and what was lost."""
    if place.reason:
        render.line(f"Measured on what this Python already has: {place.reason}.")
    machine = f"CPython {platform.python_version()}, {os.cpu_count()} cores"
    render.line(f"{machine}; lower quartile of {runs} interleaved runs.")
    render.line()
    cells = [
        (
            row.program,
            row.cell,
            f"{row.plain_quartile:.0f}",
            f"{row.velo_quartile:.0f}",
            f"{row.ratio:.2f}x",
            verdict(row),
        )
        for row in rows
    ]
    render.table(("program", "cell", "plain ms", "velo ms", "faster", ""), cells, right=(2, 3, 4))
    render.line()
    bars = []
    for row in rows:
        bars.append((f"{row.program}, {row.cell}", row.plain_quartile, "plain"))
        bars.append(("", row.velo_quartile, "velo"))
    render.bars(bars, "ms")
    render.line()
    for cell in dict.fromkeys(row.cell for row in rows):
        mean = geometric_mean([row.ratio for row in rows if row.cell == cell])
        render.line(f"{cell}: {mean:.2f}x (geometric mean)")
    cost = f"{launcher:.0f} ms" if launcher >= 10 else f"{launcher:.1f} ms"
    if launcher < MEASURABLE:
        cost = "less than can be measured here"
    render.line(f"`velo run` itself adds {cost} to a start; `velo enable` and `velo env` add none of it.")
    if place.source == "installed":
        render.line("In the cell `no .pyc` the standard library has none either, which flatters Velo.")
    for row in rows:
        if row.ratio < 1:
            render.line(
                f"Slower: {row.program}, {row.cell}, by {row.velo_quartile - row.plain_quartile:.1f} ms."
            )


def verdict(row: Row) -> str:
    if not row.equal:
        return "OUTPUT DIFFERS"
    return "" if row.served else "not served"

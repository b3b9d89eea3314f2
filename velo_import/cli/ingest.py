# SPDX-License-Identifier: Apache-2.0
"""`velo ingest`: learn a whole environment ahead of time. Shows what ingest/ did; does nothing itself."""

from __future__ import annotations

from pathlib import Path

import click

from ..ingest import ingest
from ..launch.injection import prepare
from ..store.layout import Store
from . import render
from .common import json_flag, settings


@click.command("ingest")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write the manifest here as well."
)
@click.option("--python", metavar="PY", help="The interpreter; default: the one DIR belongs to.")
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", help="Processes that compile; default: one per core."
)
@json_flag
def command(target: Path, output: Path | None, python: str | None, jobs: int | None, as_json: bool) -> None:
    """Learn a virtual environment, a site-packages or a project folder ahead of time.

    A second ingest reads only what has changed.
    """
    chosen = settings(**{"ingest.jobs": jobs})
    store = Store.open(Path(chosen.home), create=True)
    prepare(chosen.home)
    with render.progress("ingest") as show:
        summary = ingest(
            target,
            python=python,
            output=output,
            store=store,
            progress=lambda step: show(step.phase, step.done, step.total),
            jobs=chosen.ingest_jobs,
        )
    if as_json:
        render.data(summary._asdict())
        return

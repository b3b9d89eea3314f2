# SPDX-License-Identifier: Apache-2.0
"""`velo ingest`: learn a whole environment ahead of time. ingest/ does it, ingested.py says what it was."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageFault
from ..ingest.apply import ingest
from ..launch.injection import prepare
from . import render
from .common import json_flag, settings, store_to_fill
from .gc import keep_within_limit
from .ingested import show_summary


@click.command("ingest")
@click.argument("target", metavar="DIR")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write it here as well."
)
@click.option("--python", metavar="PY", help="The interpreter; default: the one DIR belongs to.")
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", help="Processes that compile; default: all cores."
)
@click.option(
    "--optimize", type=click.IntRange(0, 2), default=0, help="For programs run with -O (1) or -OO (2)."
)
@click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Take in what is left out by default: secrets, .git, node_modules. Repeatable.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out files or folders, as in .gitignore. Repeatable; wins over --include.",
)
@click.option("--force", is_flag=True, help="Read every file again.")
@json_flag
def command(
    target: str,
    output: Path | None,
    python: str | None,
    jobs: int | None,
    optimize: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Learn a virtual environment, a site-packages or a project folder ahead of time.

    A second ingest reads only what has changed.
    """
    if not target:  # "$FORGOTTEN" must not mean the current folder.
        raise UsageFault("no folder is named", hint="give a virtual environment, site-packages or project")
    chosen = settings(**{"ingest.jobs": jobs})
    store = store_to_fill(chosen.home)
    prepare(chosen.home)
    with render.progress("ingest") as show:
        summary = ingest(
            Path(target),
            store=store,
            python=python,
            output=output,
            progress=lambda step: show(step.phase, step.done, step.total),
            jobs=chosen.ingest_jobs,
            optimisation=optimize,
            force=force,
            include=include,
            exclude=exclude,
        )
    freed = keep_within_limit(store, chosen)
    unreadable = [each._asdict() for each in summary.unreadable]
    show_summary({**summary._asdict(), "unreadable": unreadable}, output, freed, as_json)

# SPDX-License-Identifier: Apache-2.0
"""`velo ingest`: learn a whole environment ahead of time. Shows what ingest/ did; does nothing itself."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..ingest.apply import IngestSummary, ingest
from ..launch.injection import prepare
from ..store.layout import Store
from . import render
from .common import json_flag, settings
from .gc import keep_within_limit

SHOWN = 5  # unreadable folders named one by one; --json has them all


@click.command("ingest")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
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
    target: Path,
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
    chosen = settings(**{"ingest.jobs": jobs})
    store = Store.open(Path(chosen.home), create=True)
    prepare(chosen.home)
    with render.progress("ingest") as show:
        summary = ingest(
            target,
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
    if as_json:
        unreadable = [each._asdict() for each in summary.unreadable]
        document = {**summary._asdict(), "unreadable": unreadable, "shared_bytes": shared(summary)}
        render.data({**document, "output": str(output) if output else None, "freed": freed})
        return
    render.pairs(described(summary, output))
    if freed:
        render.note(f"the store was over its limit: {render.size(freed)} of what is least used were removed")
    for each in summary.unreadable[:SHOWN]:
        render.note(f"warning: skipped {each.path}: {each.reason}")
    if len(summary.unreadable) > SHOWN:
        render.note(f"warning: skipped {len(summary.unreadable) - SHOWN} more")
    if summary.secrets:
        names = [os.path.relpath(path, summary.target) for path in summary.secrets]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        render.note(
            f"left out, looks like a secret: {', '.join(names[:SHOWN])}{more}\n"
            "hint: `--include PATTERN` takes in what it matches"
        )
    for path in summary.changed_during[:SHOWN]:
        render.note(f"warning: {path} changed meanwhile and is left to Python\nhint: run `velo ingest` again")


def shared(summary: IngestSummary) -> int:
    """Bytes that the store had already, or that occur more than once."""
    return summary.bytes - summary.new_bytes


def described(summary: IngestSummary, output: Path | None) -> dict[str, str]:
    """The summary for people."""
    share = f"{100 * shared(summary) / summary.bytes:.0f} %" if summary.bytes else "-"
    sources = (
        (summary.compiled, "compiled"),
        (summary.taken_over, "taken over from .pyc"),
        (summary.reused, "in the store already"),
        (summary.deferred, "left to Python"),
    )
    detail = ", ".join(f"{count} {what}" for count, what in sources if count)
    excluded = f", {summary.excluded} left out" if summary.excluded else ""
    return {
        "target": summary.target,
        "files": f"{summary.files} in {summary.folders} folders{excluded}"
        + (", unchanged" if summary.unchanged else ""),
        "modules": f"{summary.modules}" + (f" ({detail})" if detail else ""),
        "blobs": f"{summary.blobs} ({summary.new_blobs} new)",
        "content": f"{render.size(summary.bytes)}, of which {share} was there or occurs twice",
        "time": f"{summary.seconds:.2f} s, {summary.files_per_second:.0f} files/s",
        "manifest": str(output or summary.manifest),
    }

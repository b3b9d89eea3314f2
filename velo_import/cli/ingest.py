# SPDX-License-Identifier: Apache-2.0
"""`velo ingest`: learn a whole environment ahead of time. ingest/ does it, ingested.py says what it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ..errors import UsageFault
from ..host.processes import available_cores
from ..ingest.apply import ingest
from ..ingest.node.interpreters import ask, find_nodes
from ..ingest.node.learning import NodeSummary
from ..ingest.node.trees import holds_modules, ingest_node, is_modules
from ..launch.injection import prepare
from ..store.layout import Store
from . import render
from .common import json_flag, settings, store_to_fill
from .gc import keep_within_limit
from .ingested import show_summary
from .node.ingested import node_document, show_nodes


@click.command("ingest")
@click.argument("target", metavar="DIR")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Write it here as well."
)
@click.option("--python", metavar="PY", help="The interpreter; default: the one DIR belongs to.")
@click.option("--node", "nodes", multiple=True, metavar="NODE", help="A Node; default: every one found here.")
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
    nodes: tuple[str, ...],
    jobs: int | None,
    optimize: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Learn a virtual environment, a site-packages, a node_modules or a project folder ahead of time.

    A second ingest reads only what has changed. A project with a node_modules is learned for Python and for
    every Node; --python or --node leave the other one out.
    """
    if not target:  # "$FORGOTTEN" must not mean the current folder.
        raise UsageFault("no folder is named", hint="give a virtual environment, site-packages or project")
    chosen = settings(**{"ingest.jobs": jobs})
    store = store_to_fill(chosen.home)
    prepare(chosen.home)
    learned: list[NodeSummary] = []
    if nodes or (not python and holds_modules(target)):
        learned = _ingest_modules(Path(target), nodes, store, chosen.ingest_jobs or available_cores(), force)
        if nodes or is_modules(target):
            show_nodes(learned, keep_within_limit(store, chosen), as_json)
            return
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
    document = {**summary._asdict(), "unreadable": unreadable}
    if learned:
        document["nodes"] = node_document(learned)
    show_summary(document, output, freed, as_json)
    if learned and not as_json:
        render.line()
        show_nodes(learned, 0, as_json)


def _ingest_modules(
    target: Path, named: tuple[str, ...], store: Store, jobs: int, force: bool
) -> list[NodeSummary]:
    """Learn a node_modules for each Node that is named, or for all that are here."""
    found = [ask(shutil.which(name) or name) for name in named] if named else find_nodes()
    if not found:
        if is_modules(target):
            raise UsageFault("no Node was found that Velo can speed up", hint="name one with --node")
        return []
    learned = []
    with render.progress("ingest") as show:
        for node in found:
            learned.append(ingest_node(target, node, store, jobs=jobs, force=force, progress=show))
    return learned

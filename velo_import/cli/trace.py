# SPDX-License-Identifier: Apache-2.0
"""`velo trace -- CMD`: run a program and show what each of its imports took, and who served it.

Knows which form goes where. The surprise: the report goes to stderr or into files, because stdout is the
program's; with `--json` it is the other way round, so that stdout is one JSON object.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

import click

from ..config import env
from ..errors import UsageFault, VeloError
from ..host.files import publish
from ..launch import foreground
from ..launch.environment import child_environment, is_disabled
from ..launch.execute import original_environment
from ..launch.injection import injection_folder, prepare
from ..trace import importtime, report
from ..trace.notes import Process, Trace, load, read_folder
from . import render
from .common import json_flag, settings

if TYPE_CHECKING:
    from typing import TextIO

FORMS = {".txt": "text", ".json": "json", ".html": "html", ".log": "importtime"}
PLAIN = "plain:"  # hook/trace.py


@click.command(
    "trace",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
)
@click.argument("command_words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENTS]...")
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE", help="Write .html, .json, .txt or .log."
)
@click.option("--plain", is_flag=True, help="Trace the program as it runs without Velo.")
@click.option("--against", metavar="FILE", help="Compare with a trace saved as .json.")
@click.option("--from", "saved", metavar="FILE", help="Show a trace saved as .json; runs nothing.")
@click.option("--process", type=int, metavar="PID", help="Which process; default: the command's own.")
@click.option("--tree", is_flag=True, help="Who imported whom, instead of what took longest.")
@click.option("--top", type=click.IntRange(1), default=25, show_default=True, help="How many modules.")
@click.option("--importtime", "as_importtime", is_flag=True, help="As python -X importtime, for tuna.")
@json_flag
def command(
    command_words: tuple[str, ...],
    outputs: tuple[str, ...],
    plain: bool,
    against: str | None,
    saved: str | None,
    process: int | None,
    tree: bool,
    top: int,
    as_importtime: bool,
    as_json: bool,
) -> int:
    """Run a program and show what its imports took: finding, reading, unmarshalling, running.

    \b
    velo trace -- python app.py
    velo trace -o trace.html -- python app.py      a page to explore, in one file
    velo trace -o trace.log -- python app.py       for tuna: the same as -X importtime
    velo trace --plain -o plain.json -- python app.py
    velo trace --against plain.json -o both.html -- python app.py
    Output, exit code and signals are the program's own. The report goes to stderr, with -o into files only.
    """
    for path in outputs:
        if Path(path).suffix not in FORMS:
            raise UsageFault(
                f"cannot tell the form of {path}", hint=f"a name that ends in {', '.join(FORMS)}"
            )
    if bool(command_words) == bool(saved):
        raise UsageFault(
            "no command to run" if not saved else "--from runs no command",
            hint="for example: velo trace -- python app.py",
        )
    other = load(Path(against)) if against else None
    if saved:
        trace, code, own = load(Path(saved)), 0, 0
    else:
        to_stderr = as_json and not outputs
        trace, code, own = _traced(list(command_words), plain, sys.stderr.fileno() if to_stderr else None)
    chosen = choose(trace, process, own)
    compared = choose(other, None, 0) if other else None
    stream = sys.stdout if saved else sys.stderr
    for path in outputs:
        _write(Path(path), trace, chosen, other, compared, (tree, top))
    if as_json:
        render.data(trace.document())
    elif as_importtime:
        render.lines(importtime.lines(chosen), stream)
    elif not outputs:
        _show(trace, chosen, compared, (tree, top), stream)
    return foreground.end_like(code)


def choose(trace: Trace, pid: int | None, own: int) -> Process:
    """The process with this id, or the command's own, or the first; where it has several (it called exec, or
    started no Python itself), the one with most imports.
    """
    wanted = [each for each in trace.processes if each.pid == (pid or own or trace.processes[0].pid)]
    if pid and not wanted:
        raise UsageFault(
            f"no process {pid} in this trace",
            hint=f"it has {', '.join(str(each.pid) for each in trace.processes)}",
        )
    return max(wanted or trace.processes, key=lambda each: (len(each.imports), -each.began))


def _traced(words: list[str], plain: bool, stdout: int | None) -> tuple[Trace, int, int]:
    """Run the command; its trace, its exit code, and its process id."""
    if is_disabled(os.environ):
        raise VeloError("VELO_DISABLE is set, so nothing can be traced", hint="unset it")
    chosen = settings()
    prepare(chosen.home)
    environment = child_environment(
        original_environment(os.environ),
        injection_folder=injection_folder(),
        home=chosen.home,
        shared=chosen.shared,
        check="" if chosen.values["check"].origin == "default" else chosen.check,
        remember="" if chosen.values["run.remember"].origin == "default" else chosen.remember,
        calm=chosen.calm,
        learn=chosen.learn_enabled,
    )
    folder = tempfile.mkdtemp(prefix="velo-trace-")  # for us alone
    try:
        environment[env.TRACE] = (PLAIN if plain else "") + folder
        sys.stdout.flush()
        began = perf_counter_ns()
        own, code = foreground.run(words, environment, stdout)
        ended = perf_counter_ns()
        processes = read_folder(Path(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not processes:
        render.note(
            f"warning: {words[0]} started no Python that Velo knows, so there is no trace\n"
            "hint: `velo doctor` says which Pythons can be traced"
        )
        raise SystemExit(foreground.end_like(code))
    return Trace(words, began, ended, code, processes), code, own


def _write(
    path: Path,
    trace: Trace,
    chosen: Process,
    other: Trace | None,
    compared: Process | None,
    shape: tuple[bool, int],
) -> None:
    """One form of the trace into a file, whole or not at all."""
    form = FORMS[path.suffix]
    if form == "json":
        text = render.document_text(trace.document())
    elif form == "importtime":
        text = "".join(f"{line}\n" for line in importtime.lines(chosen))
    elif form == "html":
        from ..trace.page import page

        is_compared = other is not None and compared is not None
        text = page(
            trace,
            trace.processes.index(chosen),
            other,
            other.processes.index(compared) if is_compared else 0,  # type: ignore[union-attr, arg-type]
        )
    else:
        from io import StringIO

        buffer = StringIO()
        _show(trace, chosen, compared, shape, buffer)
        text = buffer.getvalue()
    publish(path, [text.encode("utf-8", "backslashreplace")], mode=0o644)


def _show(
    trace: Trace, chosen: Process, compared: Process | None, shape: tuple[bool, int], stream: TextIO
) -> None:
    """The trace in words."""
    is_tree, top = shape
    render.pairs(report.summary(trace, chosen, compared), stream)
    rows = report.tree(chosen) if is_tree else report.longest(chosen, top)
    render.line("", stream)
    render.table(report.HEADERS, rows, right=report.NUMBERS, stream=stream)
    if more := report.others(trace, chosen):
        render.line("\nother processes (--process PID):", stream)
        render.lines(more, stream)

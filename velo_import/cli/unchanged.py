# SPDX-License-Identifier: Apache-2.0
"""The short way of `velo ingest DIR`, for a folder in which nothing has changed.

Loading the command line takes longer than looking at twenty thousand files, so this comes first: a receipt of
the last ingest, one question to the interpreter, one look at everything the receipt names. It changes nothing
and prints nothing unless all of it is as it was; with the least doubt (an option it does not know, a
configuration file, an error) it steps aside, and the command line looks for itself, and is the reference.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_PATIENCE = 5.0  # For the interpreter; the long way waits for a minute.
_SIGKILL = 9


def answer(arguments: Sequence[str]) -> int | None:
    """Say that all was as before and give the exit code; None if it may not be. The arguments are those after
    `ingest`.
    """
    began = time.perf_counter()
    asked = _parsed(arguments)
    if asked is None:
        return None
    target, python, as_json = asked
    if not python and os.path.isdir(os.path.join(target, "node_modules")):
        return None  # There are Nodes to be looked for, too.
    try:
        summary = _summary(os.path.abspath(target), python)
    except Exception:  # whatever it is, the long way meets it as well, and explains it
        return None
    if summary is None:
        return None
    from ..errors import VeloError
    from .ingested import show_summary
    from .render import failure, flush

    seconds = time.perf_counter() - began
    unreadable = [dict(zip(("path", "reason"), each, strict=True)) for each in summary["unreadable"]]
    measured = {
        "seconds": seconds,
        "files_per_second": summary["files"] / seconds,
        "phases": {"scan": seconds},
    }
    try:
        show_summary({**summary, "unreadable": unreadable, **measured}, None, 0, as_json)
        flush()
    except VeloError as error:
        return failure(error, as_json)
    except BrokenPipeError:  # as in main.py
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parsed(arguments: Sequence[str]) -> tuple[str, str, bool] | None:
    """Folder, interpreter if one is named, and whether JSON is wanted; None for everything else."""
    folders = []
    python = ""
    as_json = False
    words = iter(arguments)
    for word in words:
        if word == "--json":
            as_json = True
        elif word == "--python":
            python = next(words, "-")
        elif word.startswith("-") or not word:
            return None
        else:
            folders.append(word)
    return (folders[0], python, as_json) if len(folders) == 1 and not python.startswith("-") else None


def _summary(target: str, python: str) -> dict[str, Any] | None:
    from ..config.paths import configuration_files, default_home
    from ..ingest.owner import find_python, in_full
    from ..ingest.receipt import find
    from ..launch.injection import prepare

    environ = os.environ
    if environ.get("VELO_READONLY", "0") not in ("", "0") or configuration_files(os.getcwd(), environ):
        return None
    home = default_home(environ)
    status = os.stat(home)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        return None
    with open(os.path.join(home, "VERSION"), "rb") as file:
        if file.read(3) != b"1\n":
            return None
    python = in_full(python) or find_python(target)
    candidates = list(find(home, target, python, 0, [[], []]))
    if not candidates:
        return None
    process, answer = _ask(python)
    said = None
    try:
        prepare(home)
        receipt = next((each for each in candidates if each.holds()), None)
        if receipt is not None:
            said = _answer(answer)
    finally:
        os.close(answer)
        if said is None:
            os.kill(process, _SIGKILL)
        os.waitpid(process, 0)
    return receipt.summary if receipt is not None and receipt.said == said else None


def _ask(python: str) -> tuple[int, int]:
    """Start the interpreter with the question; its process, and where it will answer. As `Probe` does it, but
    `subprocess` takes 4 ms to import.
    """
    from ..ingest.owner import QUESTION, plain_environment

    environment = plain_environment(os.environ)
    command = [python, "-E", "-s", "-B", "-c", QUESTION]
    answer, writer = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.dup2(writer, 1)
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 2)
            os.chdir("/")
            os.execvpe(python, command, environment)
        finally:
            os._exit(127)
    os.close(writer)
    return process, answer


def _answer(descriptor: int) -> bytes | None:
    """What it said; None if it takes its time."""
    import select

    from ..ingest.owner import answer_in

    deadline = time.monotonic() + _PATIENCE
    output = b""
    while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return answer_in(output)
        output += piece
    return None

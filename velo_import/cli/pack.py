# SPDX-License-Identifier: Apache-2.0
"""`velo pack -- CMD`: run a program once, and lay its bytecode out in the order in which it starts.

Knows how the program is run and where the hook leaves its notes. The surprise: with `--json` the output of
the program goes to stderr, so that stdout is one JSON object.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click

from ..config import env
from ..errors import UsageFault, VeloError
from ..ingest.packing import pack_start
from ..launch import foreground
from ..launch.environment import child_environment, is_disabled
from ..launch.execute import original_environment
from ..launch.injection import injection_folder, prepare
from . import render
from .common import json_flag, settings, store_to_fill


@click.command(
    "pack",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
)
@click.argument("command_words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENTS]...")
@json_flag
def command(command_words: tuple[str, ...], as_json: bool) -> int:
    """Run a program and write what its start needs into one pack, in that order.

    \b
    velo pack -- python app.py
    For starts right after a boot or on a new machine. Let the program do what it does at its start, and end.
    Repeat it when much has changed; until then what has changed is served as before.
    """
    if not command_words:
        raise UsageFault("no command to run", hint="for example: velo pack -- python app.py")
    if is_disabled(os.environ):
        raise VeloError("VELO_DISABLE is set, so nothing can be recorded", hint="unset it")
    chosen = settings()
    store = store_to_fill(chosen.home)
    prepare(chosen.home)
    with tempfile.TemporaryDirectory(prefix="velo-pack-") as folder:
        code, notes = _recorded(list(command_words), Path(folder), chosen.home, as_json)
        if not notes:
            raise VeloError(
                f"{command_words[0]} is no Python program that Velo can help, or did not end by itself",
                hint="`velo doctor` says which Pythons can be helped",
            )
        summary = pack_start(notes, store)
    if as_json:
        render.data({**summary._asdict(), "exit_code": code})
    else:
        render.pairs(
            {
                "command": summary.command,
                "pack": f"{summary.pack[:12]} ({render.size(summary.bytes)})"
                if summary.pack
                else "none of its own",
                "modules": f"{summary.packed} of {summary.modules} in start-up order",
                "libraries": f"{summary.mapped} files are read ahead",
            }
        )
    if code:
        render.note(f"warning: the program ended with exit code {code}; what it did until then was recorded")
    return 0


def _recorded(words: list[str], folder: Path, home: str, as_json: bool) -> tuple[int, bytes]:
    """Run the command; its exit code, and the notes of its own process or else of the largest child."""
    environment = child_environment(
        original_environment(os.environ), injection_folder=injection_folder(), home=home
    )
    environment[env.PACK] = str(folder)
    sys.stdout.flush()
    own, code = foreground.run(words, environment, sys.stderr.fileno() if as_json else None)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return code, found.get(str(own)) or max(found.values(), key=len, default=b"")

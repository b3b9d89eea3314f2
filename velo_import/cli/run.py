# SPDX-License-Identifier: Apache-2.0
"""`velo run`'s help. The work is in launch/execute.py, which `__main__` calls without coming through here."""

from __future__ import annotations

import sys

import click

from ..launch import execute


@click.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[OPTIONS] --",
)
@click.option("--manifest", metavar="FILE", help="Consult this manifest first.")
@click.option("--check", metavar="MODE", help="How freshness is checked: auto, stat, root, none or shadow.")
@click.argument("command_words", nargs=-1, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENTS]...")
def command(manifest: str | None, check: str | None, command_words: tuple[str, ...]) -> None:
    """Run a program as it is, only faster: the first run learns, the second is fast.

    The exit code is the program's own; 126 or 127 when it cannot start.
    """
    options = [f"--manifest={manifest}"] if manifest else []
    options += [f"--check={check}"] if check else []
    sys.exit(execute.run([*options, "--", *command_words]))

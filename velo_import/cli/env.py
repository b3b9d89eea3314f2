# SPDX-License-Identifier: Apache-2.0
"""`velo env`: the variables for people who inject by hand, in the words of their shell.

Knows quoting; which variables there are is launch/environment.py's business.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable

import click

from ..errors import VeloError
from ..launch.environment import can_inject, changes, child_environment, is_disabled
from ..launch.injection import injection_folder, preload_file, prepare
from . import render
from .common import json_flag, settings


def _fish(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _powershell(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


INJECTED = ("PYTHONPATH", "NODE_OPTIONS", "VELO_HOME")
SHELLS: dict[str, Callable[[str, str], str]] = {
    "posix": lambda name, value: f"{name}={shlex.quote(value)}; export {name}",
    "bash": lambda name, value: f"export {name}={shlex.quote(value)}",
    "zsh": lambda name, value: f"export {name}={shlex.quote(value)}",
    "fish": lambda name, value: f"set -gx {name} {_fish(value)}",
    "powershell": lambda name, value: f"$env:{name} = {_powershell(value)}",
}


@click.command("env")
@click.option("--shell", type=click.Choice(list(SHELLS)), help="Default: what $SHELL names, else posix.")
@click.option("--manifest", metavar="FILE", default="", help="Consult this manifest first.")
@json_flag
def command(shell: str | None, manifest: str, as_json: bool) -> None:
    """Print the variables that inject Velo.

    \b
    eval "$(velo env)"             in bash, zsh, sh
    velo env --shell fish | source
    """
    chosen = settings()
    if not can_inject(injection_folder()):
        raise VeloError(
            f"PYTHONPATH cannot name {injection_folder()}",
            hint="install Velo in a folder with no `:` in its name",
        )
    prepare(chosen.home)
    environ = {name: value for name, value in os.environ.items() if name != "VELO_DISABLE"}
    child = child_environment(
        environ,
        injection_folder=injection_folder(),
        home=chosen.home,
        preload=preload_file(),
        shared=chosen.shared,
        manifest=manifest,
        check=chosen.check if chosen.values["check"].origin != "default" else "",
        remember=chosen.remember if chosen.values["run.remember"].origin != "default" else "",
        calm=chosen.calm,
        learn=chosen.learn_enabled,
    )
    # All that injection needs, also what is set already: the output may be kept and used elsewhere.
    needed: dict[str, str] = {name: child[name] for name in INJECTED if name in child}
    variables = {**needed, **changes(environ, child)}
    if is_disabled(os.environ):
        render.note("warning: VELO_DISABLE is set, and switches all of this off")
    if as_json:
        render.plain_object(variables)
        return
    form = SHELLS[shell or _current_shell()]
    for name, value in variables.items():
        render.line(form(name, value))


def _current_shell() -> str:
    name = os.path.basename(os.environ.get("SHELL", ""))
    return {"pwsh": "powershell"}.get(name, name if name in SHELLS else "posix")

# SPDX-License-Identifier: Apache-2.0
"""What several commands need: the settings, the store, the --json flag."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..config import env
from ..config.settings import Settings, load, require_valid
from ..errors import VeloError
from ..store.layout import Store

Command = TypeVar("Command", bound=Callable[..., Any])


def json_flag(command: Command) -> Command:
    """Adds `--json`, passed on as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(command)


def python_option(command: Command) -> Command:
    """Adds `--python PY`."""
    return click.option("--python", metavar="PY", help="The interpreter; default: python3 on PATH.")(command)


def wait_option(command: Command) -> Command:
    """Adds `--wait SECONDS`, for commands that need the store alone."""
    text = "How long to wait for an ingest or another maintenance."
    kind = click.FloatRange(0)
    return click.option("--wait", type=kind, metavar="SECONDS", default=60.0, show_default=True, help=text)(
        command
    )


def settings(**flags: Any) -> Settings:
    """The settings for the current folder; refuses values that cannot be used."""
    return require_valid(load(os.environ, current_folder(), flags))


def current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # deleted under our feet
        return "/"


def open_store() -> Store:
    """The store that is there, only to be read."""
    return Store.open(Path(settings().home), readonly=True)


def store_to_change() -> Store:
    """The store that is there, to be changed; only to be read where VELO_READONLY is set."""
    return Store.open(Path(settings().home), readonly=is_readonly())


def store_to_fill(home: str) -> Store:
    """The store in that folder for a command that adds to it; it is made where there is none."""
    refuse_readonly()
    return Store.open(Path(home), create=True)


def refuse_readonly() -> None:
    """Raise where nothing may be written."""
    if is_readonly():
        raise VeloError(
            "VELO_READONLY is set, so nothing is written to the store", hint="unset VELO_READONLY to write"
        )


def is_readonly() -> bool:
    return os.environ.get(env.READONLY, "0") not in ("", "0")


def default_python() -> str:
    """The interpreter that `python` in this shell means: that of the active environment first."""
    import shutil

    active = os.environ.get("VIRTUAL_ENV")
    if active and os.access(f"{active}/bin/python", os.X_OK):
        return f"{active}/bin/python"
    import sys

    return shutil.which("python3") or sys.executable

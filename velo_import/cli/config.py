# SPDX-License-Identifier: Apache-2.0
"""`velo config`: the values in force, where each comes from, and what is wrong with the files."""

from __future__ import annotations

import os

import click

from ..config.paths import configuration_files, user_file
from ..config.settings import KEYS, Settings, load
from . import render
from .common import current_folder, json_flag


@click.group("config")
def command() -> None:
    """Show, locate and validate the configuration."""


def _load() -> Settings:
    return load(os.environ, current_folder())


@command.command("show")
@json_flag
def show(as_json: bool) -> None:
    """Every value in force, and its origin."""
    chosen = _load()
    if as_json:
        values = {
            name: {"value": value.value, "origin": value.origin} for name, value in chosen.values.items()
        }
        render.data({"values": values, "files": list(chosen.files)})
        return
    rows = [(key.name, _shown(chosen.values[key.name].value), chosen.values[key.name].origin) for key in KEYS]
    render.table(("key", "value", "origin"), rows)
    if chosen.problems:
        render.note(f"warning: {len(chosen.problems)} problems\nhint: see `velo config validate`")


@command.command("path")
@json_flag
def path(as_json: bool) -> None:
    """The files that are read here, strongest first."""
    found = [path for _, path in configuration_files(current_folder(), os.environ)]
    if as_json:
        render.data({"files": found, "user_file": user_file(os.environ)})
        return
    for name in found:
        render.line(name)
    if not found:
        render.note(f"no configuration file\nhint: write velo.toml here, or {user_file(os.environ)}")


@command.command("validate")
@json_flag
def validate(as_json: bool) -> int:
    """Check the files: unknown keys, wrong values, broken TOML. Exit code 1 when there is a problem."""
    chosen = _load()
    if as_json:
        problems = [problem._asdict() for problem in chosen.problems]
        render.data({"files": list(chosen.files), "problems": problems})
        return int(bool(problems))
    for problem in chosen.problems:
        render.line(problem.text)
    if not chosen.problems:
        render.note(f"ok: {len(chosen.files)} files")
        return 0
    render.note("hint: the keys are " + ", ".join(key.name for key in KEYS))
    return 1


def _shown(value: object) -> str:
    return (
        {None: "-", True: "true", False: "false"}.get(value, str(value))
        if value is None or isinstance(value, bool)
        else str(value)
    )

# SPDX-License-Identifier: Apache-2.0
"""`velo enable`: Velo in one environment, also for plain `python` and `python -I`."""

from __future__ import annotations

from pathlib import Path

import click

from ..launch.enable import enable
from . import render
from .common import json_flag, settings


@click.command("enable")
@click.argument("environment", metavar="VENV", type=click.Path(path_type=Path))
@json_flag
def command(environment: Path, as_json: bool) -> None:
    """Put Velo into one virtual environment. `velo disable VENV` takes it out again."""
    home = settings().home
    change = enable(environment, home)
    if as_json:
        files = [str(path) for path in change.files]
        render.data({"environment": str(environment), "home": home, "files": files, "learns": change.learns})
        return
    for path in change.files:
        render.line(f"wrote {path}")
    if not change.learns:
        render.note(
            f"warning: nothing can be learned, because {home} cannot be written\nhint: see `velo doctor`"
        )

# SPDX-License-Identifier: Apache-2.0
"""`velo disable`: takes out what `velo enable` put in."""

from __future__ import annotations

from pathlib import Path

import click

from ..launch.enable import disable
from . import render
from .common import json_flag


@click.command("disable")
@click.argument("environment", metavar="VENV", type=click.Path(path_type=Path))
@json_flag
def command(environment: Path, as_json: bool) -> None:
    """Take Velo out of one virtual environment, without trace."""
    change = disable(environment)
    if as_json:
        render.data({"environment": str(environment), "files": [str(path) for path in change.files]})
        return
    for path in change.files:
        render.line(f"removed {path}")
    if not change.files:
        render.note(f"nothing to remove: Velo is not enabled in {environment}")

# SPDX-License-Identifier: Apache-2.0
"""`velo doctor`: everything that can keep Velo from helping, on one page that can be pasted into an issue."""

from __future__ import annotations

import os

import click

from ..config.settings import load
from . import render
from .checks import examine
from .common import current_folder, default_python, json_flag, python_option


@click.command("doctor")
@python_option
@json_flag
def command(python: str | None, as_json: bool) -> int:
    """Check everything that can keep Velo from helping. Exit code 1 when something has failed."""
    interpreter = python or default_python()
    settings = load(os.environ, current_folder())
    findings = list(examine(settings, interpreter, dict(os.environ)))
    failed = sum(finding.mark == "fail" for finding in findings)
    warned = sum(finding.mark == "warn" for finding in findings)
    if as_json:
        checks = [finding._asdict() for finding in findings]
        render.data({"python": interpreter, "checks": checks, "failed": failed, "warned": warned})
        return int(bool(failed))
    for finding in findings:
        render.finding(*finding)
    render.note(f"{len(findings)} checks, {failed} failed, {warned} warnings")
    return int(bool(failed))

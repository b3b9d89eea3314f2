# SPDX-License-Identifier: Apache-2.0
"""What `velo tour` measures on: a throw-away environment with real packages, or what this Python already has.

Knows uv, pip and the standard library's venv; measuring is tour_measure.py's work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("boto3", "django", "pandas", "sympy")
# Asked for in this order when no registry answers; the first few that can be imported are taken.
CANDIDATES = (
    "boto3",
    "django",
    "pandas",
    "sympy",
    "numpy",
    "matplotlib",
    "sqlalchemy",
    "pytest",
    "hypothesis",
    "rich",
)
STANDARD = ("asyncio", "unittest.mock", "http.server", "xmlrpc.client")
FALLBACK_SIZE = 4
PATIENCE_SECONDS = 600

# `django` alone imports next to nothing; these are what a program with it imports.
STATEMENTS = {"django": "import django.db.models, django.http, django.core.management, django.urls"}

Say = Callable[[str, int, int], None]


class Place(NamedTuple):
    """An interpreter, what to import there, and where the packages came from: `registry` or `installed`."""

    python: str
    modules: tuple[str, ...]
    source: str
    reason: str = ""
    throw_away: bool = False


def statement(module: str) -> str:
    return STATEMENTS.get(module, f"import {module}")


def prepare(folder: Path, modules: Sequence[str], *, offline: bool, say: Say) -> Place:
    """An environment in `folder` with the packages; what is installed here when that cannot be had."""
    if offline:
        return installed(modules, "asked to stay offline")
    python = folder / "venv" / "bin" / "python"
    say("making an environment", 0, 0)
    try:
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
        say(f"installing {', '.join(modules or PACKAGES)}", 0, 0)
        _run(_installer(str(python)) + list(modules or PACKAGES))
    except (OSError, subprocess.SubprocessError) as error:
        return installed(modules, f"no registry answered ({_last_line(error)})")
    return Place(str(python), tuple(modules or PACKAGES), "registry", throw_away=True)


def installed(modules: Sequence[str], reason: str) -> Place:
    """This interpreter, and what it can import."""
    found = [name for name in modules or CANDIDATES if _is_there(name)]
    if not modules:
        found = (found + list(STANDARD))[:FALLBACK_SIZE]
    return Place(sys.executable, tuple(found), "installed", reason)


def compile_everything(python: str) -> None:
    """Write the .pyc files that pip would have written."""
    folder = Path(python).parents[1]
    # Exit code 1 only says that some file, in some package's test data, is no valid Python.
    subprocess.run(
        [python, "-m", "compileall", "-q", "-j", "0", str(folder / "lib")],
        capture_output=True,
        env=_environment(),
    )


def _installer(python: str) -> list[str]:
    """uv if it is there, else pip; without .pyc, which come later, for all at once."""
    uv = shutil.which("uv")
    if uv is None and find_spec("uv") is not None:
        uv = str(Path(sys.executable).parent / "uv")
    if uv is not None:
        return [uv, "pip", "install", "--quiet", "--python", python]
    options = [
        "--quiet",
        "--no-compile",
        "--disable-pip-version-check",
        "--no-input",
        "--timeout",
        "15",
        "--retries",
        "1",
    ]
    return [sys.executable, "-m", "pip", "--python", python, "install", *options]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_SECONDS, env=_environment())


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VELO_"))}


def _last_line(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1][:120] if lines else "no reason given"
    return type(error).__name__

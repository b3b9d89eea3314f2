# SPDX-License-Identifier: Apache-2.0
"""Environments to sweep: the locked distributions of requirements.lock, with their bytecode, made by uv.

`editables` makes a small one of back ends and of projects that are installed in place; `hooked` one of those
that come with a hook on `sys.path_hooks`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import interpreters
from tests.support.interpreters import Interpreter
from tests.support.running import clean_environment

from . import editables

LOCK = Path(__file__).with_name("requirements.lock")


def find_uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise SystemExit("uv not found: python -m pip install uv")
    return found


def interpreter(name: str) -> Interpreter:
    """The interpreter of this machine that answers to `3.12`."""
    for each in interpreters.supported():
        if each.name == name:
            return each
    raise SystemExit(f"no Python {name} here: {', '.join(each.name for each in interpreters.supported())}")


def make(name: str, folder: Path, *, kind: str = "all", only: list[str] | None = None) -> Path:
    """Make the environment, of `only` these distributions if some are named; gives its interpreter."""
    uv = find_uv()
    # Copies: whoever installs the same distribution by hard link later would change the times of our files.
    variables = clean_environment(Path.home(), UV_LINK_MODE="copy")

    def call(*arguments: str | Path) -> None:
        subprocess.run([uv, *map(str, arguments)], env=variables, check=True)

    call("venv", "-q", "--no-project", "--python", interpreter(name).resolve(), folder)
    python = folder / "bin" / "python"
    lock = LOCK.read_text()
    lines = [line for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    if kind != "all":
        lines = [line for line in lines if _name(line) in editables.BACK_ENDS]
    if only:
        lines = [line for line in lines if _name(line) in only]
    chosen = folder / "requirements.txt"
    chosen.write_text("\n".join(lines) + "\n")
    options = ["-q", "--python", python, "--compile-bytecode", "--no-deps"]
    call("pip", "install", *options, "--only-binary", ":all:", "-r", chosen)
    if kind != "all":
        editables.install(python, folder / "projects", uv, hooked=kind == "hooked")
    return python


def _name(line: str) -> str:
    return re.split(r"[=<>!~; \[]", line, maxsplit=1)[0].lower()

# SPDX-License-Identifier: Apache-2.0
"""The virtual environments that programs start from: locked packages, built once per interpreter, kept in a
work folder.

Two kinds: `pyc` (every module compiled, as pip leaves it) and `bare` (no module of site-packages compiled,
as uv leaves it). Files are copied, never linked, so that environments share neither inodes nor page cache.

The surprise: `bare` stays bare only because the cells that use it also set PYTHONDONTWRITEBYTECODE;
`check_bare` proves it after each series. The standard library is the interpreter's own and keeps the `.pyc`
files that it came with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.arms import clean_variables
from bench.interpreters import Interpreter
from bench.measure import BenchmarkFault

LOCK = Path(__file__).with_name("requirements.lock")


@dataclass(frozen=True)
class Environment:
    interpreter: Interpreter
    prefix: Path

    @property
    def python(self) -> Path:
        return self.prefix / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return self.prefix / "lib" / f"python{self.interpreter.short}" / "site-packages"


def work_folder(request: str = "") -> Path:
    """`request`, or `velo-bench` in the folder for temporary files; private to this user."""
    folder = Path(request) if request else Path(tempfile.gettempdir()) / "velo-bench"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder.resolve()


def find_uv() -> list[str]:
    for candidate in (str(Path(sys.executable).with_name("uv")), shutil.which("uv") or ""):
        if candidate and os.access(candidate, os.X_OK):
            return [candidate]
    raise BenchmarkFault("uv not found: python -m pip install uv")


def build(work: Path, interpreter: Interpreter, kind: str, requirements: Sequence[str] = ()) -> Environment:
    """The environment of this kind, made if it is missing.

    Kinds: `pyc`, `bare`, `linked` and `linked-pyc` (by uv's hard links: bare, and compiled), `empty`, `mount`
    (empty, to be mounted over; others that begin with it are others of that kind).
    `requirements` replaces the lock as the list of what to install; versions always come from the lock.
    """
    what_it_is = (LOCK.read_text(encoding="utf-8"), sorted(requirements), interpreter, kind)
    digest = hashlib.sha256(repr(what_it_is).encode()).hexdigest()
    prefix = work / f"{kind}-{interpreter.tag}-{digest[:8]}"
    ready = prefix / "bench-ready"  # written last: an interrupted build is made again
    environment = Environment(interpreter, prefix)
    if ready.exists() and ready.read_text(encoding="utf-8") == digest:
        return environment
    shutil.rmtree(prefix, ignore_errors=True)
    if kind == "empty" or kind.startswith("mount"):
        _call([str(interpreter.executable), "-m", "venv", "--without-pip", str(prefix)])
    else:
        uv = find_uv()
        _call([*uv, "venv", "--quiet", "--no-project", "--python", str(interpreter.executable), str(prefix)])
        what = [*requirements, "--constraint", str(LOCK)] if requirements else ["--requirement", str(LOCK)]
        compiled = ["--compile-bytecode" if kind.endswith("pyc") else "--no-compile-bytecode"]
        links = "hardlink" if kind.startswith("linked") else "copy"
        install = [*uv, "pip", "install", "--quiet", "--link-mode", links]
        _call([*install, "--python", str(environment.python), *compiled, *what])
    ready.write_text(digest, encoding="utf-8")
    return environment


def compiled_files(environment: Environment) -> int:
    return sum(1 for _ in environment.site_packages.rglob("*.pyc"))


def check_bare(environment: Environment) -> None:
    if count := compiled_files(environment):
        raise BenchmarkFault(f"{count} .pyc files appeared in the environment that must have none")


def _call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=clean_variables(os.environ))
    if done.returncode != 0:
        raise BenchmarkFault(f"{' '.join(command[:4])} … failed: {done.stderr.strip()[-600:]}")

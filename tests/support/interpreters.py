# SPDX-License-Identifier: Apache-2.0
"""The Pythons of this machine: found by looking, never by a list of paths, and asked who they are.

Knows where interpreters tend to live (PATH, pyenv, the system folders, a Debian sid root) and which of them
Velo supports. What is run with them is the business of running.py. Surprise: those of the sid root exist only
after `resolve()`, because making the root takes half a minute and collecting tests must not.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import sid

FLOOR = (3, 11)
NAME = re.compile(r"(python[23]?(\.\d+)?t?|pypy[23]?(\.\d+)?)")
# Runs on 2.7 as well as on 3.15, so no f-strings and no annotations.
QUESTION = """
import json, platform, sys
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "implementation": platform.python_implementation().lower(),
    "threads": bool(getattr(sys, "_is_gil_enabled", lambda: True)() is False),
    "debug": hasattr(sys, "gettotalrefcount"),
    "prefix": sys.prefix, "base": getattr(sys, "base_prefix", sys.prefix),
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """One Python of this machine; `path` is None for one that the sid root has still to bring."""

    version: tuple[int, ...]
    implementation: str = "cpython"
    path: Path | None = field(default=None, compare=False)
    free_threaded: bool = False

    @property
    def name(self) -> str:
        """A short name, used as the id of a parametrised test: `3.12`, `3.13t`, `pypy3.10`."""
        brand = "" if self.implementation == "cpython" else self.implementation
        return f"{brand}{self.version[0]}.{self.version[1]}{'t' if self.free_threaded else ''}"

    @property
    def supported(self) -> bool:
        return self.implementation == "cpython" and self.version[:2] >= FLOOR

    @property
    def cache_tag(self) -> str:
        return f"{self.implementation}-{self.version[0]}{self.version[1]}"

    @property
    def library(self) -> str:
        """The folder of modules below a prefix, as virtual environments spell it."""
        return f"lib/python{self.version[0]}.{self.version[1]}{'t' if self.free_threaded else ''}"

    def resolve(self) -> Path:
        """Where it is now; makes the sid root when that is where it comes from (raises sid.Unavailable)."""
        return self.path or sid.interpreter(self.version[:2])


def ask(path: Path) -> Interpreter | None:
    """Who the executable says it is, or None when it does not answer like a Python outside of a virtual
    environment.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VELO_"))
    }
    try:
        reply = subprocess.run(
            [str(path), "-E", "-s", "-c", QUESTION], capture_output=True, timeout=20, env=environment, cwd="/"
        )
        facts = json.loads(reply.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    if facts["prefix"] != facts["base"] or facts["debug"]:
        return None
    return Interpreter(tuple(facts["version"]), facts["implementation"], path, facts["threads"])


def pyenv_root() -> Path:
    """The folder that pyenv keeps its versions in, whether or not it exists."""
    if "PYENV_ROOT" in os.environ:
        return Path(os.environ["PYENV_ROOT"])
    if pyenv := shutil.which("pyenv"):
        reply = subprocess.run([pyenv, "root"], capture_output=True, text=True)
        if reply.returncode == 0 and reply.stdout.strip():
            return Path(reply.stdout.strip())
    return Path.home() / ".pyenv"


def candidates() -> Iterator[Path]:
    """Executables that may be Pythons, the likeliest first: our own, pyenv's, those on PATH, the system's."""
    yield Path(getattr(sys, "_base_executable", None) or sys.executable)
    pyenv = pyenv_root()
    yield from sorted(pyenv.glob("versions/*/bin/python"), reverse=True)
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in [*folders, Path("/usr/local/bin"), Path("/usr/bin")]:
        if (
            folder == pyenv / "shims" or not folder.is_dir()
        ):  # A shim is a shell script that starts another Python.
            continue
        for name in sorted(os.listdir(folder), reverse=True):
            if NAME.fullmatch(name):
                yield folder / name


@functools.cache
def installed() -> tuple[Interpreter, ...]:
    """Every Python found, one for each version and brand, oldest first."""
    found: dict[str, Interpreter] = {}
    asked: set[Path] = set()
    for path in candidates():
        real = path.resolve()
        if real in asked:
            continue
        asked.add(real)
        if (interpreter := ask(real)) is not None:
            found.setdefault(interpreter.name, interpreter)
    return tuple(sorted(found.values(), key=lambda each: (each.version, each.name)))


@functools.cache
def supported() -> tuple[Interpreter, ...]:
    """Those that Velo accelerates, the newest of this machine first, then older ones, then those of Debian
    sid.
    """
    here = [each for each in reversed(installed()) if each.supported]
    names = {each.name for each in here}
    there = [Interpreter(version) for version in sid.VERSIONS]
    return tuple(here + [each for each in there if each.name not in names])


@functools.cache
def foreign() -> tuple[Interpreter, ...]:
    """Those that may inherit Velo's variables and must not notice."""
    return tuple(each for each in installed() if not each.supported)


if __name__ == "__main__":
    for each in (*supported(), *foreign()):
        kind = "supported" if each.supported else "foreign"
        print(f"{each.name:10} {kind:10} {each.path or 'in the Debian sid root'}")

# SPDX-License-Identifier: Apache-2.0
"""The arms that are compared: plain Python, with Velo's variables, under `velo run`, and a floor.

An arm is a command line and a complete set of environment variables; both are decided here and nowhere
else. Knows how to call Velo (an installed `velo`, or this checkout) and how to read VELO_STATS; does not
measure anything.

The surprise: a checkout is run as `python -m velo_import` and therefore needs the checkout as its current
folder, so all arms run there.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import BenchmarkFault

CHECKOUT = Path(__file__).resolve().parent.parent

# They are set on many machines and distort start-up (design: how we prove it).
_ALWAYS_REMOVED = (
    "NODE_EXTRA_CA_CERTS",
    "NODE_OPTIONS",
    "NODE_COMPILE_CACHE",
    "NODE_DISABLE_COMPILE_CACHE",
    "VIRTUAL_ENV",
    "MPLBACKEND",
    "DJANGO_SETTINGS_MODULE",
)
_REMOVED_PREFIXES = ("PYTHON", "VELO_", "_PYTHON")


def clean_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without anything that changes how Python, Node or Velo start."""
    return {
        name: value
        for name, value in variables.items()
        if name not in _ALWAYS_REMOVED and not name.startswith(_REMOVED_PREFIXES)
    }


@dataclass(frozen=True)
class Arm:
    """How one program is started in one way."""

    name: str
    variables: Mapping[str, str]
    launcher: tuple[str, ...] = ()

    def command(self, python: Path, *arguments: str) -> list[str]:
        return [*self.launcher, str(python), *arguments]


@dataclass(frozen=True)
class Velo:
    """The command line of Velo, and one store that belongs to the benchmark."""

    command: tuple[str, ...]
    home: Path
    version: str = field(default="")

    def call(
        self, *arguments: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {**clean_variables(os.environ), **(variables or {}), "VELO_HOME": str(self.home)}
        return subprocess.run(
            [*self.command, *arguments], env=environment, cwd=CHECKOUT, capture_output=True, text=True
        )

    def forget(self) -> None:
        """Begin with no store: what an older Velo learned is not measured. `home` is ours alone."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def ask(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Any:
        """Call with `--json` and return what it says."""
        done = self.call(*arguments, "--json", variables=variables)
        if done.returncode != 0:
            raise BenchmarkFault(f"velo {shlex.join(arguments)} failed: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout)

    def injected(self, variables: Mapping[str, str]) -> dict[str, str]:
        """`variables` as `velo env` would change them."""
        injected = self.ask("env", variables=variables)
        return {**variables, **{str(name): str(value) for name, value in injected.items()}}


def find_velo(home: Path, request: str = "") -> Velo | None:
    """`request`, or the `velo` beside this interpreter, or this checkout, or on PATH; None when none runs."""
    beside = Path(sys.executable).parent / "velo"
    candidates: list[tuple[str, ...]] = []
    if request:
        candidates.append(tuple(shlex.split(request)))
    else:
        candidates += [(str(beside),)] if beside.exists() else []
        candidates += (
            [(sys.executable, "-m", "velo_import")] if (CHECKOUT / "velo_import/__main__.py").exists() else []
        )
        candidates += [(found,)] if (found := shutil.which("velo")) else []
    for command in candidates:
        velo = Velo((shutil.which(command[0]) or command[0], *command[1:]), home)
        try:
            done = velo.call("--version")
        except OSError:
            continue
        if done.returncode == 0:
            return Velo(velo.command, home, done.stdout.strip())
        if request:
            raise BenchmarkFault(f"{request} --version failed: {done.stderr.strip()[-400:]}")
    return None


def floor_arm(variables: Mapping[str, str], notes: Path) -> Arm:
    """Plain Python with a finder that costs next to nothing and checks nothing (floor/sitecustomize.py)."""
    injected = str(CHECKOUT / "bench" / "floor")
    path = os.pathsep.join(filter(None, (injected, variables.get("PYTHONPATH"))))
    return Arm("floor", {**variables, "PYTHONPATH": path, "BENCH_FLOOR": str(notes)})


def arms_of(variables: Mapping[str, str], velo: Velo | None) -> dict[str, Arm]:
    """All arms for one cell, whose own variables are `variables`; without Velo only the plain one."""
    arms = {"plain": Arm("plain", dict(variables))}
    if velo is not None:
        arms["velo"] = Arm("velo", velo.injected(variables))
        arms["run"] = Arm("run", {**variables, "VELO_HOME": str(velo.home)}, (*velo.command, "run", "--"))
    return arms


def read_stats(path: Path, runtime: str = "python") -> dict[str, int]:
    """Totals over all processes of that runtime that wrote to a VELO_STATS file."""
    totals = {"processes": 0, "served": 0, "deferred": 0, "stale": 0, "native": 0, "errors": 0}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for record in map(json.loads, lines):
        if record.get("runtime", "python") == runtime:
            totals["processes"] += 1
            for name in ("served", "deferred", "stale", "native", "errors"):
                totals[name] += _count(record.get(name, 0))
    return totals


def read_fields(path: Path, name: str) -> list[float]:
    """One numeric field of every record, for figures that only newer versions report."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [
        float(record[name]) for record in map(json.loads, lines) if isinstance(record.get(name), int | float)
    ]


def _count(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_count(inner) for inner in value.values())
    return len(value) if isinstance(value, Sequence) else int(value)

# SPDX-License-Identifier: Apache-2.0
"""The measurements of `velo tour`: plain and accelerated starts, interleaved, their outputs compared.

Knows processes and clocks. The surprise: the accelerated arm is injected through the environment, as `velo
enable` and `velo env` do; what `velo run` itself costs is measured on its own and shown on its own.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from ..errors import VeloError
from ..launch.environment import child_environment
from ..launch.injection import injection_folder, native_velo, prepare
from .tour_environment import Place, Say, compile_everything, statement

WITH_PYC, WITHOUT_PYC = "with .pyc", "no .pyc"
LEARN_SECONDS = 120
UNWANTED = ("PYTHON", "VELO_", "NODE_")


class Row(NamedTuple):
    """One program in one cell; times in milliseconds, one for each run."""

    program: str
    cell: str
    plain: tuple[float, ...]
    velo: tuple[float, ...]
    equal: bool
    served: int

    @property
    def plain_quartile(self) -> float:
        return lower_quartile(self.plain)

    @property
    def velo_quartile(self) -> float:
        return lower_quartile(self.velo)

    @property
    def ratio(self) -> float:
        return self.plain_quartile / self.velo_quartile

    def document(self) -> dict[str, Any]:
        """The row as --json shows it."""
        return {
            "program": self.program,
            "cell": self.cell,
            "plain_ms": round(self.plain_quartile, 2),
            "velo_ms": round(self.velo_quartile, 2),
            "ratio": round(self.ratio, 3),
            "equal": self.equal,
            "served": self.served,
            "plain_runs_ms": [round(value, 2) for value in self.plain],
            "velo_runs_ms": [round(value, 2) for value in self.velo],
        }


def lower_quartile(values: Sequence[float]) -> float:
    """The quarter of runs that were disturbed least decides; the mean would measure the machine's other
    work.
    """
    return values[0] if len(values) == 1 else quantiles(values, n=4, method="inclusive")[0]


class Bench:
    """One place, one store of its own, and the two environments that are compared."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.home = folder / "store"
        self.folder = folder
        self.plain = {name: value for name, value in os.environ.items() if not name.startswith(UNWANTED)}
        prepare(str(self.home))
        self.velo = child_environment(self.plain, injection_folder=injection_folder(), home=str(self.home))

    def measure(self, runs: int, say: Say) -> Iterator[Row]:
        """All programs in both cells: first as a fresh installer leaves them, then with .pyc files."""
        total = 2 * len(self.place.modules) * (runs + 1)
        done = 0
        for cell in (WITHOUT_PYC, WITH_PYC):
            extra = self._enter(cell)
            for module in self.place.modules:
                say(f"{module}, {cell}", done, total)
                served = self._learn(module, extra)
                arms: tuple[list[float], list[float]] = ([], [])
                outputs = set()
                for run in range(runs):
                    say(f"{module}, {cell}", done + run, total)
                    # Each pair in the other order than the last, so that drift hits both alike.
                    for arm in (0, 1) if run % 2 == 0 else (1, 0):
                        output, seconds = self._time(module, {**(self.plain, self.velo)[arm], **extra})
                        arms[arm].append(seconds * 1000)
                        outputs.add(output)
                done += runs + 1
                yield Row(module, cell, tuple(arms[0]), tuple(arms[1]), len(outputs) == 1, served)

    def launcher_cost(self, runs: int) -> float:
        """What `velo run` adds to a start, in milliseconds: the difference of lower quartiles on `true`."""
        arms: tuple[list[float], list[float]] = ([], [])
        velo = [native_velo()] if native_velo() else [sys.executable, "-m", "velo_import"]
        velo += ["run", "--", "true"]
        environment = {
            **self.plain,
            "VELO_HOME": str(self.home),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        for _ in range(runs):
            for arm, command in enumerate((["true"], velo)):
                arms[arm].append(_timed(command, environment, self.folder)[1] * 1000)
        return lower_quartile(arms[1]) - lower_quartile(arms[0])

    def settle(self) -> None:
        """Wait until no learner is at work: the folder is about to be removed."""
        deadline = time.monotonic() + LEARN_SECONDS
        locks = list((self.home / "run").glob("*.lock"))
        while any(_is_held(lock) for lock in locks) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _enter(self, cell: str) -> dict[str, str]:
        """Bring the tree, or the environment, into the state of a cell; variables that both arms get."""
        if cell == WITHOUT_PYC:
            if self.place.throw_away:
                return {"PYTHONDONTWRITEBYTECODE": "1"}
            # Nobody's .pyc files are removed: Python is told to look for them elsewhere, and write none
            # there.
            return {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(self.folder / "nothing")}
        if self.place.throw_away:
            compile_everything(self.place.python)
        return {}

    def _learn(self, module: str, extra: dict[str, str]) -> int:
        """Run until everything is learned; the number of modules served then."""
        served, target = 0, self.folder / "stats"
        for _ in range(4):
            target.unlink(missing_ok=True)
            self._time(module, {**self.velo, **extra, "VELO_STATS": str(target)})
            self.settle()
            before, served = served, _served(target)
            if served and served == before:
                break
        return served

    def _time(self, module: str, environment: dict[str, str]) -> tuple[str, float]:
        name = module.partition(".")[0]
        program = (
            f"{statement(module)}\nimport sys\n"
            f"print(getattr(sys.modules[{name!r}], '__version__', ''), len(sys.modules), sys.path)"
        )
        output, seconds, code = _timed([self.place.python, "-c", program], environment, self.folder)
        if code:
            raise VeloError(
                f"cannot import {module} with {self.place.python}",
                hint=output.strip().splitlines()[-1] if output else "",
            )
        return output, seconds


def _timed(command: list[str], environment: dict[str, str], folder: Path) -> tuple[str, float, int]:
    started = time.perf_counter()
    done = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout.decode(errors="replace"), time.perf_counter() - started, done.returncode


def _served(target: Path) -> int:
    import json

    try:
        return sum(
            int(json.loads(text)["served"]) for text in target.read_text(encoding="utf-8").splitlines()
        )
    except (OSError, ValueError, KeyError):
        return 0


def _is_held(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False

# SPDX-License-Identifier: Apache-2.0
"""Tests' side of the rig: builds the shim, asks the server, remembers what was promised.

Knows how a program is started and how it may be stopped; which programs there are is in programs.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.crash.faults import CUT
from tests.crash.judge import Findings, Promises
from tests.support.stores import CHECKOUT

SHIM = Path(__file__).with_name("shim.c")


def build_shim(folder: Path) -> Path | None:
    """The shim, compiled; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    target = folder / "shim.so"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden"]
    done = subprocess.run(
        [*command, "-o", str(target), str(SHIM), "-pthread"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and what it had said by then."""

    code: int  # Negative: the signal that ended it.
    said: tuple[dict[str, Any], ...]
    stopped: bool  # From outside, perhaps at the very moment of its end.

    @property
    def operations(self) -> int:
        """How many operations of the armed classes there were, if the program got to its end."""
        return int(next(each["operations"] for each in self.said if "operations" in each))

    @property
    def finished(self) -> bool:
        return self.code == 0 and not self.stopped


class Server:
    """The process that forks the programs."""

    def __init__(self, folder: Path, shim: Path | None) -> None:
        unwanted = ("VELO", "PYTHON", "LD_PRELOAD")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        self.shim = shim
        self.log = folder / "stderr"
        with open(self.log, "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.programs"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=CHECKOUT,
            )

    def ask(self, program: str, home: Path, **request: Any) -> Outcome:
        """Run a program to its end, whatever that is.

        Args:
            arguments: what it gets besides the folder of the store.
            fault: what `arm` gets: root, classes, action, at, error, sticky, seed, record.
            after: seconds after which it is killed; with `cut` and `seed` the power is cut first.
            sabotage: see `programs.sabotage`.
        """
        if "fault" in request or "cut" in request:
            self.require_shim()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps({"program": program, "home": str(home), **request}),
            file=self._process.stdin,
            flush=True,
        )
        line = self._process.stdout.readline()
        assert line, f"the server has died: {self.complaints()}"
        answer = json.loads(line)
        return Outcome(answer["code"], tuple(answer["said"]), answer["stopped"])

    def judge(self, home: Path, promised: Promises, *, stamps: bool = True) -> Findings:
        """`judge.examine`, in another process: a broken catalogue may end whoever opens it."""
        arguments = {"promised": promised.as_json(), "stamps": stamps}
        outcome = self.ask("examine", home, arguments=arguments)
        assert outcome.finished, f"the judge ended with {outcome.code}: {self.complaints()}"
        return Findings(**outcome.said[0])

    def require_shim(self) -> None:
        if self.shim is None:
            pytest.skip("the shim needs Linux and a C compiler")

    def complaints(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]

    def close(self) -> None:
        self._process.communicate(timeout=60)


@dataclass
class Rig:
    """A store, a project to put into it, and everything that programs have promised about the store."""

    server: Server
    home: Path
    project: Path
    chance: random.Random
    promised: Promises = field(default_factory=Promises)
    openings: list[Findings] = field(default_factory=list)
    turns: int = 0

    def __post_init__(self) -> None:
        for number in range(6):
            self._write(f"pkg/module_{number}.py", b"NUMBER = %d\n" % number)
        self._write("pkg/__init__.py", b"")
        self._write("data.json", b"{}")
        self._write("library.bin", self.chance.randbytes(300_000))  # Large enough to be a loose blob.

    def edit(self) -> None:
        """Change the project a little, as its users do."""
        self.turns += 1
        for number in self.chance.sample(range(6), 2):
            self._write(f"pkg/module_{number}.py", b"TURN = %d\nNUMBER = %d\n" % (self.turns, number))
        self._write(f"new/file_{self.turns % 7}.py", b"FRESH = %d\n" % self.turns)
        if self.turns % 3 == 0:
            self._write("library.bin", self.chance.randbytes(300_000))

    def run(self, program: str, **request: Any) -> Outcome:
        """Run a program and note its promises."""
        arguments = {"tree": str(self.project), "folder": str(self.project.parent), "seed": self.turns}
        outcome = self.server.ask(program, self.home, **{"arguments": arguments, **request})
        for said in outcome.said:
            self.promised.hear(said)
        return outcome

    def examine(self) -> Findings:
        """Judge the store."""
        findings = self.server.judge(self.home, self.promised)
        self.openings.append(findings)
        return findings

    def strike(self, program: str, action: int, longest: float) -> Outcome:
        """Run a program that is stopped at some operation, or after some time up to `longest` seconds."""
        seed = self.chance.getrandbits(30)
        self.edit()
        if self.server.shim is not None and self.chance.random() < 0.5:
            fault = {
                "root": str(self.home.parent),
                "action": action,
                "at": self.chance.randint(1, 100),
                "seed": seed,
            }
            return self.run(program, fault=fault)
        request = {"after": self.chance.uniform(0, longest)}
        if action == CUT:
            request |= {"cut": str(self.home.parent), "seed": seed}
        return self.run(program, **request)

    def reopens_quickly(self) -> bool:
        """Whether each opening needed less than 50 ms of the processor, and the quickest less by the clock.

        The clock is not ours alone: others may be at work on this machine. `bench.upkeep` looks at it alone.
        """
        by_clock = min(each.reopened for each in self.openings)
        return max(each.used for each in self.openings) < 0.05 and by_clock < 0.05

    def forget(self) -> None:
        """Begin again with an empty store."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.promised = Promises()

    def _write(self, name: str, data: bytes) -> None:
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

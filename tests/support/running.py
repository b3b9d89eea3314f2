# SPDX-License-Identifier: Apache-2.0
"""Runs programs, with and without Velo, in the same clean environment, and says what came out.

Knows how a child is started, where its statistics go and when its learner is done; what a story expects of
them is the story's business. Surprise: `velo` is started from this checkout by location, so the tests need no
installation and can never test another Velo than the one beside them.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
HAS_NATIVE = any((CHECKOUT / "velo_import/_native").glob("core.*so"))
LIMIT = 60  # Seconds. Nothing here takes two; what takes sixty hangs.
# Set on many machines; each of them changes what a start-up does.
UNWANTED = re.compile(r"PYTHON|VELO_|NODE_|VIRTUAL_ENV$|LD_PRELOAD$|COVERAGE_|PYTEST_|COLUMNS$")
# -I keeps the user's project and the user's PYTHONPATH out of Velo's own process.
VELO = [
    sys.executable,
    "-I",
    "-c",
    f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); sys.argv[0] = 'velo'; "
    "from velo_import.__main__ import main; sys.exit(main())",
]


@dataclass(frozen=True)
class Result:
    """What one program did: its output, its exit code and, when accelerated, one record for each of its
    processes.
    """

    stdout: str
    stderr: str
    code: int
    stats: tuple[dict[str, Any], ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def served(self) -> int:
        return sum(each["served"] for each in self.stats)

    @property
    def errors(self) -> int:
        return sum(each["errors"] for each in self.stats)

    @property
    def reasons(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for each in self.stats:
            for reason, count in each["reasons"].items():
                total[reason] = total.get(reason, 0) + count
        return total

    @property
    def answer(self) -> tuple[str, str, int]:
        """What a user sees: the part that must not depend on Velo."""
        return self.stdout, self.stderr, self.code

    @property
    def json(self) -> Any:
        """The program's output, for programs that print one JSON document."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


def clean_environment(home: Path, **extra: str | None) -> dict[str, str]:
    """This process's environment without anything that changes how Python starts, and with a home folder of
    its own.
    """
    environment = {name: value for name, value in os.environ.items() if not UNWANTED.match(name)}
    environment.update(HOME=str(home), XDG_CACHE_HOME=str(home / ".cache"), LC_ALL="C.UTF-8")
    for name, value in extra.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return environment


def start(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    stdin: str | None = None,
    timeout: float = LIMIT,
) -> Result:
    """Run a command to its end."""
    began = time.monotonic()
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=dict(environment),
        input=None if stdin is None else stdin.encode(),
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=timeout,
    )
    return Result(
        done.stdout.decode(errors="backslashreplace"),
        done.stderr.decode(errors="backslashreplace"),
        done.returncode,
        seconds=time.monotonic() - began,
    )


def is_locked(path: Path) -> bool:
    """Whether some process holds a flock on the file. Asks for a shared lock and drops it at once."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Velo:
    """One store, one interpreter, one folder to stand in: plain runs, accelerated runs, and waiting for the
    learner.
    """

    def __init__(self, folder: Path, python: Path, cwd: Path) -> None:
        self.folder = folder
        self.python = python
        self.cwd = cwd
        self.home = folder / "velo"
        self.user = folder / "user"
        self.user.mkdir(parents=True, exist_ok=True)
        self.environment: dict[str, str | None] = {}
        self.runs = 0

    def plain_environment(self, **extra: str | None) -> dict[str, str]:
        return clean_environment(self.user, **{**self.environment, **extra})

    def velo_environment(self, **extra: str | None) -> dict[str, str]:
        return self.plain_environment(**{"VELO_HOME": str(self.home), **extra})

    def plain(
        self, *arguments: str | Path, env: Mapping[str, str | None] | None = None, **options: Any
    ) -> Result:
        """The program as it runs without Velo."""
        options.setdefault("cwd", self.cwd)
        return start([self.python, *arguments], environment=self.plain_environment(**(env or {})), **options)

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str | None] | None = None,
        command: Sequence[str | Path] | None = None,
        flags: Sequence[str] = (),
        **options: Any,
    ) -> Result:
        """The program under `velo run`; `command` replaces interpreter and arguments."""
        options.setdefault("cwd", self.cwd)
        self.runs += 1
        statistics = self.folder / f"stats-{self.runs}.jsonl"
        environment = self.velo_environment(**{"VELO_STATS": str(statistics), **(env or {})})
        target = list(command) if command is not None else [self.python, *arguments]
        result = start([*VELO, "run", *flags, "--", *target], environment=environment, **options)
        return Result(*result.answer, stats=read_statistics(statistics), seconds=result.seconds)

    def command(
        self, *arguments: str | Path, env: Mapping[str, str | None] | None = None, **options: Any
    ) -> Result:
        """Another command of Velo: `velo ingest`, `velo explain`."""
        options.setdefault("cwd", self.cwd)
        return start([*VELO, *arguments], environment=self.velo_environment(**(env or {})), **options)

    def ingest(self, target: Path | None = None, *flags: str) -> Result:
        """`velo ingest` of a folder, which has to succeed."""
        result = self.command("ingest", "--python", self.python, *flags, target or self.cwd)
        assert result.code == 0, result.stderr
        return result

    def locks(self) -> list[Path]:
        return sorted((self.home / "run").rglob("*.lock"))

    def wait_learned(self, limit: float = 180.0) -> None:
        """Wait until no learner of this store is running; on a busy machine everybody else goes first."""
        end = time.monotonic() + limit
        while busy := [lock for lock in self.locks() if is_locked(lock)]:
            assert time.monotonic() < end, f"the learner has not finished after {limit} s: {busy}"
            time.sleep(0.02)

    def learn(self, *arguments: str | Path, **options: Any) -> Result:
        """One accelerated run, and its learner's end."""
        result = self.run(*arguments, **options)
        self.wait_learned()
        return result

    def both(
        self,
        *arguments: str | Path,
        served: int = 1,
        same: Callable[[str], str] = lambda text: text,
        between: Callable[[], object] = lambda: None,
        env: Mapping[str, str | None] | None = None,
        **options: Any,
    ) -> Both:
        """Plain, accelerated and learning, accelerated: one answer, and at least `served` modules served.

        `same` is applied to both outputs before they are compared (addresses, times); `between` runs before
        each accelerated run, to undo what the program itself changed.
        """
        plain = self.plain(*arguments, env=env, **options)
        runs = []
        for turn in ("first", "second"):
            between()
            result = self.learn(*arguments, env=env, **options)
            seen, expected = [(same(each.stdout), same(each.stderr), each.code) for each in (result, plain)]
            assert seen == expected, f"{turn} accelerated run differs from plain Python"
            assert result.errors == 0, f"{turn} run: {result.stats}"
            runs.append(result)
        assert runs[1].served >= served, f"served {runs[1].served} of at least {served}: {self.story(runs)}"
        return Both(plain, *runs)

    def story(self, runs: Sequence[Result]) -> str:
        """What a failing test needs to know."""
        files = sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file())
        log = "".join(
            f"\n--- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
            for path in (self.home / "run").glob("*.log")
        )
        return f"stats {[each.stats for each in runs]}\nstore {files}{log}"


@dataclass(frozen=True)
class Both:
    """The three runs of a story."""

    plain: Result
    first: Result
    second: Result


def read_statistics(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.exists():
        return ()
    return tuple(json.loads(line) for line in path.read_text().splitlines())

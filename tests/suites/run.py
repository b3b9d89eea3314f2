# SPDX-License-Identifier: Apache-2.0
"""One part of a suite, plain and with Velo: learning, then served; and what differs, repeated.

Knows the order of runs and what counts as a result. The surprise: a difference is believed only after both
kinds of runs were repeated, because suites of this size fail now and then by themselves; what plain Python
alone has shown too is not held against Velo.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.running import HAS_NATIVE, VELO, clean_environment, is_locked, read_statistics
from tests.support.tree import make_environment
from velo_import.launch.enable import disable, enable

from .make import Made
from .outcomes import (
    ABSENT,
    FAILED,
    PASSED,
    SKIPPED,
    Outcomes,
    Seen,
    differing,
    read_outcomes,
    read_rules,
    reason_for,
)
from .suites import Suite

PLAIN, FIRST, SERVED = "plain", "first", "served"
BARE = "served without images"
ENDING = "(exit code)"  # compared like the outcome of a test
REPEATS = 4  # of each kind, as long as something differs
LEARNING = 300  # seconds that a learner may take on a busy machine
COUNTED = ("served", "images", "native", "errors")  # of VELO_STATS
SETTINGS = Path(__file__).with_name("django_settings.py")


@dataclass
class Run:
    """How one run ended."""

    outcomes: Outcomes
    code: str
    seconds: float
    served: int
    images: int
    native: int
    processes: int
    errors: int
    tail: str


@dataclass
class PartResult:
    """What came out for one part."""

    name: str
    command: str
    tests: int = 0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    served: int = 0
    images: int | None = None  # None: there was no native module, which alone can use them
    native: int = 0
    processes: int = 0
    errors: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)  # tests that must differ, and why
    unstable: dict[str, Any] = field(default_factory=dict)
    once: dict[str, Any] = field(default_factory=dict)
    unexplained: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Place:
    """Where a part is run: an environment, a folder to stand in, a store, and a folder for everything else.

    An environment that is switched between plain and Velo belongs to one part, so that several can be run at
    the same time.
    """

    def __init__(self, suite: Suite, made: Made, part: str, version: str) -> None:
        self.suite = suite
        self.here = made.here
        self.version = version
        self.folder = made.folder / (re.sub(r"\W+", "_", part)[:60] or "all")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.home = self.folder / "velo"
        (self.home / "run").mkdir(parents=True, mode=0o700)
        self.home.chmod(0o700)
        self.python = made.python or make_environment(self.folder / "venv", made.interpreter, made.base)
        # Not in our folder: names of sockets have 107 bytes, and some tests make theirs deep in there.
        self.scratch = Path(tempfile.mkdtemp(prefix="velo-"))
        weakref.finalize(self, shutil.rmtree, self.scratch, ignore_errors=True)
        self.turn = 0
        self.extra: dict[str, str | None] = {}  # variables of all runs

    def run(self, kind: str, arguments: Sequence[str]) -> Run:
        """One run; its home and its temporary folder are new, and have the same names in every run."""
        suite = self.suite
        user, scratch = self.folder / "user", self.scratch
        for each in (user, scratch):
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir()
        self.turn += 1
        report, statistics = self.folder / "report.xml", self.folder / f"statistics-{self.turn}.jsonl"
        report.unlink(missing_ok=True)
        statistics.unlink(missing_ok=True)
        command = suite.command(self.python, arguments, report, scratch)
        variables: dict[str, str | None] = {"TMPDIR": str(scratch), **self.extra}
        if suite.kind == "django":
            variables.update(VELO_SUITE_REPORT=str(report))
            shutil.copyfile(SETTINGS, self.here / "tests" / "velo_suite_settings.py")
        if kind != PLAIN:
            variables.update(VELO_HOME=str(self.home), VELO_STATS=str(statistics))
        if not suite.is_enabled:  # as after `activate`: some suites start what they have installed
            variables["PATH"] = os.pathsep.join((str(self.python.parent), os.environ.get("PATH", os.defpath)))
        if suite.is_enabled:
            environment = self.python.parents[1]
            disable(environment) if kind == PLAIN else enable(environment, str(self.home))
        elif kind != PLAIN:
            command = [*VELO, "run", "--", *command]
        began = time.monotonic()
        with open(self.folder / f"log-{self.turn}-{kind}", "w+b") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment(user, **variables),
                cwd=self.here,
                start_new_session=True,
            )
            try:
                code = str(process.wait(suite.limit))
            except subprocess.TimeoutExpired:
                code = f"killed after {suite.limit} s"
            finally:  # Also when we are ended ourselves: it would go on in the folder of the next run.
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            seconds = time.monotonic() - began
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
            tail = log.read().decode(errors="backslashreplace")
        numbers = read_statistics(statistics)
        if kind != PLAIN:
            self.wait_learned()
        total = {name: sum(each[name] for each in numbers) for name in COUNTED}
        outcomes = read_outcomes(report)
        if outcomes.results:
            outcomes.results[ENDING] = code
        return Run(
            outcomes,
            code,
            round(seconds, 1),
            total["served"],
            total["images"],
            total["native"],
            len(numbers),
            total["errors"],
            tail,
        )

    def wait_learned(self) -> None:
        """The next run is to find what this one taught."""
        end = time.monotonic() + LEARNING
        while any(is_locked(lock) for lock in (self.home / "run").rglob("*.lock")):
            if time.monotonic() > end:
                raise StillLearning(f"the learner has not finished after {LEARNING} s")
            time.sleep(0.05)

    def clear(self) -> None:
        """Leave the logs only: a hundred parts on five Pythons would fill a disk."""
        for each in ("user", "velo", "venv"):
            shutil.rmtree(self.folder / each, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)


class StillLearning(Exception):
    """What the next run is to be served is not there, and it is not worth waiting for it any longer."""


def run_part(place: Place, part: str) -> PartResult:
    """Run it plain, learning and served; repeat what differs; say what is left."""
    suite = place.suite
    arguments = shlex.split(part)
    shown = suite.command(Path("python"), arguments, Path("report.xml"), Path("tmp"))
    result = PartResult(part, shlex.join(shown))
    try:
        runs = {kind: place.run(kind, arguments) for kind in (PLAIN, FIRST, SERVED)}
        if HAS_NATIVE and runs[SERVED].served and not runs[SERVED].images:
            # Learners give images up after a minute; on a busy machine the second one has them.
            runs[BARE] = runs[SERVED]
            runs[SERVED] = place.run(SERVED, arguments)
    except StillLearning as reason:
        result.problems.append(str(reason))
        return result
    plain, counted = runs[PLAIN], runs[SERVED]
    result.seconds = {kind: run.seconds for kind, run in runs.items()}
    result.codes = {kind: run.code for kind, run in runs.items()}
    result.tests = len(plain.outcomes.results.keys() - {ENDING})
    result.passed, result.failed, result.skipped = map(plain.outcomes.count, (PASSED, FAILED, SKIPPED))
    result.served, result.native = counted.served, counted.native
    result.processes, result.errors = counted.processes, counted.errors
    if not result.tests:
        result.problems.append(f"no outcomes of the plain run ({plain.code}): {plain.tail[-1500:]}")
    if not counted.served:
        result.problems.append(f"nothing was served ({counted.code})")
    elif HAS_NATIVE:
        result.images = counted.images
        if not counted.images:
            result.problems.append(f"no function came from an image ({counted.code})")
    seen: dict[str, Seen] = {}
    for kind in runs.keys() - {PLAIN}:
        for test in differing(plain.outcomes.results, runs[kind].outcomes.results):
            seen[test] = Seen()
        if not runs[kind].outcomes.results:
            result.problems.append(
                f"no outcomes of the {kind} run ({runs[kind].code}): {runs[kind].tail[-1500:]}"
            )
    if result.problems:
        return result
    for kind, run in runs.items():
        note(seen, kind, run.outcomes)
    suspects = judge(seen, suite, place.version, result)
    files = {**plain.outcomes.files, **counted.outcomes.files}
    for _ in range(REPEATS):
        if not suspects:
            break
        again = suite.selection(part, [files[test] for test in suspects if test in files])
        try:
            for kind in (PLAIN, SERVED):
                note({test: seen[test] for test in suspects}, kind, place.run(kind, again).outcomes)
        except StillLearning as reason:
            result.problems.append(str(reason))
            return result
        suspects = judge(seen, suite, place.version, result)
    return result


def note(seen: dict[str, Seen], kind: str, outcomes: Outcomes) -> None:
    for test, each in seen.items():
        counter = each.plain if kind == PLAIN else each.velo
        counter[outcomes.results.get(test, ABSENT)] += 1


def judge(seen: dict[str, Seen], suite: Suite, version: str, result: PartResult) -> list[str]:
    """Sort what differs into the result; gives the tests that are worth a repeat."""
    rules = read_rules()
    for group in (result.listed, result.unstable, result.once, result.unexplained):
        group.clear()
    for test, each in sorted(seen.items(), key=lambda item: item[0] == ENDING):
        entry = {"plain": dict(each.plain), "velo": dict(each.velo)}
        reason = reason_for(rules, suite.name, version, test)
        if test == ENDING and result.listed:
            continue  # it follows from them
        if reason:
            result.listed[test] = reason
        else:
            groups = {"unstable": result.unstable, "once": result.once, "ours": result.unexplained}
            groups[each.verdict][test] = entry
    return list(result.unexplained)


def summary(parts: Iterable[PartResult]) -> dict[str, int | None]:
    """The sums that a row of the table shows; None for images where no part could have any."""
    results = list(parts)
    numbers = ("tests", "passed", "failed", "skipped", "served", "processes")
    found: dict[str, int | None] = {name: sum(getattr(each, name) for each in results) for name in numbers}
    images = [each.images for each in results if each.images is not None]
    found["images"] = sum(images) if images else None
    groups = ("listed", "unstable", "once", "unexplained", "problems")
    return {**found, **{name: sum(len(getattr(each, name)) for each in results) for name in groups}}

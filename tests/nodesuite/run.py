# SPDX-License-Identifier: Apache-2.0
"""One part of Node's tests: plain, then four times with Velo; and what differs, repeated.

The arms: `cold` is an empty store for each test, which leaves notes; `served` has one store for all, learned
from those notes, and hands over what it compiled; `warm` has that as well; `readonly` is the same store, to
which nothing may be written. Only what passes or skips itself plainly is run again: the rest shows nothing.

The surprise: programs start a learner that does nothing, and the real one is called between the arms with all
that they have left. What runs inside of the tests is what runs elsewhere, to the last system call, without a
Python process for each of some thousand programs.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from tests.suites.outcomes import Seen
from tests.support.running import VELO, clean_environment, read_statistics
from velo_import.errors import VeloError
from velo_import.ingest.node.learning import learn_node
from velo_import.store.layout import Store

from .programs import FAILED, PASSED, SKIPPED, Program, outcome_of

RULES = Path(__file__).with_name("differences.toml")
PLAIN, COLD, SERVED, WARM, READONLY = "plain", "cold", "served", "warm", "readonly"
ARMS = (COLD, SERVED, WARM, READONLY)
LIMIT = 60.0  # Seconds for one test.
REPEATS = 4  # Of each kind, as long as something differs.
BATCH = 12  # Tests between two times of learning: a store takes 64 notes.
NOBODY = "/bin/true"


class Run(NamedTuple):
    """How one test ended."""

    outcome: str
    served: int
    errors: int
    reasons: dict[str, int]
    tail: str


@dataclass
class PartResult:
    """What came out for one part."""

    name: str
    baseline: dict[str, str] = field(default_factory=dict)  # Tests that pass or skip themselves without Velo.
    failed: list[str] = field(default_factory=list)  # Those that do not, which are not run with it.
    served: dict[str, int] = field(default_factory=dict)  # Modules, by arm.
    touched: int = 0  # Tests of the warm arm in which anything was served.
    errors: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # Why what was not served was not, in the warm arm.
    listed: dict[str, str] = field(default_factory=dict)  # Tests that must differ, and why.
    unstable: dict[str, Any] = field(default_factory=dict)
    once: dict[str, Any] = field(default_factory=dict)
    unexplained: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Rule(NamedTuple):
    """A reviewed difference."""

    reason: str
    test: re.Pattern[str]
    nodes: tuple[str, ...]


def read_rules(path: Path = RULES) -> list[Rule]:
    entries = tomllib.loads(path.read_text()).get("difference", [])
    return [Rule(each["reason"], re.compile(each["test"]), tuple(each.get("nodes", ()))) for each in entries]


def reason_for(rules: Sequence[Rule], line: str, test: str) -> str:
    """The reason why a difference must exist, or nothing."""
    found = (
        each.reason for each in rules if (not each.nodes or line in each.nodes) and each.test.fullmatch(test)
    )
    return next(found, "")


class Place:
    """Where tests are run: one Node, its tests, a work folder with one store and a slot for each job."""

    def __init__(self, node: Path, line: str, sources: Path, folder: Path, jobs: int = 1) -> None:
        self.node = node
        self.line = line
        self.sources = sources
        self.folder = folder
        self.jobs = jobs
        self.template = folder / "template"
        self.store = folder / "store"
        self.learning = threading.Lock()
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "user").mkdir(parents=True)
        self.slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(jobs):
            self.slots.put(slot)
        path = os.pathsep.join((str(node.parent), os.environ.get("PATH", os.defpath)))
        self.plain = clean_environment(folder / "user", PATH=path)
        # What `velo run` gives, asked once; it makes the store as well.
        asked = {**self.plain, "VELO_HOME": str(self.template)}
        said = subprocess.run(
            [*VELO, "run", "--", "env", "-0"], env=asked, capture_output=True, check=True
        ).stdout
        self.accelerated = dict(pair.split("=", 1) for pair in said.decode().split("\0") if pair)
        (self.template / "run" / "learner").write_bytes(NOBODY.encode() + b"\0")
        shutil.copytree(self.template, self.store)

    @contextmanager
    def slot(self) -> Iterator[Path]:
        """A folder that no other test uses meanwhile; if there is one job its name is always the same."""
        number = self.slots.get()
        folder = self.folder / f"slot-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        try:
            yield folder
        finally:
            self.slots.put(number)

    def run(self, program: Program, arm: str) -> Run:
        with self.slot() as slot:
            number = slot.name.rpartition("-")[2]
            environment = dict(self.plain if arm == PLAIN else self.accelerated)
            environment |= {"TEST_THREAD_ID": number, "NODE_TEST_DIR": str(slot / "tmp"), **program.variables}
            statistics = slot / "statistics.jsonl"
            home = self.store
            if arm == COLD:
                home = slot / "store"
                shutil.copytree(self.template, home)
            if arm != PLAIN:
                environment |= {"VELO_HOME": str(home), "VELO_STATS": str(statistics)}
            if arm == READONLY:
                environment["VELO_READONLY"] = "1"
            command = [str(self.node), *program.options, f"test/{program.name}"]
            code, output = run_to_its_end(command, environment, self.sources)
            if arm == COLD:
                self.collect(home)
            numbers = [each for each in read_statistics(statistics) if each.get("runtime") == "node"]
        reasons: Counter[str] = Counter()
        for each in numbers:
            reasons.update(each["reasons"])
        return Run(
            outcome_of(code, output),
            sum(each["served"] for each in numbers),
            sum(each["errors"] for each in numbers),
            dict(reasons),
            output[-1500:].decode(errors="backslashreplace"),
        )

    def collect(self, home: Path) -> None:
        """Put what a test with a store of its own has left into the common one."""
        target = self.store / "run" / "node"
        target.mkdir(mode=0o700, exist_ok=True)
        for path in (home / "run" / "node").glob("*"):
            if path.suffix in (".notes", ".units"):
                os.rename(path, target / path.name)

    def run_all(self, programs: Sequence[Program], arm: str) -> dict[str, Run]:
        """All of them in one arm, in turn; what they leave is learned."""
        results: dict[str, Run] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            for at in range(0, len(programs), BATCH):
                batch = programs[at : at + BATCH]
                done = pool.map(lambda program: self.run(program, arm), batch)
                results |= {program.name: run for program, run in zip(batch, done, strict=True)}
                if arm in (COLD, SERVED, WARM):
                    self.learn()
        return results

    def learn(self) -> None:
        """What the learner does that programs would have started."""
        store = Store.open(self.store, create=True)
        names = {path.name.split(".")[0] for path in (self.store / "run" / "node").glob("*.notes")}
        for name in sorted(names):
            with suppress(VeloError):  # A Node that a test has made and removed again.
                learn_node(name, store)


def run_to_its_end(
    command: Sequence[str], environment: Mapping[str, str], cwd: Path
) -> tuple[int | None, bytes]:
    """Exit code and output of a test; none if it was ended after LIMIT seconds."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=cwd,
        start_new_session=True,
    )
    code: int | None = None
    try:
        output, _ = process.communicate(timeout=LIMIT)
        code = process.returncode
    except subprocess.TimeoutExpired:
        output = b"(killed)"
    finally:  # Also its children, which would go on in the folder of the next test, and hold its output open.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return code, output


def run_part(
    place: Place, name: str, programs: Sequence[Program], report: Callable[[str], object] = lambda text: None
) -> PartResult:
    """Run a part in all arms; repeat what differs; say what is left."""
    began = time.monotonic()
    result = PartResult(name)
    plain = place.run_all(programs, PLAIN)
    result.baseline = {test: run.outcome for test, run in plain.items() if run.outcome != FAILED}
    result.failed = sorted(plain.keys() - result.baseline.keys())
    chosen = [program for program in programs if program.name in result.baseline]
    report(f"plain: {len(chosen)} of {len(programs)}")
    seen: dict[str, dict[str, Seen]] = {}  # By arm and test.
    tails: dict[str, str] = {}
    for arm in ARMS:
        runs = place.run_all(chosen, arm)
        result.served[arm] = sum(run.served for run in runs.values())
        result.errors += sum(run.errors for run in runs.values())
        seen[arm] = {}
        for test, run in runs.items():
            if run.outcome != result.baseline[test]:
                seen[arm][test] = Seen(Counter([result.baseline[test]]), Counter([run.outcome]))
                tails[test] = run.tail
        report(f"{arm}: served {result.served[arm]}, differs {sorted(seen[arm])}")
        if arm == WARM:
            result.touched = sum(run.served > 0 for run in runs.values())
            reasons: Counter[str] = Counter()
            for run in runs.values():
                reasons.update(run.reasons)
            result.reasons = dict(reasons.most_common(20))
    if not chosen:
        result.problems.append("no test passes without Velo")
    elif not result.served[WARM] or not result.served[READONLY]:
        result.problems.append("nothing was served")
    _repeat(place, {program.name: program for program in chosen}, seen, result)
    for test, entry in result.unexplained.items():
        entry["tail"] = tails.get(test, "")
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _repeat(
    place: Place, programs: Mapping[str, Program], seen: Mapping[str, dict[str, Seen]], result: PartResult
) -> None:
    """Run what differed again, plain and in the arm in which it did, and sort it into the result."""
    rules = read_rules()
    for arm, tests in seen.items():
        for test, each in tests.items():
            reason = reason_for(rules, place.line, test)
            if reason:
                result.listed[test] = reason
                continue
            for _ in range(REPEATS):
                each.plain[place.run(programs[test], PLAIN).outcome] += 1
                each.velo[place.run(programs[test], arm).outcome] += 1
                if each.verdict != "ours" or _is_clear(each):
                    break
            groups = {"unstable": result.unstable, "once": result.once, "ours": result.unexplained}
            groups[each.verdict].setdefault(test, {})[arm] = {
                "plain": dict(each.plain),
                "velo": dict(each.velo),
            }


def _is_clear(seen: Seen) -> bool:
    """Whether both kinds of runs came to the same each time, three times: more of them would show nothing."""
    return len(seen.plain) == len(seen.velo) == 1 and sum(seen.velo.values()) >= 3


def counts(result: PartResult) -> dict[str, int]:
    """The numbers that a row of the table shows."""
    outcomes = Counter(result.baseline.values())
    groups = ("listed", "unstable", "once", "unexplained", "problems")
    return {
        "passed": outcomes[PASSED],
        "skipped": outcomes[SKIPPED],
        "failed": len(result.failed),
        "touched": result.touched,
        **{arm: result.served.get(arm, 0) for arm in ARMS},
        **{name: len(getattr(result, name)) for name in groups},
    }

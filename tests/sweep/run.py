# SPDX-License-Identifier: Apache-2.0
"""The sweep of one environment: runs of the probe for every package, plain and accelerated.

Knows the arms and their order; what is looked at is probe.py's business, what a difference is compare.py's.
The surprise: as soon as something differs, a package is imported plainly once more, because what two plain
runs do not have in common cannot be held against Velo.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.running import HAS_NATIVE, VELO, clean_environment, is_locked, read_statistics

from .compare import Difference, differences, droppers, flatten, read_rules, without_noise
from .scan import Environment

PROBE = Path(__file__).with_name("probe.py")
LIMIT = 900  # seconds for one run; those of scipy with all its tests take one minute on a busy machine
MOST_LOST = 8  # modules that end the process, per package
MOST_REPEATS = 3
IMPORT_TIME = re.compile(r"import time: +\S+ +\| +\S+ +\|(.*)")
ARMS = ("first", "ingested", "learned", "imaged")
COUNTERS = ("served", "native", "deferred", "errors", "images", "own_served", "sources")


@dataclass
class Run:
    """How one process ended."""

    code: str
    out: str
    err: str
    statistics: list[dict[str, Any]]


@dataclass
class PackageResult:
    """What came out for one package."""

    name: str
    modules: int
    imported: int = 0
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)  # modules that end the process, and how
    explained: dict[str, int] = field(default_factory=dict)
    noise: int = 0
    unexplained: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


# Programs that listen to audit events get no images. `imaging` is the start from which they are learned.
DEAF = ("imaging", "imaged")


class Sweep:
    """One environment, one folder to work in, two stores: one that was ingested, one that learned."""

    def __init__(
        self, environment: Environment, folder: Path, arms: Sequence[str], extra: Mapping[str, str]
    ) -> None:
        self.environment = environment
        self.folder = folder
        self.arms = [arm for arm in arms if arm != "imaged" or HAS_NATIVE]
        self.extra = extra
        self.rules = read_rules()
        self.lock = threading.Lock()  # one report at a time
        self.injection = ""

    def home(self, arm: str) -> Path:
        return self.folder / ("ingested" if arm == "ingested" else "learned")

    def velo(self, home: Path, *arguments: str | Path) -> str:
        """A command of Velo, which has to succeed."""
        done = subprocess.run(
            [*VELO, *map(str, arguments)],
            env=clean_environment(self.folder, VELO_HOME=str(home)),
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"velo {' '.join(map(str, arguments))}: {done.stderr}")
        return done.stdout

    def prepare(self, targets: Iterable[Path]) -> None:
        """Make the stores; ingest the targets into one of them."""
        for home in {self.home(arm) for arm in self.arms}:
            (home / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
            self.injection = json.loads(self.velo(home, "env", "--json"))["PYTHONPATH"]
        if "ingested" in self.arms:
            for target in targets:
                self.velo(self.home("ingested"), "ingest", "--python", self.environment.python, target)

    def place(self, package: str) -> Path:
        return self.folder / "packages" / re.sub(r"\W", "_", package)

    def start(self, package: str, arm: str, arguments: Sequence[str]) -> Run:
        """Run the interpreter; home and current folder are new, and have the same names in all arms."""
        place = self.place(package)
        for name in ("user", "here"):
            shutil.rmtree(place / name, ignore_errors=True)
            (place / name).mkdir(parents=True)
        statistics = place / "statistics.jsonl"
        statistics.unlink(missing_ok=True)
        variables: dict[str, str | None] = {
            "PYTHONHASHSEED": "0",
            "TMPDIR": str(place / "user"),
            **self.extra,
        }
        if arm != "plain":
            variables.update(PYTHONPATH=self.injection, VELO_HOME=str(self.home(arm)))
            variables["VELO_STATS"] = str(statistics)
        if arm in ("learned", "ingested", "imaged"):
            variables["VELO_READONLY"] = "1"
        process = subprocess.Popen(
            [str(self.environment.python), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(place / "user", **variables),
            cwd=place / "here",
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=LIMIT)
            code = str(process.returncode)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            out, err = process.communicate()
            code = f"killed after {LIMIT} s"
        texts = [each.decode(errors="backslashreplace") for each in (out, err)]
        return Run(code, *texts, list(read_statistics(statistics)))

    def probe(self, package: str, arm: str, names: Sequence[str]) -> tuple[dict[str, Any] | None, str, Run]:
        """One run of the probe: what it saw, unless it did not live to tell, and the module it reached."""
        place = self.place(package)
        stand = place / "stand"
        stand.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, which becomes sys.path[0]: nothing else may be importable from there.
        shutil.copyfile(PROBE, stand / "sweep_probe.py")
        plan, output = place / "plan", place / "seen.json"
        plan.write_text("\n".join(names))
        output.unlink(missing_ok=True)
        flags = ["-X", "importtime", "-W", "always"]
        ears = "deaf" if arm in DEAF else "listens"
        run = self.start(package, arm, [*flags, str(stand / "sweep_probe.py"), str(plan), str(output), ears])
        progress = Path(f"{output}.progress")
        reached = (progress.read_text().splitlines() or [""])[-1] if progress.exists() else ""
        if not output.exists():
            return None, reached, run
        document: dict[str, Any] = json.loads(output.read_text(errors="surrogatepass"))
        lines = run.err.splitlines()
        document["import times"] = [found[1] for line in lines if (found := IMPORT_TIME.match(line))]
        document["stderr"] = [line for line in lines if not IMPORT_TIME.match(line)]
        document["stdout"] = run.out.splitlines()
        document["exit"] = {"code": run.code}
        return document, reached, run

    def aside(self, package: str, arm: str, names: Sequence[str], lost: Mapping[str, str]) -> dict[str, Any]:
        """What the probe cannot see from within: `python -v`, and modules that end the process."""
        # The hook is off under -v, and has to leave no more trace than its own start.
        run = self.start(package, arm, ["-v", "-c", f"import {names[0]}"])
        seen: dict[str, Any] = {
            "verbose": run.err.splitlines(),
            "verbose stdout": run.out.splitlines(),
            "verbose exit": {"code": run.code},
        }
        for name, how in lost.items():
            if not how.startswith("killed"):
                code = f"import sys; sys.argv[:] = ['sweep', '--version']; import {name}"
                run = self.start(package, arm, ["-c", code])
                seen[f"alone {name}"] = {"code": run.code, "stdout": run.out, "stderr": run.err}
        return seen

    def sweep(self, package: str) -> PackageResult:
        """All arms of one package."""
        names = list(self.environment.packages[package])
        result = PackageResult(package, len(names))
        plain = None
        while plain is None and names:
            plain, reached, run = self.probe(package, "plain", names)
            if plain is None:
                if reached not in names or len(result.lost) >= MOST_LOST:
                    result.problems.append(f"no plain run: {run.code} at {reached}: {run.err[-600:]}")
                    return result
                result.lost[reached] = run.code
                names.remove(reached)
        if plain is None:
            result.problems.append("every module ends the process")
            return result
        result.imported = sum(each == "imported" for each in plain["outcome"].values())
        plain.update(self.aside(package, "plain", names, result.lost))
        noise: list[Difference] = []
        for arm in self.arms:
            if arm == "imaged":
                self.probe(package, "imaging", names)
            if arm in ("learned", "imaged"):
                self.wait_learned()
            document, reached, run = self.probe(package, arm, names)
            if document is None:
                result.problems.append(f"{arm}: {run.code} at {reached}: {run.err[-600:]}")
                continue
            result.arms[arm] = record = measure(document, names, run.statistics)
            if record["errors"]:
                result.problems.append(f"{arm}: errors in the hook: {record}")
            if arm == "imaged":
                aspects = set(document) - {"events"}
                if record["own_served"] and not record["images"]:
                    result.problems.append(f"{arm}: no images, so nothing compared: {record}")
            elif arm == "first":
                aspects = set(document)
            else:
                document.update(self.aside(package, arm, names, result.lost))
                aspects = set(plain)
                # All sources of a package may be loaded by somebody else's finder; then that is compared.
                if not record["served"] or (record["sources"] and not record["own_served"]):
                    result.problems.append(f"{arm}: nothing served, so nothing compared: {record}")
            expected = {aspect: plain[aspect] for aspect in plain if aspect in aspects}
            self.judge(arm, package, names, expected, document, noise, result)
        return result

    def judge(
        self,
        arm: str,
        package: str,
        names: Sequence[str],
        plain: Mapping[str, Any],
        document: Mapping[str, Any],
        noise: list[Difference],
        result: PackageResult,
    ) -> None:
        """Compare; while something differs, see whether one more plain run differs there, too."""
        uses = Counter(result.explained)
        seen = flatten(document, self.rules, uses)
        result.explained = {reason: count for reason, count in uses.items() if count}
        plain_rules = droppers(self.rules)
        expected = flatten(plain, plain_rules)
        found = without_noise(differences(expected, seen), noise)
        repeats = 0
        while found and repeats < MOST_REPEATS:
            repeats += 1
            again, *_ = self.probe(package, "plain", names)
            if again is None:
                break
            if any(each.aspect.startswith(("verbose", "alone")) for each in found):
                again.update(self.aside(package, "plain", names, result.lost))
            whole = {aspect: again.get(aspect, content) for aspect, content in plain.items()}
            noise += differences(expected, flatten(whole, plain_rules))
            found = without_noise(found, noise)
        result.noise = len({each.identity for each in noise})
        result.unexplained += [
            {"arm": arm, "aspect": each.aspect, "key": each.key, "plain": each.plain, "velo": each.other}
            for each in found
        ]

    def wait_learned(self, limit: float = 900.0) -> None:
        """Wait until no learner is at work."""
        end = time.monotonic() + limit
        while any(is_locked(lock) for lock in (self.home("learned") / "run").rglob("*.lock")):
            if time.monotonic() > end:
                raise RuntimeError("the learner does not end")
            time.sleep(0.1)

    def guarded(self, package: str, report: Callable[[PackageResult], None]) -> PackageResult:
        """One package, whose failure must not end the sweep of all others."""
        try:
            result = self.sweep(package)
        except Exception as error:
            result = PackageResult(package, len(self.environment.packages[package]))
            result.problems.append(f"{type(error).__name__}: {error}")
        with self.lock:
            report(result)
        return result

    def run(
        self, packages: Sequence[str], jobs: int, report: Callable[[PackageResult], None]
    ) -> list[PackageResult]:
        """Every package; `report` is called for each as it is done."""
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(lambda package: self.guarded(package, report), packages))


def measure(
    document: Mapping[str, Any], names: Sequence[str], statistics: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What the hook counted, and how many of the package's own modules it served."""
    loaders = [document["module"].get(name, {}).get("__loader__ classes", "").split(" ")[0] for name in names]
    reasons: Counter[str] = Counter()
    for each in statistics:
        reasons.update(each["reasons"])
    served = sum(each.endswith(".VeloSourceLoader") for each in loaders)
    return {
        **{name: sum(each[name] for each in statistics) for name in COUNTERS[:5]},
        "own_served": served,
        "sources": served + loaders.count("_frozen_importlib_external.SourceFileLoader"),
        "reasons": dict(reasons.most_common()),
    }

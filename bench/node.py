# SPDX-License-Identifier: Apache-2.0
"""Start-up time of Node programs: plain, Node's own compile cache, v8-compile-cache, Velo. `--help` says how.

Arms run interleaved in random order; each output is compared with plain Node's. Velo has to prove through
VELO_STATS that it served modules without an error, or there is no number.

The surprise: several of these tools switch Node's compile cache on by themselves from 22.8 on. In the plain
arm NODE_DISABLE_COMPILE_CACHE keeps them from it; in Velo's they may, as they would on a user's machine. And
NODE_EXTRA_CA_CERTS, which is set on many machines, costs Node 18 and 20 more than a start: it is never set.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import pagecache, records, slowfs
from bench.arms import CHECKOUT, Arm, clean_variables, find_velo, read_stats
from bench.environment import work_folder
from bench.figures import Ratio, geometric_mean, losses, speedup, spread, times
from bench.measure import BenchmarkFault, Sample, become_subreaper, run, run_as_program, settle
from tests.support import nodes

PACKAGES = CHECKOUT / "bench" / "node_programs"
CELLS = ("warm", "cold", "slowfs-1ms")
_LEARNING_PASSES = 3
_DELAY_US = 1000
_COMPILE_CACHE_SINCE = (22, 1)

# What is started: a file of a package and its arguments, or a line of our own.
# Each script of ours is in a folder of its own: Velo keeps what programs of one folder need in one index.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "eslint": ("node_modules/eslint/bin/eslint.js", "--version"),
    "aws-sdk": ("console.log(require('aws-sdk').VERSION)",),
    "client-s3": ("console.log(Object.keys(require('@aws-sdk/client-s3')).length)",),
    "babel": ("console.log(require('@babel/core').transformSync('let a=1', {configFile: false}).code)",),
    "webpack": ("console.log(require('webpack')({mode: 'none', entry: './x'}).options.mode)",),
    "jest": ("node_modules/jest/bin/jest.js", "--version"),
    "express": ("console.log(typeof require('express')().listen)",),
    "tsc": ("node_modules/typescript/bin/tsc", "--version"),
}


@dataclass(frozen=True)
class Node:
    """One Node and its version."""

    executable: Path
    version: str

    @property
    def has_compile_cache(self) -> bool:
        return tuple(map(int, self.version.split(".")[:2])) >= _COMPILE_CACHE_SINCE


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.chdir(CHECKOUT)
    become_subreaper()
    work = work_folder(options.work) / "node"
    work.mkdir(exist_ok=True)
    record = records.header("node", "bench.node", list(arguments or []) or _words(options))
    record["statistic"] = f"lower quartile of {options.runs} runs, seconds; ratio = plain / arm"
    if record["busy"]:
        records.report_progress(f"warning: {record['busy']}: timings will be noisy")
    programs = list(PROGRAMS) if options.programs == "all" else options.programs.split(",")
    if unknown := [name for name in programs if name not in PROGRAMS]:
        raise BenchmarkFault(f"no program called {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    project = install(work)
    record["cell"], record["nodes"] = options.cell, {}
    for node in _nodes(options.nodes):
        series = _Series(node, project, work, options)
        record["velo"] = series.velo.version if series.velo else "absent"
        record["nodes"][node.version] = summary = series.measure(programs)
        print(render(node, summary), flush=True)
    records.keep(record, options.json)
    return 0


def _words(options: argparse.Namespace) -> list[str]:
    return [f"--{name}={value}" for name, value in vars(options).items() if value not in ("", False)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.node", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--nodes", default="", help="comma list of versions or paths; default: one per line")
    parser.add_argument("--programs", default="all", help=f"comma list, or all: {', '.join(PROGRAMS)}")
    parser.add_argument("--runs", type=int, default=21, help="timed runs per arm (21)")
    parser.add_argument(
        "--cell",
        choices=CELLS,
        default="warm",
        help="warm; cold: page cache dropped; slowfs-1ms: packages on a disk that takes 1 ms a request",
    )
    parser.add_argument("--plain-only", action="store_true", help="all arms but Velo's")
    parser.add_argument(
        "--learn", choices=("run", "ingest"), default="run", help="how Velo learns beforehand"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order of the arms")
    parser.add_argument("--velo", default="", help="command line of velo; default: installed, else this one")
    parser.add_argument("--json", default="", help="where to keep results: NAME.json")
    parser.add_argument("--work", default="", help="work folder for packages and stores")
    return parser


def install(work: Path) -> Path:
    """The locked packages, installed once; nothing of them is run meanwhile."""
    lock = PACKAGES / "package-lock.json"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:8]
    project = work / f"packages-{digest}"
    if not (project / "ready").exists():
        npm = shutil.which("npm")
        if npm is None:
            raise BenchmarkFault("npm not found: it installs the packages")
        shutil.rmtree(project, ignore_errors=True)
        project.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PACKAGES / name, project)
        words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        done = subprocess.run(words, cwd=project, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkFault(f"npm ci failed: {done.stderr.strip()[-400:]}")
        (project / "ready").touch()
    for name, words in PROGRAMS.items():
        if len(words) == 1:
            (project / name).mkdir(exist_ok=True)
            (project / name / f"{name}.js").write_text(words[0] + "\n", encoding="utf-8")
    return project


def _nodes(request: str) -> list[Node]:
    found = []
    for word in request.split(",") if request else nodes.VERSIONS:
        try:
            path = Path(word) if "/" in word else nodes.node(word)
        except nodes.Unavailable as reason:
            records.report_progress(f"Node {word}: skipped: {reason}")
            continue
        done = subprocess.run([path, "--version"], capture_output=True, text=True)
        found.append(Node(path.absolute(), done.stdout.strip().lstrip("v")))
    return found


class _Series:
    """All programs on one Node."""

    def __init__(self, node: Node, project: Path, work: Path, options: argparse.Namespace) -> None:
        self.node, self.project, self.work, self.options = node, project, work, options
        self.dice = random.Random(options.seed)
        self.server = slowfs.require(work) if options.cell == "slowfs-1ms" else None
        self.source = project
        if self.server is not None:
            self.project = work / "mounted" / project.name
            self.project.mkdir(parents=True, exist_ok=True)
        home = work / "homes" / node.version
        self.velo = None if options.plain_only else find_velo(home, options.velo)
        self.caches = work / "caches" / node.version
        shutil.rmtree(self.caches, ignore_errors=True)
        (self.caches / "tmp").mkdir(parents=True)
        # What tools keep in the folder for temporary files is this series' own, and gone before it.
        base = {**clean_variables(os.environ), "TMPDIR": str(self.caches / "tmp")}
        base["AWS_SDK_JS_SUPPRESS_MAINTENANCE_MODE_MESSAGE"] = (
            "1"  # It names the process and differs each time.
        )
        plain = {**base, "NODE_DISABLE_COMPILE_CACHE": "1"}
        self.arms = {"plain": Arm("plain", plain)}
        if node.has_compile_cache:
            cache = {**base, "NODE_COMPILE_CACHE": str(self.caches / "node")}
            self.arms["node-cache"] = Arm("node-cache", cache)
        preload = self.project / "node_modules" / "v8-compile-cache" / "v8-compile-cache.js"
        v8 = {"NODE_OPTIONS": f"--require={preload}", "V8_COMPILE_CACHE_CACHE_DIR": str(self.caches / "v8")}
        self.arms["v8-compile-cache"] = Arm("v8-compile-cache", {**plain, **v8})
        if self.velo is not None:
            self.velo.forget()
            self.arms["velo"] = Arm("velo", self.velo.injected(base))
            self.arms["run"] = Arm("run", {**base, "VELO_HOME": str(home)}, (*self.velo.command, "run", "--"))

    def measure(self, programs: list[str]) -> dict[str, Any]:
        summary: dict[str, Any] = {"programs": {}, "geometric_mean": {}, "losses": {}, "left_out": {}}
        if self.velo is not None and self.options.learn == "ingest":
            with self._mounted():
                self.velo.ask("ingest", str(self.project), "--node", str(self.node.executable))
        for program in programs:
            records.report_progress(f"{self.node.version}: {program}")
            summary["programs"][program] = self._measure(program, summary["left_out"])
        for arm in self.arms:
            found: dict[str, Ratio] = {
                name: each["ratios"][arm]
                for name, each in summary["programs"].items()
                if arm in each["ratios"]
            }
            if found:
                summary["geometric_mean"][arm] = round(
                    geometric_mean(each["ratio"] for each in found.values()), 4
                )
                summary["losses"][arm] = losses(found)
        return summary

    def _measure(self, program: str, left_out: dict[str, dict[str, str]]) -> dict[str, Any]:
        wanted = self._once(self.arms["plain"], program)
        if wanted.exit_code:
            raise BenchmarkFault(f"{program} fails on plain Node: {wanted.stderr.decode()[-400:]}")
        arms = {}
        for name, arm in self.arms.items():
            for _ in range(_LEARNING_PASSES):
                sample = self._once(arm, program)
            if sample.output == wanted.output:
                arms[name] = arm
            elif name in ("plain", "velo", "run"):
                raise BenchmarkFault(f"{program}: {name} does not behave as plain Node did: {_shown(sample)}")
            else:  # A rival that changes a program is told, and not timed.
                left_out.setdefault(name, {})[program] = _shown(sample)
        checks = self._check(arms["velo"], program, wanted) if "velo" in arms else {}
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        cpu: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(self.options.runs):
            order = list(arms.items())
            self.dice.shuffle(order)
            for name, arm in order:
                if self.options.cell == "cold":
                    self._cool()
                sample = self._once(arm, program)
                if sample.output != wanted.output:
                    raise BenchmarkFault(f"{program}: arm {name} changed its mind: {_shown(sample)}")
                seconds[name].append(sample.seconds)
                cpu[name].append(sample.user + sample.system)
        result: dict[str, Any] = {"arms": {}, "ratios": {}, "checks": checks}
        for name, values in seconds.items():
            result["arms"][name] = {**spread(values), "cpu": spread(cpu[name], 4)["median"]}
            if name != "plain":
                result["ratios"][name] = speedup(seconds["plain"], values)
        return result

    def _once(self, arm: Arm, program: str, extra: Mapping[str, str] | None = None) -> Sample:
        words = PROGRAMS[program]
        script = self.project / (words[0] if len(words) > 1 else f"{program}/{program}.js")
        command = arm.command(self.node.executable, str(script), *words[1:])
        with self._mounted():
            sample = run(command, {**arm.variables, **(extra or {})})
            settle()  # inside: a learner needs the mount as well
        return sample

    def _mounted(self) -> contextlib.AbstractContextManager[object]:
        """The packages where the programs look for them, freshly mounted if they are on a slow disk."""
        if self.server is None:
            return contextlib.nullcontext()
        return slowfs.mounted(self.server, self.source, self.project, _DELAY_US)

    def _check(self, arm: Arm, program: str, wanted: Sample) -> dict[str, int]:
        stats = self.work / "stats.jsonl"
        stats.unlink(missing_ok=True)
        sample = self._once(arm, program, {"VELO_STATS": str(stats)})
        totals = read_stats(stats, runtime="node")
        if sample.output != wanted.output or totals["errors"] or not totals["served"]:
            raise BenchmarkFault(f"{program}: not served: {totals}, {_shown(sample)}")
        return totals

    def _cool(self) -> None:
        roots = [self.project, self.node.executable, self.caches, *([self.velo.home] if self.velo else [])]
        pagecache.evict(roots)


def _shown(sample: Sample) -> str:
    said = (sample.stdout + sample.stderr).decode(errors="replace").strip()
    return f"exit {sample.exit_code}: {said[-200:]}"


def render(node: Node, summary: Mapping[str, Any]) -> str:
    """One Node as a table for a terminal: milliseconds, spread, ratios; losses by name."""
    arms = list(summary["geometric_mean"])
    head = f"{'program':<11}{'plain ms (p10-p90)':>21}" + "".join(f"{arm:>31}" for arm in arms)
    lines = [f"\nNode {node.version}", head]
    for program, found in summary["programs"].items():
        line = f"{program:<11}{_milliseconds(found['arms']['plain']):>21}"
        for arm in arms:
            if arm in found["ratios"]:
                ratio = times(found["ratios"][arm]["ratio"])
                line += f"{_milliseconds(found['arms'][arm]):>22}{ratio:>9}"
            else:
                line += f"{'changes the program':>31}"
        lines.append(line)
    for arm in arms:
        slower = ", ".join(
            f"{name} {times(summary['programs'][name]['ratios'][arm]['ratio'])}"
            for name in summary["losses"][arm]
        )
        lines.append(
            f"{arm}: geometric mean {times(summary['geometric_mean'][arm])}; losses: {slower or 'none'}"
        )
    return "\n".join(lines)


def _milliseconds(found: Mapping[str, float]) -> str:
    return f"{found['lower_quartile'] * 1e3:.1f} ({found['p10'] * 1e3:.0f}-{found['p90'] * 1e3:.0f})"


if __name__ == "__main__":
    run_as_program(main)

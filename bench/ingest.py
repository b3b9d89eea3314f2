# SPDX-License-Identifier: Apache-2.0
"""What it costs to fill the store: `python -m bench.ingest --help`.

Ingest of the locked environment (first, unchanged; with and without `.pyc`), of 20,000 small files against
`cp -r` (which does not wait for the disk, as an ingest does), compiling against `compileall -j 0`, CPU of
learning one program, bytes on disk for ten environments that share most packages (disk.py). Trees are in the
page cache, as they are after an install.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import records
from bench.arms import Velo, arms_of, clean_variables, read_stats
from bench.disk import disk, part_rows, rows
from bench.environment import Environment, build, check_bare
from bench.figures import percentile
from bench.interpreters import Interpreter
from bench.measure import BenchmarkFault, run, run_as_program, settle
from bench.pagecache import files_below
from bench.programs import PROGRAMS, write_program
from bench.setting import begin

PARTS = ("ingest", "small", "compile", "learn", "disk")
SMALL_FILES = 20_000


def main(arguments: Sequence[str] | None = None) -> int:
    setting = begin("ingest", _parser(), arguments)
    options, work, interpreter, record = setting.options, setting.work, setting.interpreter, setting.record
    velo = setting.velo("ingest")
    parts = options.parts.split(",")
    compiled, bare = build(work, interpreter, "pyc"), build(work, interpreter, "bare")
    if "ingest" in parts:
        record["ingest"] = {
            "pyc": ingest_times(velo, compiled, options.runs),
            "bare": ingest_times(velo, bare, options.runs),
        }
    if "small" in parts:
        record["small"] = small_files(velo, work, interpreter, options.runs)
    if "compile" in parts:
        record["compileall"] = compileall_times(work, bare, options.runs)
        check_bare(bare)
    if "learn" in parts:
        program = options.learn_program
        record["learn"] = {
            "pyc": learning(velo, work, compiled, program, {}, options.runs),
            "bare": learning(velo, work, bare, program, {"PYTHONDONTWRITEBYTECODE": "1"}, options.runs),
        }
    if "disk" in parts:
        record["disk"] = disk(velo, work, interpreter, options.environments)
    print(render(record))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description="Cost of filling the store.")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma list of " + ", ".join(PARTS))
    parser.add_argument("--runs", type=int, default=5, help="repetitions of each (5)")
    parser.add_argument("--environments", type=int, default=10, help="for disk (10)")
    parser.add_argument("--learn-program", default="django", choices=list(PROGRAMS))
    records.add_common_options(parser)
    return parser


def read_once(root: Path) -> int:
    """Bring a tree into the page cache; how many files it holds outside `__pycache__`."""
    count = 0
    for path in files_below([root]):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
        count += path.parent.name != "__pycache__"
    return count


def ingest_times(velo: Velo, environment: Environment, runs: int) -> dict[str, Any]:
    """Wall seconds of the whole command, launch included, into an empty store and again unchanged."""
    files = read_once(environment.prefix)
    first: list[float] = []
    again: list[float] = []
    summaries: list[Any] = []
    for _ in range(runs):
        velo.forget()
        for times in (first, again):
            begin = time.perf_counter()
            summaries.append(_ingest(velo, environment))
            times.append(time.perf_counter() - begin)
            settle()
    seconds = {"first": percentile(first, 0.25), "unchanged": percentile(again, 0.25)}
    in_prefix, files = files, int(summaries[0].get("files", files))  # Velo's count: the standard library too
    return {
        "files": files,
        "files_in_prefix": in_prefix,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "files_per_second": {name: round(files / value) for name, value in seconds.items()},
        "summary_first": _numbers(summaries[-2]),
        "summary_unchanged": _numbers(summaries[-1]),
        "raw": {"first": [round(x, 4) for x in first], "unchanged": [round(x, 4) for x in again]},
    }


def small_files(velo: Velo, work: Path, interpreter: Interpreter, runs: int) -> dict[str, Any]:
    """Wall seconds for 20,000 small files: a copy, a first ingest (durable), an unchanged one.

    The standard library is in the store already: it belongs to the interpreter, not to these files.
    """
    tree, copy, empty = work / "small", work / "small-copy", work / "nothing"
    python = ("--python", str(interpreter.executable))
    write_small_files(tree)
    empty.mkdir(exist_ok=True)
    times: dict[str, list[float]] = {"copy": [], "first": [], "unchanged": []}
    try:
        for _ in range(runs):
            velo.forget()
            velo.ask("ingest", str(empty), *python)
            read_once(tree)
            os.sync()  # What was written before is nobody's cost.
            for name in times:
                begin = time.perf_counter()
                if name == "copy":
                    subprocess.run(["cp", "-r", str(tree), str(copy)], check=True)
                else:
                    velo.ask("ingest", str(tree), *python)
                times[name].append(time.perf_counter() - begin)
                if name == "copy":
                    shutil.rmtree(copy)
                    os.sync()
    finally:
        for folder in (tree, copy, empty):
            shutil.rmtree(folder, ignore_errors=True)
    seconds = {name: percentile(values, 0.25) for name, values in times.items()}
    return {
        "files": SMALL_FILES,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "files_per_second": {name: round(SMALL_FILES / value) for name, value in seconds.items()},
        "raw": {name: [round(x, 4) for x in values] for name, values in times.items()},
    }


def write_small_files(tree: Path) -> None:
    """Files as in a project of many modules: mostly 2 kB, twelve in a folder; always the same."""
    shutil.rmtree(tree, ignore_errors=True)
    chance = random.Random(1)
    for number in range(SMALL_FILES):
        folder = tree / f"{number // 400:03d}" / f"{number // 12 % 34:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        line = f"{number} is its own content\n"
        (folder / f"{number}.txt").write_text(line * int(1 + chance.lognormvariate(7.6, 1.2) / len(line)))


def compileall_times(work: Path, bare: Environment, runs: int) -> dict[str, Any]:
    """`python -m compileall -j 0` over a copy of the same sources, each time without any .pyc."""
    copy = work / "compileall"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bare.site_packages, copy, symlinks=True)
    seconds: list[float] = []
    command = [str(bare.python), "-m", "compileall", "-q", "-j", "0", str(copy)]
    try:
        for _ in range(runs):
            for folder in list(copy.rglob("__pycache__")):
                shutil.rmtree(folder)
            # It exits with 1 (packages hold test data that is no Python), and its workers may outlive it.
            seconds.append(run(command, clean_variables(os.environ)).seconds)
            settle()
        compiled = sum(1 for _ in copy.rglob("*.pyc"))
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return {
        "modules": compiled,
        "seconds": round(percentile(seconds, 0.25), 4),
        "raw": [round(x, 4) for x in seconds],
    }


def learning(
    velo: Velo, work: Path, environment: Environment, program: str, extra: Mapping[str, str], runs: int
) -> dict[str, Any]:
    """CPU seconds that the detached learner and its children consumed after the first run of a program."""
    script = write_program(work / "programs", program)
    stats = work / "learn-stats.jsonl"
    consumed: list[float] = []
    totals: dict[str, int] = {}
    for _ in range(runs):
        velo.forget()
        variables = {**clean_variables(os.environ), **extra, "MPLCONFIGDIR": str(work / "matplotlib")}
        arm = arms_of(variables, velo)["velo"]
        stats.unlink(missing_ok=True)
        done = run(arm.command(environment.python, str(script)), {**arm.variables, "VELO_STATS": str(stats)})
        if done.exit_code != 0:
            raise BenchmarkFault(f"{program} fails: {done.stderr.decode()[-400:]}")
        learners = settle()
        if not learners:
            raise BenchmarkFault("no learner was seen after the first run")
        consumed.append(sum(learners))
        run(arm.command(environment.python, str(script)), {**arm.variables, "VELO_STATS": str(stats)})
        settle()
        totals = read_stats(stats)
    if not totals["served"]:
        raise BenchmarkFault(f"nothing was served after learning: {totals}")
    return {
        "program": program,
        "modules_served_next_time": totals["served"],
        "cpu_seconds": round(percentile(consumed, 0.25), 3),
        "raw": [round(x, 3) for x in consumed],
    }


def _ingest(velo: Velo, environment: Environment) -> Any:
    return velo.ask("ingest", str(environment.prefix), "--python", str(environment.python))


def _numbers(value: Any) -> Any:
    """The numeric part of a report: no paths or names of this machine reach the results."""
    if isinstance(value, Mapping):
        kept = {name: _numbers(inner) for name, inner in value.items()}
        return {name: inner for name, inner in kept.items() if inner is not None}
    return round(value, 4) if isinstance(value, int | float) and not isinstance(value, bool) else None


def render(record: Mapping[str, Any]) -> str:
    lines = []
    for kind, found in record.get("ingest", {}).items():
        lines.append(f"ingest ({kind}), {found['files']:,} files, the standard library included:")
        for name, seconds in found["seconds"].items():
            lines.append(f"  {name:<12}{seconds:8.2f} s {found['files_per_second'][name]:>9,} files/s")
    if "small" in record:
        found = record["small"]
        lines.append(f"{found['files']:,} small files:")
        for name, seconds in found["seconds"].items():
            lines.append(f"  {name:<12}{seconds:8.2f} s {found['files_per_second'][name]:>9,} files/s")
    if "compileall" in record:
        found = record["compileall"]
        lines.append(f"compileall -j 0, {found['modules']} modules: {found['seconds']:.2f} s")
    if "ingest" in record:
        kinds = record["ingest"]
        extra = kinds["bare"]["seconds"]["first"] - kinds["pyc"]["seconds"]["first"]
        lines.append(f"ingest without .pyc minus ingest with .pyc: {extra:.2f} s")
    if "learn" in record:
        for kind, found in record["learn"].items():
            lines.append(
                f"learning {found['program']} ({kind}, {found['modules_served_next_time']} modules):"
                f" {found['cpu_seconds']:.2f} s of CPU"
            )
    if "disk" in record:
        found = record["disk"]
        lines.append(f"disk of {found['environments']} environments:")
        lines += [f"  {name:<82}{figure:>18}  {more}".rstrip() for name, figure, more in rows(found)]
        lines += ["  " + " ".join(f"{cell:>12}" for cell in row) for row in part_rows(found)]
    return "\n".join(lines)


if __name__ == "__main__":
    run_as_program(main)

# SPDX-License-Identifier: Apache-2.0
"""What the hook costs every process, wanted or not: `python -m bench.hook --help`.

Four figures, on an environment whose ten programs have been learned (a manifest of realistic size): time of
installing the hook, time of opening the manifest, file-related system calls, and peak memory of each
program.

The surprise: the whole-process difference of `python -c pass` holds more than the install that the hook
reports about itself; both are printed, and where they disagree the difference is what users pay.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import records
from bench.arms import Arm, Velo, arms_of, clean_variables, read_fields, read_stats
from bench.environment import Environment, build
from bench.figures import percentile, spread
from bench.measure import BenchmarkFault, peak_memory, run, run_as_program, settle
from bench.programs import PROGRAMS, write_program
from bench.setting import begin

_NOTHING = ("-c", "pass")
_LEARNING_PASSES = 2
_MEMORY_RUNS = 5

# Runs in a fresh target interpreter. It imports the hook by name, which users' programs never do.
_OPEN_MANIFEST = """
import sys, time, json
sys.path.insert(0, sys.argv[1])
from _frozen_importlib_external import _get_supported_file_loaders
from velo_import.hook.install import build_identity
from velo_import.hook import mapping
import velo_import.hook.manifest as twin
try:
    library = sys.argv[1] + "/velo_import/_native/core.abi3.so"
    Manifest = mapping.load_native("velo_import._native.core", library).Manifest
except (AttributeError, ImportError):
    Manifest = twin.Manifest
identity = build_identity([suffix for _, group in _get_supported_file_loaders() for suffix in group])
times = []
for _ in range(101):
    begin = time.perf_counter_ns()
    Manifest(sys.argv[2], sys.argv[3], identity)
    times.append((time.perf_counter_ns() - begin) / 1000)
print(json.dumps(times))
"""

_HANDS_OVER = """
import sys
del sys.modules[__name__]
folder = __file__.rpartition("/")[0]
sys.path.remove(folder)
sys.path_importer_cache.pop(folder, None)
import sitecustomize
"""


def main(arguments: Sequence[str] | None = None) -> int:
    setting = begin("hook", _parser(), arguments)
    options, work, interpreter, record = setting.options, setting.work, setting.interpreter, setting.record
    velo = setting.velo("hook")
    programs = list(PROGRAMS) if options.programs == "all" else options.programs.split(",")
    environment = build(work, interpreter, "pyc")
    variables = {**clean_variables(os.environ), "MPLCONFIGDIR": str(work / "matplotlib")}
    arms = {name: arm for name, arm in arms_of(variables, velo).items() if name != "run"}
    record["programs"] = programs
    scripts = {name: write_program(work / "programs", name) for name in programs}
    # All programs, then all again: a run that finds nothing to learn makes the next ones wait.
    for script in [*scripts.values()] * _LEARNING_PASSES:
        _learn(arms["velo"], environment, script)
    record["install_us"] = install_time(arms["velo"], environment, work, options.runs)
    record["process_difference_us"] = process_difference(arms, environment, options.runs)
    record["manifest_open_us"] = manifest_open(velo, arms["velo"], environment, min(options.runs, 21))
    record["system_calls"] = system_calls(arms, environment, work)
    record["peak_memory"] = {
        name: memory(arms, environment, script) for name, script in scripts.items() if options.memory
    }
    print(render(record))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.hook", description="Cost of the hook per process.")
    parser.add_argument("--runs", type=int, default=101, help="timed runs of `-c pass` per arm (101)")
    parser.add_argument("--programs", default="all", help="learned first, and measured for memory")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="skip peak memory")
    records.add_common_options(parser)
    return parser


def _learn(arm: Arm, environment: Environment, script: Path) -> None:
    done = run(arm.command(environment.python, str(script)), arm.variables)
    if done.exit_code != 0:
        raise BenchmarkFault(f"{script.parent.name} fails: {done.stderr.decode()[-400:]}")
    settle()


def install_time(arm: Arm, environment: Environment, work: Path, runs: int) -> dict[str, Any]:
    """What the hook reports about its own installation (VELO_STATS, `install_us`), in fresh interpreters."""
    stats = work / "hook-stats.jsonl"
    stats.unlink(missing_ok=True)
    for _ in range(runs):
        run(arm.command(environment.python, *_NOTHING), {**arm.variables, "VELO_STATS": str(stats)})
        settle()
    totals = read_stats(stats)
    if totals["processes"] != runs or totals["errors"]:
        raise BenchmarkFault(f"hook not installed cleanly in every run: {totals}")
    values = read_fields(stats, "install_us")
    return dict(spread(values, 1)) if values else {"skipped": "VELO_STATS has no field install_us"}


def process_difference(arms: Mapping[str, Arm], environment: Environment, runs: int) -> dict[str, Any]:
    """`python -c pass` with and without, interleaved: what one process pays in all, in microseconds."""
    dice = random.Random(1)
    values: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(runs):
        for name in dice.sample(list(arms), len(arms)):
            arm = arms[name]
            values[name].append(run(arm.command(environment.python, *_NOTHING), arm.variables).seconds * 1e6)
            settle()
    result: dict[str, Any] = {name: spread(series, 1) for name, series in values.items()}
    result["difference"] = round(result["velo"]["lower_quartile"] - result["plain"]["lower_quartile"], 1)
    return result


def manifest_open(velo: Velo, arm: Arm, environment: Environment, interpreters: int) -> dict[str, Any]:
    """Opening and checking the largest manifest: the first time in each fresh interpreter, and repeated."""
    manifests = sorted(velo.home.glob("manifests/v1/*/*.velo"), key=lambda path: path.stat().st_size)
    if not manifests:
        return {"skipped": "no manifest in the store"}
    injected = Path(arm.variables["PYTHONPATH"].split(os.pathsep)[0])
    parent = injected.parent if injected.name == "sitecustomize" else injected.parent.parent
    arguments = ("-I", "-c", _OPEN_MANIFEST, str(parent), str(manifests[-1]), str(velo.home / "packs/v1"))
    first: list[float] = []
    again: list[float] = []
    for _ in range(interpreters):
        done = run([str(environment.python), *arguments], clean_variables(os.environ))
        if done.exit_code != 0:
            return {"skipped": done.stderr.decode().strip().splitlines()[-1][:200]}
        times = json.loads(done.stdout)
        first.append(times[0])
        again.append(percentile(times[1:], 0.25))
    return {"bytes": manifests[-1].stat().st_size, "first": spread(first, 1), "repeated": spread(again, 1)}


_CALL = re.compile(r"^\d+\s+(\w+)\((.*)", re.ASCII)


def count_calls(trace: str) -> collections.Counter[str]:
    """File-related calls in strace's output, by name; anonymous memory, which strace includes, is not."""
    counts: collections.Counter[str] = collections.Counter()
    for line in trace.splitlines():
        found = _CALL.match(line)
        if found and not (found[1] == "mmap" and "MAP_ANONYMOUS" in found[2]):
            counts[found[1]] += 1
    return counts


def system_calls(arms: Mapping[str, Arm], environment: Environment, work: Path) -> dict[str, Any]:
    """Calls of `python -c pass`, plain and with the hook; the fewest of three, as caches may warm up.

    Part of the difference is CPython's own, which looks for a `sitecustomize` on PYTHONPATH: what one takes
    that does nothing but hand over to the next.
    """
    strace = shutil.which("strace")
    if strace is None:
        return {"skipped": "strace missing: apt-get install strace"}
    trace = work / "strace.txt"
    folder = work / "handing-over"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HANDS_OVER)
    plainly = arms["plain"]
    handing_over = {**plainly.variables, "PYTHONPATH": str(folder)}
    arms = {**arms, "handing over": replace(plainly, variables=handing_over)}
    fewest: dict[str, collections.Counter[str]] = {}
    for _ in range(3):
        for name, arm in arms.items():
            command = [strace, "-f", "-qq", "-e", "trace=file,desc", "-o", str(trace)]
            done = run([*command, *arm.command(environment.python, *_NOTHING)], arm.variables)
            if done.exit_code != 0:
                return {"skipped": f"strace failed: {done.stderr.decode().strip()[-200:]}"}
            settle()
            counts = count_calls(trace.read_text(encoding="utf-8", errors="replace"))
            if name not in fewest or counts.total() < fewest[name].total():
                fewest[name] = counts
    plain, velo = fewest["plain"], fewest["velo"]
    by_name = {
        name: velo[name] - plain[name] for name in sorted({*plain, *velo}) if velo[name] != plain[name]
    }
    return {
        "plain": plain.total(),
        "velo": velo.total(),
        "difference": velo.total() - plain.total(),
        "own": velo.total() - fewest["handing over"].total(),
        "by_name": by_name,
    }


def memory(arms: Mapping[str, Arm], environment: Environment, script: Path) -> dict[str, float]:
    """Median peak resident memory in KiB, and the ratio velo / plain."""
    values: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(_MEMORY_RUNS):
        for name, arm in arms.items():
            values[name].append(peak_memory(arm.command(environment.python, str(script)), arm.variables))
            settle()
    medians = {name: percentile(series, 0.5) for name, series in values.items()}
    return {**medians, "ratio": round(medians["velo"] / medians["plain"], 4)}


def render(record: Mapping[str, Any]) -> str:
    lines = ["hook, `python -c pass`:"]
    for name in ("install_us", "manifest_open_us"):
        found = record[name]
        inner = found.get("first", found)
        value = found.get("skipped") or (
            f"{inner['lower_quartile']:.0f} us (p10-p90 {inner['p10']:.0f}-{inner['p90']:.0f})"
        )
        lines.append(f"  {name:<24}{value}")
    lines.append(f"  {'process_difference_us':<24}{record['process_difference_us']['difference']:.0f} us")
    calls = record["system_calls"]
    value = calls.get("skipped") or (
        f"{calls['difference']} more ({calls['plain']} -> {calls['velo']}), "
        f"{calls['own']} without finding a sitecustomize"
    )
    lines.append(f"  {'system calls':<24}{value}")
    lines += [f"    {name:<22}{count:+}" for name, count in calls.get("by_name", {}).items()]
    for program, found in record["peak_memory"].items():
        lines.append(
            f"  memory {program:<17}{found['plain'] / 1024:.1f} -> {found['velo'] / 1024:.1f} MiB"
            f" ({found['ratio']:.3f})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_as_program(main)

# SPDX-License-Identifier: Apache-2.0
"""What the import system itself costs a module: 1,000 empty modules. `python -m bench.machinery --help`.

Nothing is unmarshalled to speak of and nothing runs, so what is left is finding, asking the kernel, making
the spec, the module and its code. The clock runs inside the program, around the imports alone. It is that of
the processor: nothing here waits, and what else the machine does shows less.

The surprise: most of what is left cannot be saved by any finder. The `floor` arm has its specs and its code
ready before the clock starts; what it takes are importlib's own locks and frames.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import records
from bench.arms import Arm, clean_variables, find_velo, read_stats
from bench.figures import speedup, spread
from bench.measure import BenchmarkFault, run, run_as_program, settle
from bench.setting import begin

MODULES = 1000
_LEARNING_RUNS = 3

_PROGRAM = """
import sys
from time import process_time_ns
names = [f"empty_{number:04}" for number in range(int(sys.argv[1]))]
if sys.argv[2] == "floor":
    from importlib.machinery import ModuleSpec, SourceFileLoader
    class Loader(SourceFileLoader):
        def get_code(self, name, code=compile("", "empty", "exec")):
            return code
    specs = {}
    for name in names:
        origin = f"{sys.path[0]}/{name}.py"
        specs[name] = ModuleSpec(name, Loader(name, origin), origin=origin)
        specs[name]._set_fileattr = True
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return specs.get(name)
    sys.meta_path.insert(-1, Finder)
begin = process_time_ns()
for name in names:
    __import__(name)
took = process_time_ns() - begin
print(took, sum(name in sys.modules for name in names))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    setting = begin("machinery", _parser(), arguments)
    options, work, interpreter, record = setting.options, setting.work, setting.interpreter, setting.record
    program = write_program(work / "machinery")
    record["modules"] = MODULES
    arms = make_arms(work, interpreter.tag, options.velo)
    python = str(interpreter.executable)
    for arm in arms.values():
        for _ in range(_LEARNING_RUNS):
            time_imports(arm, python, program)
    check(arms, python, program, work)
    record["us"] = measure(arms, python, program, options.runs)
    if options.instructions:
        record["instructions"] = {
            name: instructions(arm, python, program) for name, arm in arms.items() if name in record["us"]
        }
    print(render(record))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.machinery", description="Cost of importing nothing."
    )
    parser.add_argument("--runs", type=int, default=41, help="timed runs per arm (41)")
    parser.add_argument("--instructions", action="store_true", help="also count instructions, with valgrind")
    records.add_common_options(parser)
    return parser


def write_program(folder: Path) -> Path:
    """A folder of empty modules, and the program that imports them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(MODULES):
        (folder / f"empty_{number:04}.py").touch()
    program = folder / "main.py"
    if not program.exists() or program.read_text() != _PROGRAM:
        program.write_text(_PROGRAM)
    return program


def make_arms(work: Path, tag: str, request: str) -> dict[str, Arm]:
    """Plain Python, the floor, and Velo with and without its native module and with two checks."""
    variables = clean_variables(os.environ)
    arms = {"plain": Arm("plain", variables), "floor": Arm("floor", variables)}
    for name, extra in (("native", {}), ("native-root", {"VELO_CHECK": "root"}), ("twin", {})):
        velo = find_velo(work / "homes" / f"{tag}-machinery-{name}", request)
        if velo is None:
            raise BenchmarkFault("velo not found: install it, or run from a checkout with its requirements")
        velo.forget()
        injected = velo.injected({**variables, **extra})
        if name == "twin":
            injected["PYTHONPATH"] = str(
                _without_native(Path(injected["PYTHONPATH"]), work / "machinery-twin")
            )
        arms[name] = Arm(name, injected)
    return arms


def _without_native(injected: Path, target: Path) -> Path:
    """A copy of the hook and of what installs it, as they are where there is no compiler."""
    shutil.rmtree(target, ignore_errors=True)
    package = injected.parent if injected.name == "_inject" else injected.parent / "velo_import"
    shutil.copytree(package / "hook", target / "velo_import" / "hook")
    shutil.copytree(injected, target / "sitecustomize")
    return target / "sitecustomize"


def time_imports(arm: Arm, python: str, program: Path) -> float:
    """Microseconds a module, as the program measures them itself."""
    kind = "floor" if arm.name == "floor" else "velo"
    done = run([python, str(program), str(MODULES), kind], arm.variables)
    settle()
    took, loaded = (int(word) for word in done.stdout.split()) if done.exit_code == 0 else (0, 0)
    if loaded != MODULES:
        raise BenchmarkFault(f"{arm.name}: {done.stderr.decode()[-400:] or done.stdout.decode()}")
    return took / 1000 / MODULES


def check(arms: Mapping[str, Arm], python: str, program: Path, work: Path) -> None:
    """Velo's arms must serve every one of the modules; otherwise there are no figures."""
    for name in ("native", "native-root", "twin"):
        stats = work / "machinery-stats.jsonl"
        stats.unlink(missing_ok=True)
        variables = {**arms[name].variables, "VELO_STATS": str(stats)}
        time_imports(Arm(name, variables), python, program)
        found = read_stats(stats)
        if found["served"] < MODULES or found["errors"]:
            raise BenchmarkFault(f"{name} does not serve all modules: {found}")


def measure(arms: Mapping[str, Arm], python: str, program: Path, runs: int) -> dict[str, Any]:
    """All arms, interleaved in random order."""
    dice = random.Random(1)
    values: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(runs):
        for name in dice.sample(list(arms), len(arms)):
            values[name].append(time_imports(arms[name], python, program))
    return {
        name: {**spread(series, 2), "ratio": speedup(values["plain"], series)}
        for name, series in values.items()
    }


def instructions(arm: Arm, python: str, program: Path) -> int | str:
    """Instructions a module, user mode: a run with all modules less one without. Repeatable, unlike times.

    The end of the process is in them as well, and what the floor makes ready before its clock starts.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return "skipped: valgrind missing"
    counted: list[int] = []
    for modules in (0, MODULES):
        command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", python, str(program)]
        # A fixed hash seed: with another one dictionaries collide elsewhere.
        variables = {**arm.variables, "PYTHONHASHSEED": "0"}
        done = run([*command, str(modules), "floor" if arm.name == "floor" else "velo"], variables)
        settle()
        found = re.search(rb"Collected : (\d+)", done.stderr)
        if found is None:
            return f"skipped: {done.stderr.decode(errors='replace')[-200:]}"
        counted.append(int(found[1]))
    return round((counted[1] - counted[0]) / MODULES)


def render(record: Mapping[str, Any]) -> str:
    lines = [f"{record['modules']} empty modules, Python {record['python']}, a module:"]
    counted = record.get("instructions", {})
    for name, found in record["us"].items():
        lines.append(
            f"  {name:<12}{found['lower_quartile']:6.1f} us (p10-p90 {found['p10']:.1f}-{found['p90']:.1f})"
            f"  {found['ratio']['ratio']:5.2f}x  {counted.get(name, '')}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_as_program(main)

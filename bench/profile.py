# SPDX-License-Identifier: Apache-2.0
"""Where a warm start goes, in instructions: `python -m bench.profile --help`.

Callgrind counts the same instructions on every machine and under any load, so this says what the times of
the warm cell can only hint at: how much of a start any finder and loader could save. The surprise: it sees
no system calls, of which Velo makes about half as many; their time comes on top of what is counted here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import records
from bench.arms import Arm, arms_of, clean_variables, floor_arm
from bench.environment import Environment, build
from bench.measure import BenchmarkFault, run, run_as_program, settle
from bench.programs import write_program
from bench.setting import begin

# Inclusive cost of one C function of CPython -> what it stands for.
PARTS = {
    "marshal_loads": "unmarshal",
    "gc_collect_main": "collector",
    "type_new": "class creation",
    "_imp_create_dynamic": "native modules",
}
_TOTAL = re.compile(r"^\s*([\d,]+) \(100\.0%\)\s+PROGRAM TOTALS")
_LINE = re.compile(r"^\s*([\d,]+) \(\s*[\d.]+%\)\s+\S*?:(\w+)(?: \[|$)")


def main(arguments: Sequence[str] | None = None) -> int:
    setting = begin("profile", _parser(), arguments)
    options, work, interpreter, record = setting.options, setting.work, setting.interpreter, setting.record
    if shutil.which("valgrind") is None:
        raise BenchmarkFault("valgrind not found: install it (apt-get install valgrind)")
    velo = setting.velo("profile")
    environment = build(work, interpreter, "pyc")
    variables = {**clean_variables(os.environ), "PYTHONHASHSEED": "0"}
    arms = {name: arm for name, arm in arms_of(variables, velo).items() if name != "run"}
    arms["floor"] = floor_arm(variables, velo.home)
    record["instructions"] = {}
    nothing = work / "programs" / "nothing" / "main.py"
    nothing.parent.mkdir(parents=True, exist_ok=True)
    nothing.write_text("pass\n")
    scripts = {"(empty)": nothing}
    scripts |= {name: write_program(work / "programs", name) for name in options.programs.split(",")}
    for script in [*scripts.values()] * 2:
        for arm in (arms["velo"], arms["floor"]):
            run(arm.command(environment.python, str(script)), arm.variables)
            settle()
    for name, script in scripts.items():
        record["instructions"][name] = {
            arm: count(arms[arm], environment, script, work) for arm in ("plain", "velo", "floor")
        }
    print(render(record["instructions"]))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description="Instructions of a start.")
    parser.add_argument("--programs", default="boto3,django,sympy,black", help="comma list")
    records.add_common_options(parser)
    return parser


def count(arm: Arm, environment: Environment, script: Path, work: Path) -> dict[str, int]:
    """Instructions of one start: in all, and in the parts that can be told apart."""
    out = work / "callgrind.out"
    command = arm.command(environment.python, str(script))
    subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *command],
        env=dict(arm.variables),
        check=True,
        capture_output=True,
    )
    text = subprocess.run(
        ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    settle()
    return parse(text)


def parse(text: str) -> dict[str, int]:
    """The figures of one `callgrind_annotate --inclusive=yes`; a function is listed once for each file it
    was inlined from, and the largest of these is the whole.
    """
    counted = dict.fromkeys(("total", *PARTS.values()), 0)
    for line in text.splitlines():
        if total := _TOTAL.match(line):
            counted["total"] = int(total[1].replace(",", ""))
        elif (found := _LINE.match(line)) and found[2] in PARTS:
            part = PARTS[found[2]]
            counted[part] = max(counted[part], int(found[1].replace(",", "")))
    return counted


def render(instructions: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """A table in millions of instructions; the last columns are ratios to plain."""
    heads = [
        "program",
        "plain",
        *(f"{part} %" for part in PARTS.values()),
        "velo",
        "plain/velo",
        "plain/floor",
    ]
    rows: list[list[Any]] = [heads]
    for name, arms in instructions.items():
        plain, velo, floor = arms["plain"], arms["velo"], arms["floor"]
        shares = [f"{100 * plain[part] / plain['total']:.1f}" for part in PARTS.values()]
        ratios = [f"{plain['total'] / arm['total']:.3f}" for arm in (velo, floor)]
        rows.append([name, f"{plain['total'] / 1e6:.1f}", *shares, f"{velo['total'] / 1e6:.1f}", *ratios])
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(heads))]
    return "\n".join(
        "  ".join(str(cell).rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


if __name__ == "__main__":
    run_as_program(main)

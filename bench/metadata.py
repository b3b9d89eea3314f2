# SPDX-License-Identifier: Apache-2.0
"""What it takes to ask what is installed, of 80 distributions. `python -m bench.metadata --help`.

Each question is asked once, by a fresh process, which times it itself, by the processor's clock: what else
the machine does shows less. With Velo that includes opening the table of distributions and asking the kernel
about every file behind the answer. With `--environment`, the
start-up of programs that look for plugins is timed as well, if they are installed there: pytest, stevedore
and OpenTelemetry, plain, with Velo, and with Velo that leaves `importlib.metadata` alone.

The surprise: most of the price of a version is not reading a file but parsing it as an e-mail.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import records
from bench.arms import CHECKOUT, Arm, clean_variables, find_velo, read_stats
from bench.environment import work_folder
from bench.figures import speedup, spread
from bench.interpreters import find_interpreter
from bench.measure import BenchmarkFault, become_subreaper, run, run_as_program, settle

DISTRIBUTIONS = 80
_WITH_ENTRY_POINTS = 3  # every third
_FILES = 30
_LEARNING_RUNS = 3

QUESTIONS = {
    "entry_points()": "m.entry_points()",
    "entry_points(group=...)": "m.entry_points(group='console_scripts')",
    "entry points of each": "[each.entry_points for each in m.distributions()]",
    "one version": "m.version(sys.argv[2])",
    "version of each": "[each.version for each in m.distributions()]",
    "metadata of one": "m.metadata(sys.argv[2])['Name']",
    "metadata of each": "[each.metadata.items() for each in m.distributions()]",
    "requires of each": "[each.requires for each in m.distributions()]",
    "files of one": "m.files(sys.argv[2])",
    "files of each": "[each.files for each in m.distributions()]",
    "read_text of each": "[each.read_text('INSTALLER') for each in m.distributions()]",
    "packages_distributions()": "sorted(m.packages_distributions().items())",
}

_PROGRAM = """
import sys, importlib.metadata as m
from time import process_time_ns
begin = process_time_ns()
answer = {question}
print(process_time_ns() - begin, hash(repr(answer)))
"""

# Programs that look for plugins when they start; the last line says that they did.
STARTS = {
    "pytest": "import os, pytest; pytest.main(['--noconftest', '-c', os.devnull, '--markers'])",
    "stevedore": "from stevedore import EnabledExtensionManager as M; print(M('cliff.help', bool).names())",
    "opentelemetry": "from opentelemetry import trace, propagate; print(bool(trace.get_tracer(__name__)))",
    "pip list": "from pip._internal.cli.main import main; main(['list', '--disable-pip-version-check'])",
    "opentelemetry-instrument": (
        "from opentelemetry.instrumentation.auto_instrumentation import initialize as start; print(start())"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    os.chdir(CHECKOUT)
    become_subreaper()
    work = work_folder(options.work) / "metadata"
    record = records.header("metadata", "bench.metadata", words)
    shutil.rmtree(work / "environment", ignore_errors=True)
    interpreter = find_interpreter(options.python)
    python = make_environment(work / "environment", str(interpreter.executable))
    record |= {"python": interpreter.version, "distributions": DISTRIBUTIONS}
    arms = make_arms(work / "home", options.velo)
    record["us"] = {
        name: measure_question(arms, python, _PROGRAM.format(question=question), "name-0", work, options.runs)
        for name, question in QUESTIONS.items()
    }
    if options.environment:
        python = str(Path(options.environment) / "bin" / "python")
        arms = make_arms(work / "home-real", options.velo)
        record["starts_ms"] = {
            name: found
            for name, text in STARTS.items()
            if (found := measure_start(arms, python, text, options.runs)) is not None
        }
    print(render(record))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.metadata", description="Asking what is installed.")
    parser.add_argument("--runs", type=int, default=31, help="timed runs per arm (31)")
    parser.add_argument("--environment", default="", help="virtual environment whose programs are timed")
    records.add_common_options(parser)
    return parser


def make_environment(folder: Path, python: str) -> str:
    """A virtual environment with distributions as they usually are: long descriptions, some entry points."""
    done = run([python, "-m", "venv", "--without-pip", str(folder)], clean_variables(os.environ))
    if done.exit_code:
        raise BenchmarkFault(done.stderr.decode()[-400:])
    (site,) = folder.glob("lib/python*/site-packages")
    for number in range(DISTRIBUTIONS):
        info = site / f"name_{number}-1.{number}.dist-info"
        info.mkdir()
        text = "".join(f"Classifier: Topic :: Number {line}\n" for line in range(20))
        text += "".join(f"Requires-Dist: name-{line} (>=1.0) ; extra == 'more'\n" for line in range(10))
        text += "\n" + "A line of the long description, as it stands in the README.\n" * 120
        head = f"Metadata-Version: 2.1\nName: name-{number}\nVersion: 1.{number}\n"
        (info / "METADATA").write_text(head + text)
        files = [f"name_{number}/part_{line}.py" for line in range(_FILES)]
        (site / f"name_{number}").mkdir()
        for file in files:
            (site / file).touch()
        (info / "RECORD").write_text("".join(f"{file},sha256={'x' * 43},0\n" for file in files))
        if number % _WITH_ENTRY_POINTS == 0:
            points = "".join(f"tool-{number}-{line} = name_{number}.cli:main\n" for line in range(3))
            points = f"[console_scripts]\n{points}\n[plugins]\nname-{number} = name_{number}:Plugin [more]\n"
            (info / "entry_points.txt").write_text(points)
    return str(folder / "bin" / "python")


def make_arms(home: Path, request: str) -> dict[str, Arm]:
    """Plain Python, Velo, and Velo without this."""
    variables = {**clean_variables(os.environ), "PYTHONHASHSEED": "0"}
    velo = find_velo(home, request)
    if velo is None:
        raise BenchmarkFault("velo not found: install it, or run from a checkout with its requirements")
    velo.forget()
    without = {"VELO_REMEMBER": "images,patterns,sources"}
    return {
        "plain": Arm("plain", variables),
        "velo": Arm("velo", velo.injected(variables)),
        "without": Arm("without", velo.injected({**variables, **without})),
    }


def measure_question(
    arms: Mapping[str, Arm], python: str, program: str, name: str, work: Path, runs: int
) -> dict[str, Any]:
    """Microseconds of one question in each arm, interleaved in random order; every answer is compared."""
    script = work / "program" / "ask.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(program)
    command = [python, str(script), "-", name]
    for _ in range(_LEARNING_RUNS):
        asked(arms["velo"], command)
    stats = work / "stats.jsonl"
    stats.unlink(missing_ok=True)
    asked(Arm("velo", {**arms["velo"].variables, "VELO_STATS": str(stats)}), command)
    if not read_stats(stats).get("metadata", 1) or read_stats(stats)["errors"]:
        raise BenchmarkFault(f"nothing was answered: {read_stats(stats)}")
    dice = random.Random(1)
    chosen = ("plain", "velo")
    values: dict[str, list[float]] = {arm: [] for arm in chosen}
    answers = set()
    for _ in range(runs):
        for arm in dice.sample(chosen, len(chosen)):
            took, answer = asked(arms[arm], command)
            values[arm].append(took)
            answers.add(answer)
    if len(answers) != 1:
        raise BenchmarkFault(f"the arms answer differently: {program}")
    return {
        arm: {**spread(series, 1), "ratio": speedup(values["plain"], series)}
        for arm, series in values.items()
    }


def asked(arm: Arm, command: Sequence[str]) -> tuple[float, int]:
    """Microseconds that the program measured, and its answer."""
    done = run(command, arm.variables)
    settle()
    if done.exit_code:
        raise BenchmarkFault(f"{arm.name}: {done.stderr.decode()[-400:]}")
    took, answer = (int(word) for word in done.stdout.split())
    return took / 1000, answer


def measure_start(arms: Mapping[str, Arm], python: str, text: str, runs: int) -> dict[str, Any] | None:
    """Milliseconds of the processor for whole processes in each arm; None where it is not installed."""
    command = [python, "-c", text]
    if run(command, arms["plain"].variables).exit_code:
        return None
    for arm in ("velo", "without", "velo", "velo"):
        run(command, arms[arm].variables)
        settle()
    dice = random.Random(1)
    values: dict[str, list[float]] = {name: [] for name in arms}
    outputs = set()
    for _ in range(runs):
        for name in dice.sample(list(arms), len(arms)):
            done = run(command, arms[name].variables)
            settle()
            values[name].append((done.user + done.system) * 1000)
            outputs.add((done.exit_code, done.stdout))
    if len(outputs) != 1:
        raise BenchmarkFault(f"the arms answer differently: {text}")
    return {
        name: {**spread(series, 1), "ratio": speedup(values["plain"], series)}
        for name, series in values.items()
    }


def render(record: Mapping[str, Any]) -> str:
    lines = [f"{record['distributions']} distributions, Python {record['python']}"]
    for title, unit in (("us", "us"), ("starts_ms", "ms")):
        for question, found in record.get(title, {}).items():
            for arm, each in found.items():
                lines.append(
                    f"  {question:<26}{arm:<8}{each['lower_quartile']:9.1f} {unit}"
                    f" (p10-p90 {each['p10']:.1f}-{each['p90']:.1f})  {each['ratio']['ratio']:5.2f}x"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    run_as_program(main)

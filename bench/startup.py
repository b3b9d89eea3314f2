# SPDX-License-Identifier: Apache-2.0
"""Start-up time of ten programs: plain Python against Velo, cell by cell. `python -m bench.startup --help`.

Arms run interleaved in random order. Every run's output is compared with plain Python's, and the
accelerated arm must prove through VELO_STATS that it served modules without an error; otherwise there is no
number at all.

The surprise: VELO_STATS is set in one checked run before and one after the timed ones, not in them: writing
the file is not what users wait for. That nothing was learned during the timed runs is checked as well, and
told if it happened.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import cells, records, slowfs
from bench.arms import CHECKOUT, Arm, Velo, arms_of, clean_variables, find_velo, floor_arm, read_stats
from bench.figures import Ratio, geometric_mean, losses, speedup, spread, times
from bench.measure import BenchmarkFault, Sample, run, run_as_program, settle
from bench.programs import EXTRA, PROGRAMS, write_program
from bench.setting import begin

_LEARNING_PASSES = 2
_DEFERRED_SHARE = 0.3


def main(arguments: Sequence[str] | None = None) -> int:
    setting = begin("startup", _parser(), arguments)
    options, work, interpreter, record = setting.options, setting.work, setting.interpreter, setting.record
    programs = list(PROGRAMS) if options.programs == "all" else options.programs.split(",")
    if unknown := [name for name in programs if name not in PROGRAMS and name not in EXTRA]:
        raise BenchmarkFault(f"no program called {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    packages = any(name in PROGRAMS for name in programs)
    record["statistic"] = f"lower quartile of {options.runs} runs, seconds; ratio = plain / arm"
    if record["busy"]:
        records.report_progress(f"warning: {record['busy']}: timings will be noisy")
    raw: dict[str, dict[str, list[float]]] = {}
    record["cells"] = {}
    for name in cells.expand(options.cells):
        home = setting.home(name)
        velo = None if options.plain_only else find_velo(home, options.velo)
        record["velo"] = velo.version if velo else "absent"
        if velo is not None:
            velo.forget()
        try:
            cell = cells.prepare(name, work, interpreter, home, _launcher_files(velo), packages)
        except slowfs.Unavailable as reason:
            records.report_progress(f"{name}: skipped: {reason}")
            record["cells"][name] = {"skipped": str(reason)}
            continue
        measured = _Series(cell, work, velo, options).measure(programs)
        for (arm, program), values in measured.raw.items():
            raw.setdefault(arm, {})[f"{name}/{program}"] = values
        record["cells"][name] = measured.summary
        print(render(name, measured.summary), flush=True)
    if options.json:
        target = Path(options.json).with_suffix(".json")
        records.save(target, record)
        facts = {
            "python_version": interpreter.version,
            **{k: v for k, v in record["machine"].items() if k.startswith("cpu")},
        }
        for arm, series in raw.items():
            records.save_raw(target.with_suffix(f".{arm}.pyperf.json"), series, facts)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.startup", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--cells", default="warm,nopyc", help=f"comma list, or all: {', '.join(cells.NAMES)}")
    parser.add_argument("--programs", default="all", help=f"comma list, or all: {', '.join(PROGRAMS)}")
    parser.add_argument("--runs", type=int, default=21, help="timed runs per arm (21)")
    records.add_common_options(parser)
    parser.add_argument(
        "--learn", choices=("run", "ingest"), default="run", help="how the store is filled beforehand"
    )
    parser.add_argument("--floor", action="store_true", help="also measure what no finder can go below")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the arms")
    parser.add_argument("--plain-only", action="store_true", help="measure plain Python alone")
    return parser


def _launcher_files(velo: Velo | None) -> list[Path]:
    """What `velo run` itself reads from disk, as far as it can be known from outside."""
    if velo is None:
        return []
    roots = [CHECKOUT / "velo_import", CHECKOUT / "sitecustomize"]
    return [root for root in (*roots, Path(velo.command[0]).resolve()) if root.exists()]


class _Series:
    """All programs of one cell."""

    def __init__(self, cell: cells.Cell, work: Path, velo: Velo | None, options: argparse.Namespace) -> None:
        self.cell, self.work, self.velo, self.options = cell, work, velo, options
        self.python = cell.environment.python
        variables = {
            **clean_variables(os.environ),
            **cell.variables,
            "MPLCONFIGDIR": str(work / "matplotlib"),
        }
        self.arms = arms_of(variables, velo)
        if velo is not None and cell.name == "path50":
            # The most that can be reached: Velo where the entries are not there at all.
            spared = {name: value for name, value in variables.items() if name not in cell.variables}
            self.arms["spared"] = replace(arms_of(spared, velo)["velo"], name="spared")
        if velo is not None and options.floor:
            self.arms["floor"] = floor_arm(variables, velo.home)
        self.raw: dict[tuple[str, str], list[float]] = {}
        self.summary: dict[str, Any] = {"conditions": cell.conditions, "programs": {}}
        self.dice = random.Random(options.seed)

    def measure(self, programs: list[str]) -> _Series:
        if self.velo is not None and self.options.learn == "ingest":
            with self.cell.around():
                self.velo.ask("ingest", str(self.cell.environment.prefix), "--python", str(self.python))
        scripts = {program: write_program(self.work / "programs", program) for program in programs}
        wanted = {program: self._plain_output(program, script) for program, script in scripts.items()}
        if self.velo is not None:
            # All programs first, then all again: a run that finds nothing to learn makes the next ones wait.
            for program in programs * _LEARNING_PASSES:
                self._checked_run(program, scripts[program], wanted[program])
        if "floor" in self.arms:
            for program, script in scripts.items():
                self._compare("floor", program, self._once(self.arms["floor"], script), wanted[program])
        for program, script in scripts.items():
            records.report_progress(f"{self.cell.name}: {program}")
            checks = self._check(program, script, wanted[program])
            before = self._manifests()
            notes = self._timed_runs(program, script, wanted[program])
            if self.velo is not None:
                self._checked_run(program, script, wanted[program])
                checks["learned_during_timed_runs"] = self._manifests() != before
            self.cell.prove()
            self.summary["programs"][program] = self._summarise(program, checks, notes)
        self._conclude()
        return self

    def _plain_output(self, program: str, script: Path) -> Sample:
        """What every run must print; of two runs the second, which finds what the first wrote."""
        wanted = [self._once(self.arms["plain"], script) for _ in range(2)][-1]
        if wanted.exit_code != 0:
            raise BenchmarkFault(f"{program} fails in plain Python: {wanted.stderr.decode()[-600:]}")
        return wanted

    def _once(self, arm: Arm, script: Path, extra: Mapping[str, str] | None = None) -> Sample:
        with self.cell.around() as self.notes:
            sample = run(arm.command(self.python, str(script)), {**arm.variables, **(extra or {})})
            self.detached = settle()  # inside: a learner needs the mount as well
        return sample

    def _compare(self, arm: str, program: str, sample: Sample, wanted: Sample) -> None:
        if sample.output != wanted.output:
            got = (
                f"exit {sample.exit_code}: {(sample.stdout + sample.stderr).decode(errors='replace')[-800:]}"
            )
            raise BenchmarkFault(
                f"{self.cell.name}/{program}: arm {arm} does not behave as plain Python: {got}"
            )

    def _checked_run(self, program: str, script: Path, wanted: Sample) -> dict[str, int]:
        stats = self.work / "stats.jsonl"
        stats.unlink(missing_ok=True)
        sample = self._once(self.arms["velo"], script, {"VELO_STATS": str(stats)})
        self._compare("velo", program, sample, wanted)
        totals = read_stats(stats)
        if totals["errors"]:
            raise BenchmarkFault(f"{self.cell.name}/{program}: {totals['errors']} errors in VELO_STATS")
        return totals

    def _check(self, program: str, script: Path, wanted: Sample) -> dict[str, Any]:
        """What VELO_STATS says after learning; no figure for a program that was not served."""
        if self.velo is None:
            return {}
        totals: dict[str, Any] = dict(self._checked_run(program, script, wanted))
        if not totals["served"]:
            raise BenchmarkFault(f"{self.cell.name}/{program}: nothing was served after learning: {totals}")
        if totals["deferred"] > _DEFERRED_SHARE * (totals["served"] + totals["deferred"]):
            records.report_progress(
                f"warning: {program}: {totals['deferred']} modules deferred after learning"
            )
        return totals

    def _manifests(self) -> list[tuple[str, int]]:
        if self.velo is None:
            return []
        return sorted(
            (str(path), path.stat().st_mtime_ns) for path in self.velo.home.glob("manifests/**/*.velo")
        )

    def _timed_runs(self, program: str, script: Path, wanted: Sample) -> dict[str, dict[str, list[float]]]:
        notes: dict[str, dict[str, list[float]]] = {name: {} for name in self.arms}
        for _ in range(self.options.runs):
            order = list(self.arms.values())
            self.dice.shuffle(order)
            for arm in order:
                sample = self._once(arm, script)
                self._compare(arm.name, program, sample, wanted)
                self.raw.setdefault((arm.name, program), []).append(sample.seconds)
                seen = {**self.notes, "cpu": sample.user + sample.system, "detached": len(self.detached)}
                for name, value in seen.items():
                    notes[arm.name].setdefault(name, []).append(value)
        return notes

    def _summarise(
        self, program: str, checks: dict[str, Any], notes: dict[str, dict[str, list[float]]]
    ) -> dict[str, Any]:
        plain = self.raw["plain", program]
        result: dict[str, Any] = {"arms": {}, "ratios": {}, "checks": checks}
        for arm in self.arms:
            values = self.raw[arm, program]
            seen = {name: spread(list(values), 4)["median"] for name, values in notes[arm].items()}
            result["arms"][arm] = {**spread(values), "medians": seen}
            if arm != "plain":
                result["ratios"][arm] = speedup(plain, values)
        return result

    def _conclude(self) -> None:
        self.summary["geometric_mean"], self.summary["losses"] = {}, {}
        for arm in self.arms:
            ratios: dict[str, Ratio] = {
                name: found["ratios"][arm]
                for name, found in self.summary["programs"].items()
                if arm in found["ratios"]
            }
            if ratios:
                self.summary["geometric_mean"][arm] = round(
                    geometric_mean(r["ratio"] for r in ratios.values()), 4
                )
                self.summary["losses"][arm] = losses(ratios)


def render(name: str, summary: Mapping[str, Any]) -> str:
    """One cell as a table for a terminal: milliseconds, spread, ratios; losses by name."""
    lines = [f"\n{name}: {summary['conditions']}", f"{'program':<12}{'plain ms (p10-p90)':>24}"]
    arms = list(summary["geometric_mean"])
    for arm in arms:
        lines[1] += f"{arm + ' ms (p10-p90)':>24}{'plain/' + arm:>12}"
    for program, found in summary["programs"].items():
        line = f"{program:<12}{_milliseconds(found['arms']['plain']):>24}"
        for arm in arms:
            line += f"{_milliseconds(found['arms'][arm]):>24}{times(found['ratios'][arm]['ratio']):>12}"
        lines.append(line)
    for arm in arms:
        slower = ", ".join(
            f"{p} {times(summary['programs'][p]['ratios'][arm]['ratio'])}" for p in summary["losses"][arm]
        )
        lines.append(
            f"{arm}: geometric mean {times(summary['geometric_mean'][arm])}; losses: {slower or 'none'}"
        )
    return "\n".join(lines)


def _milliseconds(found: Mapping[str, float]) -> str:
    return f"{found['lower_quartile'] * 1e3:.1f} ({found['p10'] * 1e3:.0f}-{found['p90'] * 1e3:.0f})"


if __name__ == "__main__":
    run_as_program(main)

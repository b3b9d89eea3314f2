# SPDX-License-Identifier: Apache-2.0
"""Start-up time with everybody who promises to make it shorter: `python -m bench.everybody --help`.

The same programs, harness and statistic as bench.startup: peers interleaved in random order, every output
compared with plain Python's. A peer under which a program does not run as plain Python runs it has no figure
for that program, and the reason is printed in its place.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import pagecache, records
from bench.arms import clean_variables, find_velo
from bench.figures import geometric_mean, speedup, spread, times
from bench.interpreters import Interpreter
from bench.measure import BenchmarkFault, Sample, run, run_as_program, settle
from bench.peers import Peer, Unavailable, Workshop
from bench.programs import PROGRAMS, write_program
from bench.setting import begin

CONDITIONS = {
    "warm": "page cache warm",
    "cold": "page cache of packages, standard library, interpreter, Velo, stores, images dropped before each"
    " run, with posix_fadvise; names and inodes stay cached",
}


def main(arguments: Sequence[str] | None = None) -> int:
    setting = begin("everybody", _parser(), arguments)
    options, work, interpreter, record = setting.options, setting.work, setting.interpreter, setting.record
    programs = list(PROGRAMS) if options.programs == "all" else options.programs.split(",")
    wanted_cells = options.cells.split(",")
    if unknown := sorted({*programs} - {*PROGRAMS} | {*wanted_cells} - {*CONDITIONS}):
        raise BenchmarkFault(f"no program or cell called {', '.join(unknown)}")
    record["statistic"] = f"lower quartile of {options.runs} runs, seconds; ratio = plain / peer"
    if record["busy"]:
        records.report_progress(f"warning: {record['busy']}: timings will be noisy")
    with contextlib.ExitStack() as mounts:
        workshop = Workshop(work, interpreter, options.velo, mounts)
        peers, record["peers"] = _peers(workshop, options.peers)
        velo = find_velo(work / "homes", options.velo)
        record["velo"] = velo.version if velo else "velo absent"
        series = Series(work, interpreter, peers, options.seed)
        scripts = {name: write_program(work / "programs", name) for name in programs}
        series.prepare(scripts)
        record["cells"] = {}
        for cell in wanted_cells:
            record["cells"][cell] = series.measure(cell, scripts, options.runs)
            print(render(cell, record["cells"][cell]), flush=True)
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.everybody", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--cells", default="warm,cold", help=f"comma list of {', '.join(CONDITIONS)}")
    parser.add_argument("--programs", default="all", help=f"comma list, or all: {', '.join(PROGRAMS)}")
    parser.add_argument("--peers", default="all", help="comma list, or all; plain is always there")
    parser.add_argument("--runs", type=int, default=21, help="timed runs per peer (21)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the peers")
    records.add_common_options(parser)
    return parser


def _peers(workshop: Workshop, wanted: str) -> tuple[list[Peer], dict[str, dict[str, str]]]:
    """The peers that can be had, and for the record what each is or why it cannot."""
    peers, about = [], {}
    for name, make in workshop.peers():
        if wanted != "all" and name != "plain" and name not in wanted.split(","):
            continue
        records.report_progress(f"preparing {name}")
        try:
            peer = make()
        except Unavailable as reason:
            records.report_progress(f"{name}: not measured: {reason}")
            about[name] = {"skipped": str(reason)}
        else:
            peers.append(peer)
            about[name] = {"about": peer.about}
    return peers, about


class Series:
    """All peers with all programs."""

    def __init__(self, work: Path, interpreter: Interpreter, peers: Sequence[Peer], seed: int) -> None:
        self.interpreter = interpreter
        self.peers = peers
        self.base = {**clean_variables(os.environ), "MPLCONFIGDIR": str(work / "matplotlib")}
        self.dice = random.Random(seed)
        self.plain = next(peer for peer in peers if peer.name == "plain")
        self.wanted: dict[str, tuple[int, bytes, bytes]] = {}
        self.failed: dict[tuple[str, str], str] = {}
        self.resident: dict[str, float] = {}
        self.paths: dict[str, list[Path]] = {}

    def prepare(self, scripts: Mapping[str, Path]) -> None:
        """What every run must print, and what each peer does beforehand for each program."""
        for program, script in scripts.items():
            self._once(self.plain, program, script)
            sample = self._once(self.plain, program, script)
            if sample.exit_code:
                raise BenchmarkFault(f"{program} fails in plain Python: {sample.stderr.decode()[-600:]}")
            self.wanted[program] = self._output(self.plain, sample)
            for peer in self.peers:
                records.report_progress(f"{program}: {peer.name} prepares")
                try:
                    peer.prepare(program, script, self.base)
                    self._once(peer, program, script)
                    self._check(peer, program, self._once(peer, program, script))
                except BenchmarkFault as fault:
                    self._fail(peer, program, str(fault))

    def measure(self, cell: str, scripts: Mapping[str, Path], runs: int) -> dict[str, Any]:
        """One cell: figures of every program, and the mean of each peer over those that it runs."""
        found: dict[str, Any] = {"conditions": CONDITIONS[cell], "programs": {}, "geometric_mean": {}}
        for program, script in scripts.items():
            records.report_progress(f"{cell}: {program}")
            raw: dict[str, list[float]] = {}
            for turn in range(runs):
                order = [peer for peer in self.peers if (peer.name, program) not in self.failed]
                self.dice.shuffle(order)
                for peer in order:
                    if cell == "cold":
                        self._cool(peer, is_proved=turn > 0)
                    sample = self._once(peer, program, script)
                    try:
                        self._check(peer, program, sample)
                    except BenchmarkFault as fault:
                        self._fail(peer, program, str(fault))
                        raw.pop(peer.name, None)
                    else:
                        raw.setdefault(peer.name, []).append(sample.seconds)
            found["programs"][program] = {
                "arms": {name: spread(values) for name, values in raw.items()},
                "ratios": {
                    name: speedup(raw["plain"], values) for name, values in raw.items() if name != "plain"
                },
                "failed": {name: why for (name, which), why in self.failed.items() if which == program},
            }
        for peer in self.peers:
            ratios = [
                each["ratios"][peer.name]["ratio"]
                for each in found["programs"].values()
                if peer.name in each["ratios"]
            ]
            if ratios:
                found["geometric_mean"][peer.name] = round(geometric_mean(ratios), 4)
        if cell == "cold":
            found["resident"] = self.resident
        return found

    def _once(self, peer: Peer, program: str, script: Path) -> Sample:
        sample = run(peer.command(script), peer.environment(program, self.base))
        settle()
        return sample

    def _output(self, peer: Peer, sample: Sample) -> tuple[int, bytes, bytes]:
        """What came out, with the place of the packages replaced: it differs by design."""
        texts = []
        for text in (sample.stdout, sample.stderr):
            for place in sorted(map(str, peer.places), key=len, reverse=True):
                text = text.replace(place.encode(), b"PACKAGES")
            for changed, stock in peer.forgiven:
                text = text.replace(changed, stock)
            texts.append(text)
        return sample.exit_code, texts[0], texts[1]

    def _check(self, peer: Peer, program: str, sample: Sample) -> None:
        got = self._output(peer, sample)
        if got != self.wanted[program]:
            last = (got[2] or got[1]).decode(errors="replace").strip().splitlines()[-1:]
            raise BenchmarkFault(f"ends with {got[0]}: {''.join(last)[-160:]}")

    def _fail(self, peer: Peer, program: str, reason: str) -> None:
        records.report_progress(f"{program}: {peer.name}: no figure: {reason}")
        if peer.name in ("plain", "velo", "velo-pack", "velo-twin"):
            raise BenchmarkFault(f"{program} under {peer.name}: {reason}")
        # A path would name this machine.
        self.failed[peer.name, program] = " ".join(
            os.path.basename(word.strip("'\"")) if "/" in word else word for word in reason.split()
        )

    def _cool(self, peer: Peer, is_proved: bool) -> None:
        """Drop what the peer's next start would read; `resident` keeps the most that stayed, by mincore."""
        if not is_proved or peer.name not in self.paths:
            roots = [self.interpreter.stdlib, self.interpreter.executable, *peer.files]
            roots += [self.interpreter.library] if self.interpreter.library else []
            self.paths[peer.name] = pagecache.files_below(roots)
        os.sync()
        paths = self.paths[peer.name]
        pagecache.evict(paths)
        peer.cool()
        if not is_proved:  # It takes longer than the start.
            share = round(pagecache.residency(paths).share, 4)
            self.resident[peer.name] = max(share, self.resident.get(peer.name, 0.0))


def render(cell: str, found: Mapping[str, Any]) -> str:
    """One cell for a terminal: plain in milliseconds, then how many times faster each peer is."""
    names = list(found["geometric_mean"])
    lines = [f"\n{cell}: {found['conditions']}"]
    lines.append(f"{'program':<12}{'plain ms':>10}" + "".join(f"{name:>12}" for name in names))
    for program, each in found["programs"].items():
        line = f"{program:<12}{each['arms']['plain']['lower_quartile'] * 1e3:>10.1f}"
        for name in names:
            line += f"{times(each['ratios'][name]['ratio']) if name in each['ratios'] else 'fails':>12}"
        lines.append(line)
    means = "".join(f"{times(found['geometric_mean'][name]):>12}" for name in names)
    lines.append(f"{'mean':<12}{'':>10}{means}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_as_program(main)

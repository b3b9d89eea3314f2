# SPDX-License-Identifier: Apache-2.0
"""What a cold start reads, in order, and how long it waits for each file: `python -m bench.coldread`.

`perf` tells when pages of which file entered the page cache and when the program slept in the kernel; a
sleep is put down to the file whose pages were asked for last, and ends when the program runs again. So a
busy machine makes waits longer; their number, and that of pages, do not vary. The part of the processor in
reading is not counted. The arm `unaided` is `velo` without the notes for reading ahead.

The surprise: a file that costs no wait may still cost time. What was read ahead by then is free, and what was
asked for in vain is not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import cells, pagecache, records
from bench.arms import CHECKOUT, Arm, arms_of, clean_variables
from bench.measure import BenchmarkFault, run, run_as_program, settle
from bench.programs import EXTRA, PROGRAMS, write_program
from bench.setting import begin

_EVENTS = (
    "filemap:mm_filemap_add_to_page_cache,filemap:mm_filemap_fault,filemap:mm_filemap_get_pages,"
    "sched:sched_switch,sched:sched_process_exec"
)
_LINE = re.compile(r"\s*(\d+)\s+([\d.]+):\s+(\S+)\s*(.*)")
_ADDED = re.compile(r"ino ([0-9a-f]+) pfn=\S+ ofs=\d+ order=(\d+)")
_ASKED = re.compile(r"ino=([0-9a-f]+)")


@dataclass
class Read:
    """One file that a start read: when first, how many pages, how often and how long it waited for it."""

    inode: int
    at_ms: float
    pages: int = 0
    waits: int = 0
    wait_ms: float = 0.0


def reads_of(lines: Iterable[str]) -> list[Read]:
    """What `perf script` says, as one record for each file, in the order in which they were first read."""
    found: dict[int, Read] = {}
    began = 0.0
    asked: dict[str, int] = {}  # thread -> the file that it looked at last
    added: dict[str, int] = {}  # thread -> the file that it read pages of since it slept
    asleep: dict[str, float] = {}
    for match in filter(None, map(_LINE.match, lines)):
        thread, time, event, rest = match[1], float(match[2]) * 1e3, match[3], match[4]
        began = began or time
        if event.startswith("filemap:mm_filemap_add"):
            if said := _ADDED.search(rest):
                inode = added[thread] = int(said[1], 16)
                found.setdefault(inode, Read(inode, time - began)).pages += 1 << int(said[2])
        elif event.startswith("filemap:"):
            if said := _ASKED.search(rest):
                asked[thread] = int(said[1], 16)
        elif event.startswith("sched:sched_switch"):
            if "prev_state=D" in rest:
                asleep[thread] = time
        elif event == "PERF_RECORD_SWITCH" and rest.startswith("IN") and thread in asleep:
            inode = added.pop(thread, None) or asked.get(thread, 0)
            read = found.setdefault(inode, Read(inode, asleep[thread] - began))
            read.waits += 1
            read.wait_ms += time - asleep.pop(thread)
    return sorted(found.values(), key=lambda read: read.at_ms)


def kind_of(path: str, home: str) -> str:
    """What sort of file a start reads there."""
    name = path.rpartition("/")[2]
    if path.startswith(home):
        return "store: packs" if name.endswith(".pack") else "store: other"
    if name.startswith("libpython") or (name.startswith("python") and "/bin/" in path):
        return "interpreter"
    if ".so" in name:
        return "libraries"
    return {"pyc": ".pyc", "py": ".py"}.get(name.rpartition(".")[2], "other")


def main(arguments: Sequence[str] | None = None) -> int:
    setting = begin("coldread", _parser(), arguments)
    options, work, interpreter, record = setting.options, setting.work, setting.interpreter, setting.record
    if (perf := shutil.which("perf")) is None or os.geteuid() != 0:
        raise BenchmarkFault("needs perf, and root to see page cache events")
    velo, home = setting.velo("coldread"), setting.home("coldread")
    programs = list(PROGRAMS) if options.programs == "all" else options.programs.split(",")
    packages = any(name not in EXTRA for name in programs)
    record["programs"] = {}
    cell = cells.prepare("cold", work, interpreter, home, [Path(velo.command[0]).resolve()], packages)
    record["conditions"] = cell.conditions
    variables = {**clean_variables(os.environ), "MPLCONFIGDIR": str(work / "matplotlib")}
    arms = arms_of(variables, velo)
    for program in programs:
        script = write_program(work / "programs", program)
        for _ in range(2):
            for arm in arms.values():
                if run(arm.command(cell.environment.python, str(script)), arm.variables).exit_code:
                    raise BenchmarkFault(f"{program} fails in arm {arm.name}")
                settle()
        roots = [cell.environment.prefix, interpreter.stdlib, interpreter.executable, home, script.parent]
        roots += [interpreter.library] if interpreter.library else []
        roots += [Path(velo.command[0]).resolve().parent, Path("/usr/lib"), CHECKOUT / "velo_import"]
        names = {path.stat().st_ino: str(path) for path in pagecache.files_below(roots)}
        found = record["programs"][program] = {}
        for arm in (*arms.values(), replace(arms["velo"], name="unaided")):
            if arm.name == "unaided":
                shutil.rmtree(home / "run" / "ahead", ignore_errors=True)
            command = arm.command(cell.environment.python, str(script))
            traced = []
            for _ in range(options.runs):
                with cell.around():
                    traced.append(_traced(perf, command, arm, work))
                settle()
            reads = min(traced, key=lambda reads: sum(read.wait_ms for read in reads))
            found[arm.name] = summary(reads, names, str(home))
        print(render(program, found), flush=True)
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.coldread", description="What a cold start reads.")
    parser.add_argument(
        "--programs", default="boto3,pandas", help=f"comma list, or all: {', '.join(PROGRAMS)}"
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="traced runs per arm; the one that waited least counts"
    )
    records.add_common_options(parser)
    return parser


def _traced(perf: str, command: Sequence[str], arm: Arm, work: Path) -> list[Read]:
    data = work / "coldread.perf"
    recorded = subprocess.run(
        [perf, "record", "--quiet", "--switch-events", "-o", str(data), "-e", _EVENTS, "--", *command],
        env=dict(arm.variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    if recorded.returncode != 0:
        raise BenchmarkFault(f"perf record failed: {recorded.stderr.decode(errors='replace')[-400:]}")
    script = [perf, "script", "--show-switch-events", "-i", str(data), "-F", "tid,time,event,trace"]
    told = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    data.unlink()
    return reads_of(told.stdout.splitlines())


def summary(reads: Sequence[Read], names: Mapping[int, str], home: str) -> dict[str, Any]:
    """Totals for each sort of file, and every file in order."""
    kinds: dict[str, dict[str, Any]] = {}
    files = []
    for read in reads:
        path = names.get(read.inode, "")
        kind = kind_of(path, home) if path else "other"
        total = kinds.setdefault(kind, {"files": 0, "pages": 0, "waits": 0, "wait_ms": 0.0})
        total["files"] += 1
        for name in ("pages", "waits", "wait_ms"):
            total[name] = round(total[name] + getattr(read, name), 3)
        shown = {**asdict(read), "at_ms": round(read.at_ms, 2), "wait_ms": round(read.wait_ms, 2)}
        files.append({"file": "/".join(path.split("/")[-2:]) or f"inode {read.inode}", "kind": kind, **shown})
    return {"wait_ms": round(sum(read.wait_ms for read in reads), 2), "kinds": kinds, "files": files}


def render(program: str, arms: Mapping[str, Any]) -> str:
    lines = [f"\n{program}"]
    for arm, found in arms.items():
        lines.append(f"{arm}: waits {found['wait_ms']:.1f} ms for the disk")
        for kind, total in sorted(found["kinds"].items(), key=lambda item: -float(item[1]["wait_ms"])):
            lines.append(
                f"  {kind:<14}{total['files']:>5} files {total['pages']:>6} pages"
                f" {total['waits']:>5} waits {total['wait_ms']:>8.1f} ms"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run_as_program(main)

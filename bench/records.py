# SPDX-License-Identifier: Apache-2.0
"""What is kept of a benchmark: a small summary for people and charts, and pyperf files with every raw
value.

`NAME.json` is ours. `NAME.<arm>.pyperf.json` is pyperf's format, one benchmark per cell and program with
the same name in each arm's file, so `pyperf compare_to NAME.plain.pyperf.json NAME.velo.pyperf.json` and
`pyperf stats` work.

The surprise: pyperf's metadata names the host and folders of the machine; only what describes its speed is
kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyperf  # type: ignore[import-untyped]

SCHEMA = 1
_DESCRIBES_SPEED = (
    "aslr",
    "cpu_affinity",
    "cpu_config",
    "cpu_count",
    "cpu_freq",
    "cpu_model_name",
    "load_avg_1min",
)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark can be told: which Python, which Velo, where results and work go."""
    parser.add_argument(
        "--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="version or path"
    )
    parser.add_argument(
        "--velo", default="", help="command line of velo; default: installed, else this checkout"
    )
    parser.add_argument(
        "--json", default="", help="where to keep results: NAME.json (start-up: and NAME.<arm>.pyperf.json)"
    )
    parser.add_argument("--work", default="", help="work folder for environments and stores")


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """What benchmarks of the store itself can be told: where results and stores go."""
    parser.add_argument("--json", default="", help="where to keep results: NAME.json")
    parser.add_argument("--work", default="", help="folder for the stores; default: that of temporary files")


def machine() -> dict[str, Any]:
    """pyperf's view of this machine, without names."""
    known = pyperf.Run([1.0], metadata={"name": "machine"}, collect_metadata=True).get_metadata()
    facts: dict[str, Any] = {name: known[name] for name in _DESCRIBES_SPEED if name in known}
    release = ".".join(os.uname().release.split(".")[:2])
    facts["platform"] = f"Linux {release} {os.uname().machine}, {' '.join(platform.libc_ver())}"
    facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1)
    return facts


def too_busy() -> str:
    """Why timings taken now would be noise; empty when the machine is quiet."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load average {load:.1f} on {cores} cores" if load > 0.5 * cores else ""


def header(kind: str, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The fields that each of our JSON files begins with."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", module, *map(_without_folders, arguments)]),
        "machine": machine(),
        "busy": too_busy(),
    }


def _without_folders(word: str) -> str:
    """Absolute paths name somebody's machine; their last part is enough."""
    return os.path.basename(word) if os.path.isabs(word) else word


def keep(record: Mapping[str, Any], name: str) -> None:
    """Save the record as NAME.json; without a name nowhere."""
    if name:
        save(Path(name).with_suffix(".json"), record)


def save(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, sort_keys=False) + "\n", encoding="utf-8")


def save_raw(path: Path, series: Mapping[str, Sequence[float]], metadata: Mapping[str, Any]) -> None:
    """One arm's values, series name -> seconds, as a pyperf suite: one pyperf run per process started."""
    benchmarks = []
    for name, values in series.items():
        facts = {**metadata, "name": name, "unit": "second"}
        runs = [pyperf.Run([round(value, 6)], metadata=facts, collect_metadata=False) for value in values]
        benchmarks.append(pyperf.Benchmark(runs))
    if benchmarks:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyperf.BenchmarkSuite(benchmarks).dump(str(path), compact=True, replace=True)


def report_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

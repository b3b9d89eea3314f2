# SPDX-License-Identifier: Apache-2.0
"""What the upkeep of a store costs: the catalogue made again, everything verified, verified once more, opened
again after a writer was killed.

`python -m bench.upkeep --help`. Payloads are tiny on purpose: what is measured is the price of an entry, and
bytes have a price of their own that BLAKE3 sets. Each command is a process of its own, so that its memory is
its own as well.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from blake3 import blake3

from bench import records
from bench.arms import CHECKOUT
from bench.measure import run_as_program
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter
from velo_import.store.verify import verify

BUILD = "cpython-312-cb0d0d0a"
PACK_ENTRIES = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    if options.step:
        print(json.dumps(_STEPS[options.step](Path(options.work))))
        return 0
    record = records.header("upkeep", "bench.upkeep", words)
    record["python"] = platform.python_version()
    record["entries"] = options.entries
    record["steps"] = {}
    with tempfile.TemporaryDirectory(prefix="velo-bench-upkeep-", dir=options.work or None) as folder:
        for kind in ("content", "bytecode"):
            home = Path(folder, kind)
            fill(home, kind, options.entries)
            record["steps"][kind] = {name: _measured(name, home, options.entries) for name in _STEPS}
    print(render(record))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.upkeep", description="What upkeep costs.")
    parser.add_argument("--entries", type=int, default=1_000_000, help="in packs of 10,000 (1,000,000)")
    records.add_store_options(parser)
    parser.add_argument("--step", choices=sorted(_STEPS), default="", help=argparse.SUPPRESS)
    return parser


def fill(home: Path, kind: str, entries: int) -> None:
    """A store of that many payloads, each another one."""
    store = Store.open(home, create=True)
    build = BUILD if kind == "bytecode" else ""
    for start in range(0, entries, PACK_ENTRIES):
        with PackWriter(store, label=f"bench-{start}", kind=kind, build=build) as writer:
            for number in range(start, min(start + PACK_ENTRIES, entries)):
                source = blake3(b"source %d" % number).digest() if build else bytes(32)
                writer.add(b"payload %d" % number, source=source)
            writer.seal()


def rebuild(home: Path) -> float:
    began = time.perf_counter()
    Catalog.rebuild(Store.open(home)).close()
    return time.perf_counter() - began


def verify_all(home: Path, sample: float = 100.0) -> float:
    store = Store.open(home)
    with Catalog.open(store) as catalog:
        began = time.perf_counter()
        found = verify(store, catalog, sample=sample, jobs=2)
        seconds = time.perf_counter() - began
    assert not found.damaged
    return seconds


def verify_changes(home: Path) -> float:
    """Nothing has changed, and the stamps say so."""
    return verify_all(home, 0.0)


def reopen(home: Path) -> float:
    """The longest of five times that it takes to open the store after its writer was killed at work."""
    return max(_reopened(home) for _ in range(5))


def _reopened(home: Path) -> float:
    reading, writing = os.pipe()
    writer = os.fork()
    if not writer:
        _write_for_ever(home, writing)
    os.read(reading, 1)
    time.sleep(0.05)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.close(reading)
    os.close(writing)
    began = time.perf_counter()
    Catalog.open(Store.open(home)).close()
    return time.perf_counter() - began


def _write_for_ever(home: Path, tell: int) -> None:
    with Catalog.open(Store.open(home)) as catalog:
        for number in count():
            with catalog.write() as changes:
                for blob in range(100):
                    changes.put_loose(blake3(b"%d %d" % (number, blob)).digest(), blob)
            os.write(tell, b".")


# The last one leaves rows of blobs that are nowhere.
_STEPS = {
    "rebuild": rebuild,
    "verify_all": verify_all,
    "verify_changes": verify_changes,
    "reopen": reopen,
}


def _measured(step: str, home: Path, entries: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.upkeep", "--step", step, "--work", str(home)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True, text=True)
    seconds = json.loads(done.stdout)
    # The largest child so far; the steps follow each other by what they need.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "seconds": round(seconds, 3),
        "microseconds_per_entry": round(seconds / entries * 1e6, 3),
        "peak_mib": round(peak),
    }


def render(record: dict[str, Any]) -> str:
    lines = [f"{record['entries']:,} entries, Python {record['python']}", record["busy"]]
    for kind, steps in record["steps"].items():
        for name, step in steps.items():
            each = step["microseconds_per_entry"]
            lines.append(
                f"{kind:<9} {name:<15} {step['seconds']:>8.3f} s {each:>8.3f} us/entry"
                f"  {step['peak_mib']} MiB at most"
            )
    return "\n".join(filter(None, lines))


if __name__ == "__main__":
    run_as_program(main)

# SPDX-License-Identifier: Apache-2.0
"""What a collection costs: a million blobs, most of them garbage, looked at and then removed.

`python -m bench.gc --help`. Blobs are tiny on purpose: the price of an entry is measured. Some environments
share most of what they need; one blob in ten is a file of its own. Each step is a process of its own, so that
its memory is its own as well. What is left is compared with what has to be left, blob by blob.

The surprise: half of the packs are needed to a third, so that they have to be written again; that is the
dearest part, and real stores have little of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from bench import records
from bench.arms import CHECKOUT
from bench.measure import BenchmarkFault, run_as_program
from velo_import.format.manifest import Build, FileRecord, Manifest, encode
from velo_import.host.files import publish
from velo_import.store.catalog import Catalog
from velo_import.store.gc import collect, preview
from velo_import.store.gcplan import Wish
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, open_pack

PACK_ENTRIES = 10_000
ENVIRONMENTS = 20
BUILD = Build("cpython-312", bytes.fromhex("cb0d0d0a"), 0, "", (".py",))
HOUR = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    if options.step:
        print(json.dumps(_STEPS[options.step](Store.open(Path(options.work)))))
        return 0
    record = records.header("gc", "bench.gc", words)
    record["python"] = platform.python_version()
    record |= {"blobs": options.blobs, "steps": {}}
    with tempfile.TemporaryDirectory(prefix="velo-bench-gc-", dir=options.work or None) as folder:
        home = Path(folder, "store")
        fill(home, options.blobs)
        for name in _STEPS:
            record["steps"][name] = _measured(name, home)
        check(home, options.blobs)
    print(render(record))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gc", description="What a collection costs.")
    parser.add_argument("--blobs", type=int, default=1_000_000, help="(1,000,000)")
    records.add_store_options(parser)
    parser.add_argument("--step", choices=sorted(_STEPS), default="", help=argparse.SUPPRESS)
    return parser


def content(number: int) -> bytes:
    return b"blob %d\n" % number


def digest(number: int) -> bytes:
    return blake3(content(number)).digest()


def is_needed(number: int) -> bool:
    """Of four packs one is needed, two are to a third, one is not at all."""
    pack = number // PACK_ENTRIES % 4
    return pack == 0 or (pack in (1, 2) and number % 3 == 0)


def is_loose(number: int) -> bool:
    return number % 10 == 0


def fill(home: Path, blobs: int) -> None:
    """The store: packs, loose blobs, and environments that share what they need."""
    store = Store.open(home, create=True)
    with Catalog.open(store) as catalog:
        for start in range(0, blobs, PACK_ENTRIES):
            numbers = range(start, min(start + PACK_ENTRIES, blobs))
            with PackWriter(store, label=f"bench-{start}", kind="content") as writer:
                for number in numbers:
                    if not is_loose(number):
                        writer.add(content(number))
                sealed = writer.seal()
            with catalog.write() as writing:
                if sealed is not None:
                    writing.put_pack(sealed)
                for number in filter(is_loose, numbers):
                    place = store.loose_path(digest(number))
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content(number))
                    writing.put_loose(digest(number), len(content(number)))
    needed = [number for number in range(blobs) if is_needed(number)]
    for index in range(ENVIRONMENTS):
        # Neighbours share half of what they need.
        share = [number for number in needed if (number // 100 - index) % ENVIRONMENTS in (0, 1)]
        files = [
            FileRecord(f"/env{index}/{number}", digest(number), len(content(number)), 1, 2, 3, 0o100644, 0)
            for number in share
        ]
        manifest = encode(Manifest(BUILD, f"/env{index}", [], [], files, []))
        publish(store.manifest_folder(f"env{index}") / "base.velo", [manifest])


def look(store: Store) -> dict[str, Any]:
    began = time.perf_counter()
    report = preview(store, Wish(), now=time.time() + 2 * HOUR)
    return {"seconds": time.perf_counter() - began, "freed": report.freed}


def remove(store: Store) -> dict[str, Any]:
    began = time.perf_counter()
    report = collect(store, Wish(), now=time.time() + 2 * HOUR)
    return {
        "seconds": time.perf_counter() - began,
        "freed": report.freed,
        "packs": report.packs.count,
        "rewritten": report.rewritten.count,
        "loose": report.loose.count,
    }


_STEPS = {"look": look, "remove": remove, "look again": look}


def _measured(step: str, home: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.gc", "--step", step, "--work", str(home)]
    peak = 0.0
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            peak = max(peak, _own_memory(child.pid))
            time.sleep(0.02)
        answer = child.stdout.read() if child.stdout is not None else ""
    if child.returncode:
        raise BenchmarkFault(f"{step} failed")
    found: dict[str, Any] = json.loads(answer)
    return {**found, "peak_mb": peak}


def _own_memory(process: int) -> float:
    """Megabytes of a process that are its own; pages of the mapped catalogue are the kernel's."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(found[0]) / 1024 if found else 0.0


def check(home: Path, blobs: int) -> None:
    """Every needed blob is where it was; of the others, none but those whose pack stays as a whole."""
    store = Store.open(home)
    present = set(_present(store))
    lost = [number for number in range(blobs) if is_needed(number) and digest(number) not in present]
    loose = {bytes.fromhex(path.name) for path in store.loose.glob("*/*/*")}
    left = [n for n in range(blobs) if is_loose(n) and not is_needed(n) and digest(n) in loose]
    if lost or left:
        raise BenchmarkFault(f"{len(lost)} needed blobs were lost, {len(left)} loose ones were left")


def _present(store: Store) -> Iterator[bytes]:
    for path in store.packs.glob("*/*.pack"):
        with open_pack(path) as file:
            yield from (entry.digest for entry in file.entries)
    for path in store.loose.glob("*/*/*"):
        yield bytes.fromhex(path.name)


def render(record: dict[str, Any]) -> str:
    """A table: seconds, megabytes of memory, megabytes on the disk."""
    rows = [f"{record['blobs']} blobs"]
    for name, found in record["steps"].items():
        rows.append(
            f"{name:<12}{found['seconds']:>8.2f} s{found['peak_mb']:>8.0f} MB memory"
            f"{found['freed'] / 1e6:>8.1f} MB freed"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    run_as_program(main)

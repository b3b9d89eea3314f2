# SPDX-License-Identifier: Apache-2.0
"""What collecting garbage, making the catalogue again, verifying and opening cost, as rows of a table.

Pure: records of `bench.gc` and `bench.upkeep` in, words out. The surprise: the two count memory differently.
A collection's is its own; of the others it is that of the largest process so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HEAD = ("step", "seconds", "of an entry", "memory, at most")
_NAMES = {
    "look": "gc, dry run",
    "remove": "gc",
    "look again": "gc, dry run once more",
    "rebuild": "rebuild of the catalogue",
    "verify_all": "verify, every byte",
    "verify_changes": "verify, nothing has changed",
    "reopen": "open again after kill -9, the slowest of five",
}


def rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """One row for each step of either benchmark."""
    if record["kind"] == "gc":
        for name, step in record["steps"].items():
            each = step["seconds"] / record["blobs"] * 1e6
            yield _row(f"{_NAMES[name]}, {record['blobs']:,} blobs", step, each)
    else:
        for kind, steps in record["steps"].items():
            for name, step in steps.items():
                title = f"{_NAMES[name]}, {record['entries']:,} entries of {kind} packs"
                yield _row(title, step, None if name == "reopen" else step["microseconds_per_entry"])


def _row(title: str, step: Mapping[str, Any], each: float | None) -> tuple[str, str, str, str]:
    memory = f"{step['peak_mb']:.0f} MB" if "peak_mb" in step else f"{step['peak_mib']} MiB"
    return title, f"{step['seconds']:.3f} s", "" if each is None else f"{each:.2f} us", memory

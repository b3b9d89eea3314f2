# SPDX-License-Identifier: Apache-2.0
"""How much disk ten environments need that share most packages: as uv leaves them, and in one store.

Every file, link and folder below an environment counts, apparent (its size) and allocated (its blocks), and
an inode with several names once. An environment stands only while it is measured: what uv hard-links keeps
its inode in uv's cache meanwhile, and everything else has one name.

The surprise: the arms are no rivals. The store lies *beside* these environments until environments are made
from it; and it holds the bytecode of the standard library, which no environment does. So every pair is
printed, the bad ones too: without bytecode in either, with bytecode in both, and both beside each other.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.arms import Velo
from bench.environment import build, compiled_files
from bench.interpreters import Interpreter
from bench.measure import BenchmarkFault, settle

REQUIREMENTS = Path(__file__).with_name("requirements.in")
Bytes = dict[str, int]
_BLOCK = 512  # of st_blocks
_RATIOS = {
    # name: (what is divided by what, the words for people)
    "copies": ("copy", "store, content only", "uv copies / store, no bytecode in either"),
    "copies_compiled": ("copy, compiled", "store", "uv copies / store, bytecode in both"),
    "copies_against_bytecode": ("copy", "store", "uv copies without bytecode / store with bytecode"),
    "links": ("hard links", "store, content only", "uv hard links / store, no bytecode in either"),
    "links_compiled": ("hard links, compiled", "store", "uv hard links / store, bytecode in both"),
    "beside": (
        "hard links, compiled",
        "hard links and store",
        "uv hard links with bytecode / uv hard links without it and the store beside them",
    ),
}


class Usage:
    """Bytes of trees that may share inodes: as they are, and as if they shared none."""

    def __init__(self) -> None:
        self.shared: Bytes = {"apparent": 0, "allocated": 0}
        self.copied: Bytes = {"apparent": 0, "allocated": 0}
        self._seen: set[tuple[int, int]] = set()

    def add(self, root: Path) -> None:
        for status in _everything(root):
            sizes = {"apparent": status.st_size, "allocated": status.st_blocks * _BLOCK}
            several = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
            key = status.st_dev, status.st_ino
            for name, count in sizes.items():
                self.copied[name] += count
                self.shared[name] += 0 if several and key in self._seen else count
            if several:
                self._seen.add(key)


def _everything(root: Path) -> Iterator[os.stat_result]:
    yield root.lstat()
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            yield os.lstat(f"{folder}/{name}")


def disk(velo: Velo, work: Path, interpreter: Interpreter, count: int) -> dict[str, Any]:
    """Ten environments, each without one of ten packages: bytes of every arm, and where the store's go."""
    names = [line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = [name for name in names if not name.startswith("#")]
    velo.forget()
    parent = work / "ten"
    bare, compiled = Usage(), Usage()
    after: list[int] = []
    modules = 0
    try:
        for left_out in names[:count]:
            rest = [name for name in names if name != left_out]
            environment = build(parent, interpreter, "linked-pyc", rest)
            modules += compiled_files(environment)
            compiled.add(environment.prefix)
            shutil.rmtree(parent)
            environment = build(parent, interpreter, "linked", rest)
            bare.add(environment.prefix)
            velo.ask("ingest", str(environment.prefix), "--python", str(environment.python))
            settle()
            after.append(_used(velo.home)["allocated"])
            shutil.rmtree(parent)
    finally:
        shutil.rmtree(parent, ignore_errors=True)
    if count > 1 and bare.shared["allocated"] > 0.9 * bare.copied["allocated"]:
        raise BenchmarkFault("uv could not hard-link: its cache has to be on the disk of the work folder")
    detail = velo.ask("store", "size", "--detail")
    store = _used(velo.home)
    code = sum(row["disk"] for row in detail["detail"] if row["name"].startswith("bytecode"))
    arms = {
        "copy": bare.copied,
        "hard links": bare.shared,
        "copy, compiled": compiled.copied,
        "hard links, compiled": compiled.shared,
        "store, content only": {name: size - code for name, size in store.items()},
        "store": store,
        "hard links and store": {name: size + bare.shared[name] for name, size in store.items()},
    }
    return {
        "environments": len(after),
        "compiled_files": modules,
        "arms": arms,
        "ratios": ratios(arms),
        "store_after_each": after,
        "parts": {row.pop("name"): row for row in detail["detail"]},
        "blobs": {name: size for name, size in detail["blobs"].items() if name != "name"},
        "overhead": detail["overhead"],
        "stored_twice": detail["stored_twice"],
    }


def ratios(arms: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """How many times more one arm takes than another, by allocated bytes."""
    return {
        name: round(arms[one]["allocated"] / arms[other]["allocated"], 3)
        for name, (one, other, _) in _RATIOS.items()
    }


def rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was measured, for people: arms, ratios, overhead."""
    for name, used in found["arms"].items():
        yield name, f"{used['allocated'] / 1e6:,.0f} MB", f"{used['apparent'] / 1e6:,.0f} MB apparent"
    for name, ratio in found["ratios"].items():
        yield _RATIOS[name][2], f"{ratio:.2f}x", "" if ratio >= 1 else "loss"
    overhead, blobs = found["overhead"], found["blobs"]
    yield (
        f"blob overhead, {blobs['blobs']:,} blobs",
        f"{overhead['of_content']:.2%} of content",
        f"{overhead['of_stored']:.2%} of what is stored",
    )


def part_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Where the store's bytes are: name, files, blobs, content, stored, on disk."""
    for name, row in found["parts"].items():
        sizes = (f"{row[size] / 1e6:,.1f} MB" if row["blobs"] else "" for size in ("content", "stored"))
        blobs = f"{row['blobs']:,}" if row["blobs"] else ""
        yield name, f"{row['files']:,}", blobs, *sizes, f"{row['disk'] / 1e6:,.1f} MB"


def _used(home: Path) -> Bytes:
    usage = Usage()
    usage.add(home)
    return usage.shared

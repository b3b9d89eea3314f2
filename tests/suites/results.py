# SPDX-License-Identifier: Apache-2.0
"""What the suites came to: kept as JSON, one file for each Python, part by part, and shown as a table.

A second run of some parts replaces what is kept about them, so that the whole can be run in pieces. The
surprise: a revision is the commit that last changed what users install, so that days of running stay of one
revision while documents and benchmarks go on.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.running import CHECKOUT

from .run import PartResult, summary
from .suites import Suite

FOLDER = Path(__file__).with_name("results")
BEGIN, END = "<!-- table: python -m tests.suites table -->", "<!-- end of table -->"
INSTALLED = ("velo_import", "sitecustomize", "setup.py")
NATIVE = CHECKOUT / "velo_import" / "_native"
COLUMNS = (
    "tests",
    "passed",
    "failed",
    "skipped",
    "served",
    "images",
    "processes",
    "listed",
    "unstable",
    "once",
    "unexplained",
)


def revision() -> str:
    """The commit that last changed what is installed; with a mark where that differs from any commit."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments, "--", *INSTALLED]
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True).stdout.strip()

    commit = git("log", "-1", "--abbrev=10", "--format=%h")
    return (commit or "unknown") + ("-dirty" if git("status", "--porcelain") else "")


def is_built() -> bool:
    """Whether the native modules, if there are any, are at least as new as what they are built of."""
    built = [path.stat().st_mtime for path in NATIVE.glob("*.so")]
    sources = [path.stat().st_mtime for path in NATIVE.glob("*.[ch]")]
    return not built or min(built) >= max(sources)


def keep(
    path: Path, version: str, suite: Suite, result: PartResult, parts: Collection[str], revision: str
) -> None:
    """Add to the file, or make it; others may be doing the same. What is no longer one of the suite's parts
    goes: its tests are in another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        document: dict[str, Any] = json.loads(file.read() or '{"suites": {}}')
        document["python"] = version
        entry = document["suites"].setdefault(suite.name, {"parts": {}})
        entry["source"] = suite.source or next(iter(suite.install), "")
        entry["of"] = len(parts)
        entry["parts"] = {name: each for name, each in entry["parts"].items() if name in parts}
        entry["parts"][result.name] = {**asdict(result), "revision": revision}
        file.truncate(0)
        file.write(json.dumps(document, indent=1, sort_keys=True) + "\n")


def settled(path: Path, suite: str, revision: str) -> set[str]:
    """The parts of a suite that were run at this revision, and left nothing to explain."""
    if not path.exists() or revision.endswith("-dirty"):
        return set()
    parts = json.loads(path.read_text())["suites"].get(suite, {"parts": {}})["parts"]
    return {
        name
        for name, each in parts.items()
        if each["revision"] == revision and not each["unexplained"] and not each["problems"]
    }


class Row(NamedTuple):
    """One suite on one Python."""

    python: str
    suite: str
    parts: str  # `2 of 6`
    revisions: tuple[str, ...]
    sums: dict[str, int | None]


def rows(paths: Iterable[Path]) -> Iterable[Row]:
    for path in paths:
        document = json.loads(path.read_text())
        for suite, entry in document["suites"].items():
            fields = PartResult.__dataclass_fields__
            parts = [
                PartResult(**{name: value for name, value in each.items() if name in fields})
                for each in entry["parts"].values()
            ]
            revisions = tuple(sorted({each["revision"] for each in entry["parts"].values()}))
            # `3.12-twins.json`: what was special about those runs stands behind the version.
            label = " ".join(filter(None, (document["python"], path.stem.partition("-")[2])))
            yield Row(
                label, entry["source"] or suite, f"{len(parts)} of {entry['of']}", revisions, summary(parts)
            )


def table(paths: Iterable[Path], *, mixed: bool = False) -> str:
    """A row for each suite on each Python, in Markdown, and the revision of Velo that was run.

    Raises:
        SystemExit: there are several revisions, and they are not `mixed` on purpose, each row saying its own.
    """
    found = list(rows(paths))
    revisions = sorted({revision for row in found for revision in row.revisions})
    if len(revisions) > 1 and not mixed:
        raise SystemExit(
            f"these results are of several revisions ({', '.join(revisions)}): --mixed shows them"
        )
    heads = ["Python", "suite", "parts", *COLUMNS, *(["Velo"] if mixed else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in found:
        numbers = ["-" if (number := row.sums[name]) is None else f"{number:,}" for name in COLUMNS]
        if row.sums["problems"]:
            numbers[-1] += f" ({row.sums['problems']} parts not run)"
        last = [", ".join(row.revisions)] if mixed else []
        lines.append("| " + " | ".join((row.python, row.suite, row.parts, *numbers, *last)) + " |")
    if not mixed:
        lines += ["", f"All of it with Velo as of {', '.join(revisions)}."]
    return "\n".join(lines)


def write_table(page: Path, paths: Iterable[Path], *, mixed: bool = False) -> None:
    """Put the table into a page, where the marks are."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table(paths, mixed=mixed)}\n{end}{after}")

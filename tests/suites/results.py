# SPDX-License-Identifier: Apache-2.0
"""What the suites came to: kept as JSON, one file for each Python, part by part, and shown as a table.

A second run of some parts replaces what is kept about them, so that the whole can be run in pieces.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.sweep.results import revision

from .run import PartResult, summary
from .suites import Suite

FOLDER = Path(__file__).with_name("results")
BEGIN, END = "<!-- table: python -m tests.suites table --write docs/suites.md -->", "<!-- end of table -->"
COLUMNS = (
    "tests",
    "passed",
    "failed",
    "skipped",
    "served",
    "processes",
    "listed",
    "unstable",
    "once",
    "unexplained",
)


def keep(path: Path, version: str, suite: Suite, result: PartResult) -> None:
    """Add to the file, or make it; others may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        document: dict[str, Any] = json.loads(file.read() or '{"suites": {}}')
        document["python"] = version
        entry = document["suites"].setdefault(suite.name, {"parts": {}})
        entry["source"] = suite.source or next(iter(suite.install), "")
        entry["parts"][result.name] = {**asdict(result), "revision": revision()}
        file.truncate(0)
        file.write(json.dumps(document, indent=1, sort_keys=True) + "\n")


def rows(path: Path) -> Iterable[tuple[str, str, dict[str, int]]]:
    """(Python, suite, its sums) of one file."""
    document = json.loads(path.read_text())
    for suite, entry in document["suites"].items():
        fields = PartResult.__dataclass_fields__
        parts = [
            PartResult(**{name: value for name, value in each.items() if name in fields})
            for each in entry["parts"].values()
        ]
        # `3.12-twins.json`: what was special about those runs stands behind the version.
        label = " ".join(filter(None, (document["python"], path.stem.partition("-")[2])))
        yield label, entry["source"] or suite, summary(parts)


def table(paths: Iterable[Path]) -> str:
    """A row for each suite on each Python, in Markdown."""
    heads = ("Python", "suite", *COLUMNS)
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for path in paths:
        for python, suite, sums in rows(path):
            numbers = [f"{sums[name]:,}" for name in COLUMNS]
            if sums["problems"]:
                numbers[-1] += f" ({sums['problems']} parts not run)"
            lines.append("| " + " | ".join((python, suite, *numbers)) + " |")
    return "\n".join(lines)


def write_table(page: Path, paths: Iterable[Path]) -> None:
    """Put the table into a page, where the marks are."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table(paths)}\n{end}{after}")

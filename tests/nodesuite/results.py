# SPDX-License-Identifier: Apache-2.0
"""What Node's tests came to: kept as JSON, a file for each line of Node, part by part; and shown as a table.

`baseline` in there is the frozen set: tests that pass, or skip themselves, without Velo on that very Node.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.running import CHECKOUT

from .run import PartResult, counts

FOLDER = Path(__file__).with_name("results")
BEGIN, END = "<!-- table: python -m tests.nodesuite table -->", "<!-- end of table -->"
INSTALLED = ("velo_import", "node_accel")
COLUMNS = (
    "passed",
    "skipped",
    "failed",
    "touched",
    "cold",
    "served",
    "warm",
    "readonly",
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


def keep(path: Path, version: str, tests: str, result: PartResult, running: str) -> None:
    """Add a part to the file, or make it; others may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        document: dict[str, Any] = json.loads(file.read() or '{"parts": {}}')
        document |= {"node": version, "tests": tests}
        document["parts"][result.name] = {**asdict(result), "revision": running}
        file.truncate(0)
        file.write(json.dumps(document, indent=1, sort_keys=True) + "\n")


def read_results(path: Path) -> tuple[dict[str, Any], list[tuple[PartResult, str]]]:
    """A kept file: what it says about itself, and each part with the revision of Velo that ran."""
    document = json.loads(path.read_text())
    fields = PartResult.__dataclass_fields__
    parts = [
        (PartResult(**{name: value for name, value in each.items() if name in fields}), each["revision"])
        for each in document["parts"].values()
    ]
    return document, parts


def table(paths: Iterable[Path]) -> str:
    """A row for each part on each Node, in Markdown."""
    heads = ["Node", "tests of", "part", *COLUMNS, "Velo"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for path in paths:
        document, parts = read_results(path)
        for result, running in parts:
            numbers = counts(result)
            shown = [f"{numbers[name]:,}" for name in COLUMNS]
            if numbers["problems"]:
                shown[-1] += f" ({'; '.join(result.problems)})"
            lines.append(
                "| " + " | ".join([document["node"], document["tests"], result.name, *shown, running]) + " |"
            )
    return "\n".join(lines)


def write_table(page: Path, paths: Iterable[Path]) -> None:
    """Put the table into a page, where the marks are."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table(paths)}\n{end}{after}")

# SPDX-License-Identifier: Apache-2.0
"""What the tools came to: kept as JSON, one file for each Node, tool by tool, and shown as a table."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .run import ARMS, READONLY, WARM, ToolResult
from .tools import PROGRAMS, Tool

FOLDER = Path(__file__).with_name("results")
BEGIN, END = "<!-- table: python -m tests.nodetools table -->", "<!-- end of table -->"


def keep(path: Path, version: str, tool: Tool, result: ToolResult, running: str) -> None:
    """Add a tool to the file, or make it; others may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    commands = [" ".join(words) for words in tool.commands]
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        document: dict[str, Any] = json.loads(file.read() or '{"tools": {}}')
        document["node"] = version
        entry = {
            **asdict(result),
            "package": f"{tool.package} {version_of(tool)}",
            "commands": commands,
            "revision": running,
        }
        document["tools"][tool.name] = entry
        file.truncate(0)
        file.write(json.dumps(document, indent=1, sort_keys=True) + "\n")


def version_of(tool: Tool) -> str:
    dependencies = json.loads((PROGRAMS / "package.json").read_text())["dependencies"]
    return str(dependencies[tool.package])


def table(paths: Iterable[Path]) -> str:
    """A row for each tool, with the Nodes it was run on, in Markdown."""
    tools: dict[str, dict[str, Any]] = {}
    for path in paths:
        document = json.loads(path.read_text())
        for name, entry in document["tools"].items():
            tools.setdefault(name, {})[document["node"]] = entry
    heads = [
        "tool",
        "commands",
        "exit codes",
        "files written",
        "Nodes",
        "served, warm",
        "served, read-only",
        "differences",
        "Velo",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for _, entries in sorted(tools.items()):
        first = next(iter(entries.values()))
        differing = [node for node, each in entries.items() if each["differences"] or each["problems"]]
        cells = [
            first["package"],
            str(len(first["commands"])),
            ", ".join(sorted({" ".join(map(str, each["codes"])) for each in entries.values()})),
            _range(each["files"] for each in entries.values()),
            ", ".join(node.partition(".")[0] for node in entries),
            _range(each["served"].get(WARM, 0) for each in entries.values()),
            _range(each["served"].get(READONLY, 0) for each in entries.values()),
            f"**{', '.join(differing)}**" if differing else f"none in {len(entries) * len(ARMS)} runs",
            ", ".join(sorted({each["revision"] for each in entries.values()})),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _range(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return f"{found[0]:,}" if found[0] == found[-1] else f"{found[0]:,} to {found[-1]:,}"


def write_table(page: Path, paths: Iterable[Path]) -> None:
    """Put the table into a page, where the marks are."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no marks {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table(paths)}\n{end}{after}")

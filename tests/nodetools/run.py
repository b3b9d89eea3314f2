# SPDX-License-Identifier: Apache-2.0
"""A tool at work: plain, twice, then with Velo. What it says, ends with and writes must be the same.

The arms: `cold` has an empty store, and is learned from; `served` has what was learned, and hands over what
it compiled; `warm` has that as well; `readonly` may write nothing to the store. The surprise: `plain` runs
twice, because a tool that differs from itself would prove nothing; then tools.toml wants a pattern more.
"""

from __future__ import annotations

import difflib
import os
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.nodeprograms import NodeVelo
from tests.support.running import Result

from .tools import OUT, Tool

PLAIN, AGAIN, COLD, SERVED, WARM, READONLY = "plain", "again", "cold", "served", "warm", "readonly"
ARMS = (COLD, SERVED, WARM, READONLY)
LIMIT = 600.0  # Seconds for one command.


class Seen(NamedTuple):
    """What one run of all commands of a tool came to."""

    said: list[str]  # Of each command: standard output, standard error.
    codes: list[int]
    written: dict[str, str]


@dataclass
class ToolResult:
    """What came out for one tool on one Node."""

    name: str
    codes: list[int] = field(default_factory=list)
    files: int = 0  # That it wrote.
    characters: int = 0  # That it said.
    served: dict[str, int] = field(default_factory=dict)
    errors: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    differences: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run_tool(tool: Tool, node: Path, project: Path, folder: Path) -> ToolResult:
    """All arms of one tool on one Node; `folder` is for its store and its home."""
    shutil.rmtree(folder, ignore_errors=True)
    velo = NodeVelo(folder, node, project / tool.folder)
    velo.environment = {
        "PATH": os.pathsep.join((str(node.parent), os.environ.get("PATH", os.defpath))),
        **tool.variables,
    }
    result = ToolResult(tool.name)
    plain = _run(tool, velo, project, PLAIN, result)
    again = _run(tool, velo, project, AGAIN, result)
    result.codes, result.files = plain.codes, len(plain.written)
    result.characters = sum(map(len, plain.said))
    if different := differences(plain, again):
        result.problems.append(f"two plain runs differ: {different}")
        return result
    for arm in ARMS:
        if different := differences(plain, _run(tool, velo, project, arm, result)):
            result.differences[arm] = different
    if not result.served[WARM] or not result.served[READONLY]:
        result.problems.append("nothing was served")
    return result


def _run(tool: Tool, velo: NodeVelo, project: Path, arm: str, result: ToolResult) -> Seen:
    """One run of all commands, from the same beginning."""
    shutil.rmtree(project / OUT, ignore_errors=True)
    shutil.rmtree(velo.user, ignore_errors=True)
    velo.user.mkdir()
    for name, source in tool.copies.items():
        shutil.copytree(project / "node_modules" / source, project / OUT / "trees" / name)
    said, codes = [], []
    began = time.monotonic()
    for _, *words in tool.commands:
        done: Result
        if arm in (PLAIN, AGAIN):
            done = velo.plain(*words, timeout=LIMIT)
        else:
            readonly = {"VELO_READONLY": "1"} if arm == READONLY else {}
            done = velo.run(*words, env=readonly, timeout=LIMIT)
            served = [each for each in done.stats if each.get("runtime") == "node"]
            result.served[arm] = result.served.get(arm, 0) + sum(each["served"] for each in served)
            result.errors += sum(each["errors"] for each in served)
            if arm == WARM:
                result.reasons = dict(Counter(result.reasons) + Counter(done.reasons))
        said += [tool.alike(done.stdout), tool.alike(done.stderr)]
        codes.append(done.code)
    result.seconds[arm] = round(time.monotonic() - began, 2)
    seen = Seen(said, codes, tool.written(project))
    velo.wait_learned()
    return seen


def differences(one: Seen, two: Seen) -> dict[str, Any]:
    """What is not the same, short enough to be read; empty if all is."""
    found: dict[str, Any] = {}
    if one.codes != two.codes:
        found["exit codes"] = [one.codes, two.codes]
    for number, (first, second) in enumerate(zip(one.said, two.said, strict=True)):
        if first != second:
            lines = difflib.unified_diff(first.splitlines(), second.splitlines(), lineterm="", n=0)
            found[f"{'stderr' if number % 2 else 'stdout'} of command {number // 2 + 1}"] = list(lines)[2:22]
    if one.written != two.written:
        names = one.written.keys() | two.written.keys()
        found["written"] = sorted(name for name in names if one.written.get(name) != two.written.get(name))[
            :20
        ]
    return found

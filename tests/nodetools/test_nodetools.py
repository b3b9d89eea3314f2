# SPDX-License-Identifier: Apache-2.0
"""One tool at work, and proof that the comparison sees what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import nodes
from tests.support.running import CHECKOUT
from tests.support.tree import Tree

from .results import FOLDER, keep, table, write_table
from .run import ARMS, READONLY, WARM, Seen, ToolResult, differences, run_tool
from .tools import PROGRAMS, Tool, Unavailable, install, read_tools


def here() -> Path:
    try:
        return nodes.node(nodes.HERE)
    except nodes.Unavailable as reason:
        pytest.skip(str(reason))


def own_tool(tmp_path: Path, script: str, **more: object) -> ToolResult:
    """A tool of our own, with a module that can be served."""
    Tree(tmp_path / "project").write({"tool.js": script, "part.js": "exports.part = 'part'\n"})
    tool = Tool("own", "own", (("node", "tool.js"),), **more)  # type: ignore[arg-type]
    return run_tool(tool, here(), tmp_path / "project", tmp_path / "place")


def test_a_tool_that_is_the_same(tmp_path: Path) -> None:
    """Text, exit code and files, in all arms; what varies is named and does not count."""
    script = """
        const fs = require('fs');
        fs.mkdirSync('out/sub', { recursive: true });
        fs.writeFileSync('out/sub/result.txt', require('./part').part);
        fs.writeFileSync('out/times.txt', String(process.hrtime.bigint()));
        console.log('done in', process.hrtime()[1], 'ns');
        console.error('no harm');
        process.exitCode = 3;
        """

    result = own_tool(tmp_path, script, varies=(r"in \d+ ns",), passing=("times.txt",))

    assert (result.differences, result.problems, result.errors) == ({}, [], 0)
    assert (result.codes, result.files) == ([3], 1)
    assert result.served[WARM] == result.served[READONLY] == 2
    assert result.served["cold"] == 0


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("console.log('noticed')", "stdout of command 1"),
        ("console.error('noticed')", "stderr of command 1"),
        ("process.exitCode = 1", "exit codes"),
        ("require('fs').mkdirSync('out'); require('fs').writeFileSync('out/noticed', '')", "written"),
    ],
)
def test_what_only_velo_causes_is_seen(change: str, shown: str, tmp_path: Path) -> None:
    result = own_tool(tmp_path, f"require('./part'); if (process.env.VELO_HOME) {{ {change} }}\n")

    assert {arm: list(found) for arm, found in result.differences.items()} == {arm: [shown] for arm in ARMS}


def test_a_tool_that_differs_from_itself_proves_nothing(tmp_path: Path) -> None:
    result = own_tool(tmp_path, "require('./part'); console.log(process.hrtime()[1])\n")

    assert [problem[:21] for problem in result.problems] == ["two plain runs differ"]


def test_where_nothing_is_served_there_is_no_proof(tmp_path: Path) -> None:
    result = own_tool(tmp_path, "console.log(1)\n", variables={"VELO_DISABLE": "1"})

    assert result.problems == ["nothing was served"]


def test_differences_are_named() -> None:
    one = Seen(["a\nb\n", ""], [0], {"x": "1", "y": "2"})

    assert differences(one, one) == {}
    assert differences(one, Seen(["a\nc\n", ""], [1], {"x": "1", "y": "3"})) == {
        "exit codes": [[0], [1]],
        "stdout of command 1": ["@@ -2 +2 @@", "-b", "+c"],
        "written": ["y"],
    }


def test_the_list_is_sound() -> None:
    """Each tool is of a package that is locked to one version, and nothing in the lock names a place."""
    lock = (PROGRAMS / "package-lock.json").read_text()

    assert '"resolved"' not in lock
    for tool in read_tools().values():
        assert f'"node_modules/{tool.package}": {{' in lock, tool.package
        assert all(words[0] == "node" for words in tool.commands)


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    tool = read_tools()["tsc"]
    result = ToolResult("tsc", [2], files=12, served={"cold": 0, WARM: 3, READONLY: 3})

    keep(tmp_path / "20.json", "20.20.2", tool, result, "abc")
    keep(tmp_path / "24.json", "24.21.0", tool, result, "abc")

    assert table(sorted(tmp_path.glob("*.json"))).splitlines()[2] == (
        "| typescript 5.9.3 | 1 | 2 | 12 | 20, 24 | 3 | 3 | none in 8 runs | abc |"
    )
    result.differences["warm"] = {"exit codes": [[2], [1]]}
    keep(tmp_path / "24.json", "24.21.0", tool, result, "abc")
    assert "| **24.21.0** |" in table(sorted(tmp_path.glob("*.json")))


def test_the_page_shows_what_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "nodesuite.md"
    page.write_text((CHECKOUT / "docs" / "nodesuite.md").read_text())

    write_table(page, sorted(FOLDER.glob("*.json")))

    assert page.read_text() == (CHECKOUT / "docs" / "nodesuite.md").read_text()
    rows = [line for line in page.read_text().splitlines() if " runs |" in line or "| **" in line]
    assert rows and not [line for line in rows if "| **" in line]


@pytest.mark.suites
@pytest.mark.parametrize("version", nodes.VERSIONS)
@pytest.mark.parametrize("name", read_tools())
def test_whole_tools(name: str, version: str, tmp_path: Path) -> None:
    """Every tool on every line of Node: an hour, and npm with a network."""
    try:
        node, project = nodes.node(version), install(nodes.folder().parent / "node-tools")
    except (nodes.Unavailable, Unavailable) as reason:
        pytest.skip(str(reason))

    result = run_tool(read_tools()[name], node, project, tmp_path / "place")

    assert (result.problems, result.differences, result.errors) == ([], {}, 0)

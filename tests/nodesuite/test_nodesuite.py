# SPDX-License-Identifier: Apache-2.0
"""The parts of Node's own tests that take seconds, and proof that the comparison can fail: it sees what only
Velo causes, tells it from what fails by itself, and refuses a part of which nothing was served.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import nodes
from tests.support.running import CHECKOUT
from tests.support.tree import Tree

from .programs import FAILED, PASSED, SKIPPED, Program, outcome_of, programs_of, read_parts, read_program
from .results import FOLDER, keep, read_results, revision, table, write_table
from .run import ARMS, READONLY, WARM, PartResult, Place, Rule, counts, read_rules, reason_for, run_part
from .sources import COMMITS, Unavailable, sources

FAST = ("require", "preload")


def here() -> Path:
    try:
        return nodes.node(nodes.HERE)
    except nodes.Unavailable as reason:
        pytest.skip(str(reason))


def line_of(node: Path) -> str:
    return nodes.said_version(node).partition(".")[0]


def programs_for(line: str, part: str) -> tuple[Path, list[Program]]:
    try:
        folder = sources(line)
    except Unavailable as reason:
        pytest.skip(f"no tests of Node: {reason}")
    return folder, programs_of(folder, read_parts())[part]


@pytest.mark.parametrize("part", FAST)
def test_nodes_own(part: str, tmp_path: Path) -> None:
    """Some of Node's own tests come out as they do without Velo, and were served."""
    node = here()
    folder, programs = programs_for(line_of(node), part)

    result = run_part(Place(node, line_of(node), folder, tmp_path / "work"), part, programs)

    assert (result.problems, result.unexplained, result.errors) == ([], {}, 0)
    assert result.served[READONLY] >= 10
    assert len(result.baseline) >= 5


def own_part(tmp_path: Path, tests: dict[str, str]) -> PartResult:
    """Tests of our own, run as Node's are."""
    Tree(tmp_path / "sources").write({f"test/parallel/{name}": text for name, text in tests.items()})
    programs = [
        read_program(tmp_path / "sources", f"parallel/{name}") for name in tests if name.startswith("test-")
    ]
    return run_part(Place(here(), "20", tmp_path / "sources", tmp_path / "work"), "own", programs)


def test_what_only_velo_causes_is_seen(tmp_path: Path) -> None:
    """A test that passes only where Velo is absent is a difference in every arm; its neighbours are none."""
    result = own_part(
        tmp_path,
        {
            "common.js": "exports.ok = true\n",
            "test-fine.js": "if (!require('./common').ok) throw 1\n",
            "test-broken.js": "require('./common'); throw new Error('always')\n",
            "test-skips.js": "require('./common'); console.log('1..0 # Skipped: not here')\n",
            "test-velo.js": "require('./common'); if (process.env.VELO_HOME) process.exitCode = 1\n",
        },
    )

    assert set(result.unexplained) == {"parallel/test-velo.js"}
    assert set(result.unexplained["parallel/test-velo.js"]) == {*ARMS, "tail"}
    assert result.baseline["parallel/test-skips.js"] == SKIPPED
    assert result.failed == ["parallel/test-broken.js"]
    assert result.problems == []
    assert result.served["cold"] == 0 and result.served[WARM] == result.served[READONLY] >= 6
    assert counts(result)["touched"] == 3


def test_a_part_of_which_nothing_is_served_does_not_count(tmp_path: Path) -> None:
    """ES modules are Node's, so tests that are nothing else prove nothing."""
    result = own_part(
        tmp_path, {"test-module.mjs": "import './part.mjs'\n", "part.mjs": "export default 1\n"}
    )

    assert result.baseline == {"parallel/test-module.mjs": PASSED}
    assert result.problems == ["nothing was served"]


def test_what_a_test_asks_for_it_gets(tmp_path: Path) -> None:
    """Options and variables stand in comments."""
    result = own_part(
        tmp_path,
        {
            "test-options.js": """
                // Flags: --expose-gc --stack-trace-limit=7
                // Env: COLOUR=green
                if (!gc || Error.stackTraceLimit !== 7 || process.env.COLOUR !== 'green') throw 1;
                """,
        },
    )

    assert result.baseline == {"parallel/test-options.js": PASSED}
    assert result.unexplained == {}


def test_outcomes_are_those_of_nodes_runner() -> None:
    assert outcome_of(0, b"ok\n") == PASSED
    assert outcome_of(0, b"1..0 # Skipped: needs a network\n") == SKIPPED
    assert outcome_of(1, b"1..0 # Skipped: needs a network\n") == FAILED
    assert outcome_of(None, b"") == FAILED


def test_each_test_is_in_one_part(tmp_path: Path) -> None:
    """A test that two patterns name belongs to the part that stands first in the list."""
    Tree(tmp_path).write(
        {"test/parallel/test-a-b.js": "", "test/parallel/test-a.mjs": "", "test/parallel/a.js": ""}
    )

    found = programs_of(tmp_path, {"first": ("parallel/test-*-b",), "second": ("parallel/test-a*",)})

    assert {part: [each.name for each in programs] for part, programs in found.items()} == {
        "first": ["parallel/test-a-b.js"],
        "second": ["parallel/test-a.mjs"],
    }


def test_reviewed_differences_have_reasons() -> None:
    for rule in read_rules():
        assert len(rule.reason) > 20 and set(rule.nodes) <= COMMITS.keys(), rule
    rules = [Rule("because of the number of listeners", re.compile("parallel/test-a"), ("20",))]
    assert reason_for(rules, "20", "parallel/test-a")
    assert not reason_for(rules, "18", "parallel/test-a") and not reason_for(rules, "20", "parallel/test-ab")


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "20.json"
    served = {"cold": 0, "served": 1200, "warm": 1300, "readonly": 1300}
    result = PartResult("a", {"x": PASSED, "y": SKIPPED}, ["z"], served, touched=1, unexplained={"x": {}})

    keep(path, "20.20.2", "20.11.1", PartResult("a"), "abc")
    keep(path, "20.20.2", "20.11.1", result, "abc")
    keep(path, "20.20.2", "20.11.1", PartResult("b", problems=["nothing was served"]), "def")

    lines = table([path]).splitlines()
    assert (
        lines[2]
        == "| 20.20.2 | 20.11.1 | a | 1 | 1 | 1 | 1 | 0 | 1,200 | 1,300 | 1,300 | 0 | 0 | 0 | 1 | abc |"
    )
    assert lines[3].endswith("| 0 (nothing was served) | def |")
    assert read_results(path)[1][0] == (result, "abc")
    assert revision()


def test_the_page_shows_what_is_kept(tmp_path: Path) -> None:
    """The table of docs/nodesuite.md is that of the kept results, and they have no unexplained difference."""
    page = tmp_path / "nodesuite.md"
    page.write_text((CHECKOUT / "docs" / "nodesuite.md").read_text())

    write_table(page, sorted(FOLDER.glob("*.json")))

    assert page.read_text() == (CHECKOUT / "docs" / "nodesuite.md").read_text()
    parts = [result for path in FOLDER.glob("*.json") for result, _ in read_results(path)[1]]
    assert parts and not [each.name for each in parts if each.unexplained or each.problems]


@pytest.mark.suites
@pytest.mark.parametrize("line", COMMITS)
@pytest.mark.parametrize("part", read_parts())
def test_whole_parts(line: str, part: str, tmp_path: Path) -> None:
    """Everything, on every line of Node: an hour."""
    try:
        node = nodes.node(next(each for each in nodes.VERSIONS if each.startswith(f"{line}.")))
    except nodes.Unavailable as reason:
        pytest.skip(str(reason))
    folder, programs = programs_for(line, part)
    if not programs:
        pytest.skip(f"Node {line} has no such tests")

    result = run_part(Place(node, line, folder, tmp_path / "work"), part, programs)

    assert (result.problems, result.unexplained) == ([], {})

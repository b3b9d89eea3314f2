# SPDX-License-Identifier: Apache-2.0
"""The suites that take seconds, and proof that the comparison can fail: it sees what only Velo causes, tells
it from what fails by itself, and refuses a run in which nothing was served.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.interpreters import ask
from tests.support.running import CHECKOUT
from tests.support.tree import Tree

from .make import Made, Missing, library, make
from .outcomes import Outcomes, Seen, differing, read_outcomes, read_rules, reason_for
from .results import FOLDER, keep, table, write_table
from .run import PartResult, Place, run_part
from .suites import Suite, parts_of, read_suites

FAST = ("test_pkgutil", "test_zipimport_support", "test_modulefinder")


def own_suite(folder: Path, tests: dict[str, str]) -> tuple[Suite, Made]:
    """A suite of our own, run by the pytest that runs this."""
    base = Path(sys.executable)
    interpreter = ask(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
    assert interpreter is not None
    Tree(folder / "source").write(tests)
    stdlib, version = library(base)
    suite = Suite("own", "pytest", ("-p no:randomly .",))
    return suite, Made(folder, base, interpreter, base, folder / "source", stdlib, version)


@pytest.mark.parametrize("part", FAST)
def test_cpythons_own(part: str, tmp_path: Path) -> None:
    """Some of CPython's own tests come out as they do without Velo, and were served."""
    interpreter = ask(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
    assert interpreter is not None
    suite = read_suites()["cpython"]
    try:
        made = make(suite, interpreter, tmp_path)
    except Missing as reason:
        pytest.skip(str(reason))

    result = run_part(Place(suite, made, part, interpreter.name), part)

    assert (result.problems, result.unexplained) == ([], {})
    assert result.served > 50
    assert result.passed > 3


def test_what_only_velo_causes_is_found(tmp_path: Path) -> None:
    """A test that looks for the hook differs; one that fails every other time does so by itself."""
    suite, made = own_suite(
        tmp_path,
        {
            "test_own.py": """
                import pathlib, sys

                def test_looks():
                    assert not any(type(finder).__name__ == "VeloFinder" for finder in sys.meta_path)

                def test_every_other_time():
                    state = pathlib.Path(__file__).with_name("state")
                    turns = len(state.read_text()) if state.exists() else 0
                    state.write_text("x" * (turns + 1))
                    assert turns % 3

                def test_good():
                    pass
                """
        },
    )

    result = run_part(Place(suite, made, ".", "3.x"), ".")

    assert result.problems == []
    assert list(result.unexplained) == ["test_own::test_looks"]
    assert result.unexplained["test_own::test_looks"]["plain"].keys() == {"passed"}
    assert list(result.unstable) == ["test_own::test_every_other_time"]
    assert result.served > 50


def test_a_run_without_velo_does_not_count(tmp_path: Path) -> None:
    """Where nothing was served nothing was compared, and the result says so."""
    suite, made = own_suite(tmp_path, {"test_own.py": "def test_good(): pass\n"})
    place = Place(suite, made, ".", "3.x")
    place.extra["VELO_DISABLE"] = "1"

    result = run_part(place, ".")

    assert result.problems == ["nothing was served (0)"]


def test_a_suite_that_cannot_start_does_not_count(tmp_path: Path) -> None:
    """No outcomes at all are not the same outcomes."""
    suite, made = own_suite(tmp_path, {"test_own.py": "raise SystemExit(3)\n"})

    result = run_part(Place(suite, made, "--no-such-option", "3.x"), "--no-such-option")

    assert "no outcomes of the plain run" in result.problems[0]


def test_reports_are_read(tmp_path: Path) -> None:
    """Passed, failed, failed in a set-up, skipped; a name that comes twice keeps both of its outcomes."""
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a.b.test_one" status="run" result="completed"/>'
        '<testcase classname="m.C" name="test_two" file="m.py"><failure/><system-out/></testcase>'
        '<testcase classname="m.C" name="test_two" file="m.py"/>'
        '<testcase classname="m" name="test_at[0x7f00aabbcc]"><error/></testcase>'
        '<testcase name="test_four"><skipped type="pytest.skip"/></testcase></testsuite></testsuites>'
    )

    outcomes = read_outcomes(report)

    assert outcomes.results == {
        "a.b.test_one": "passed",
        "m.C::test_two": "failed passed",
        "m::test_at[0x]": "failed",
        "test_four": "skipped",
    }
    assert outcomes.files == {"m.C::test_two": "m.py"}
    assert [outcomes.count(each) for each in ("passed", "failed", "skipped")] == [2, 2, 1]
    report.write_text("<testsuites><testsuite>")
    assert read_outcomes(report) == Outcomes()


def test_a_test_that_is_gone_differs() -> None:
    """A test that was not run at all is neither passed nor skipped."""
    found = differing({"a": "passed", "b": "passed"}, {"b": "passed", "c": "skipped"})

    assert found == {"a": ("passed", "absent"), "c": ("absent", "skipped")}


@pytest.mark.parametrize(
    ("plain", "velo", "verdict"),
    [
        ({"passed": 1}, {"failed": 2}, "ours"),
        ({"passed": 5}, {"failed": 2, "passed": 4}, "ours"),
        ({"passed": 4, "failed": 1}, {"failed": 2, "passed": 3}, "unstable"),
        ({"passed": 5}, {"failed": 1, "passed": 5}, "once"),
        ({"passed": 2}, {"failed": 1, "passed": 2}, "ours"),
    ],
)
def test_repeated_outcomes_are_judged(plain: dict[str, int], velo: dict[str, int], verdict: str) -> None:
    """Held against Velo is what plain Python never shows, unless it came up once and never again."""
    assert Seen(Counter(plain), Counter(velo)).verdict == verdict


def test_reviewed_differences_have_reasons() -> None:
    """Each rule names a suite that there is, and says why; it explains the tests it names and no other."""
    rules = read_rules()

    assert all(rule.suite in read_suites() and len(rule.reason) > 20 for rule in rules)
    named = "test.test_site.StartupImportTests.test_startup_imports"
    assert reason_for(rules, "cpython", "3.12", named)
    assert not reason_for(rules, "cpython", "3.12", named + "_more")
    assert not reason_for(rules, "pytest", "3.12", named)


def test_results_are_kept_and_shown(tmp_path: Path) -> None:
    """Part by part; a row of the table adds the parts of a suite up."""
    path = tmp_path / "3.12.json"
    suite = Suite("own", "pytest", ("a", "b"), source="own==1")
    keep(path, "3.12.1", suite, PartResult("a", "pytest a", tests=3, passed=2, skipped=1, served=40))
    keep(
        path, "3.12.1", suite, PartResult("b", "pytest b", tests=9, passed=9, problems=["nothing was served"])
    )
    keep(path, "3.12.1", suite, PartResult("b", "pytest b", tests=5, passed=5, served=2, once={"t": {}}))

    assert table([path]).splitlines()[2] == "| 3.12.1 | own==1 | 8 | 7 | 0 | 1 | 42 | 0 | 0 | 0 | 1 | 0 |"


def test_the_page_shows_what_is_kept(tmp_path: Path) -> None:
    """The table of docs/suites.md is that of the kept results, and they have no unexplained difference."""
    page = tmp_path / "suites.md"
    page.write_text((CHECKOUT / "docs" / "suites.md").read_text())

    write_table(page, sorted(FOLDER.glob("*.json")))

    assert page.read_text() == (CHECKOUT / "docs" / "suites.md").read_text()
    rows = [line for line in page.read_text().splitlines() if line.startswith("| 3.")]
    assert rows != [] == [line for line in rows if not line.endswith(" 0 |")]


def test_parts_are_those_that_there_are(tmp_path: Path) -> None:
    """CPython's modules have other names from version to version."""
    Tree(tmp_path).write(
        {"test/test_one.py": "", "test/test_many_a/__init__.py": "", "test/test_many_b.py": ""}
    )

    parts = parts_of(Suite("cpython", "regrtest", ("test_gone", "test_many_*", "test_one")), tmp_path)

    assert parts == ("test_many_a", "test_many_b", "test_one")


def test_repeats_name_the_files_of_what_differed() -> None:
    """Options stay, everything else gives way to the files."""
    suite = Suite("own", "pytest", ("-k claw tests",))

    assert suite.selection(suite.parts[0], ["tests/b.py", "tests/a.py"]) == [
        "-k",
        "claw",
        "tests/a.py",
        "tests/b.py",
    ]
    assert suite.selection(suite.parts[0], []) == ["-k", "claw", "tests"]


@pytest.mark.suites
@pytest.mark.parametrize("name", sorted(read_suites()))
def test_whole_suites(name: str, tmp_path: Path) -> None:
    """Everything on the Python that runs the tests: hours, and a network."""
    interpreter = ask(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
    assert interpreter is not None
    suite = read_suites()[name]
    made = make(suite, interpreter, tmp_path)

    for part in parts_of(suite, made.stdlib):
        result = run_part(Place(suite, made, part, interpreter.name), part)
        assert (result.problems, result.unexplained) == ([], {})

# SPDX-License-Identifier: Apache-2.0
"""The suites that take seconds, and proof that the comparison can fail: it sees what only Velo causes, tells
it from what fails by itself, and refuses a run in which nothing was served.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.interpreters import ask
from tests.support.running import CHECKOUT, HAS_NATIVE
from tests.support.tree import Tree

from .make import Made, Missing, add_native, library, make
from .outcomes import Outcomes, Seen, differing, read_outcomes, read_rules, reason_for
from .results import FOLDER, is_built, keep, settled, table, write_table
from .run import PartResult, Place, Run, run_part
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


def test_the_audit_hook_of_cpythons_runner_is_left_out(tmp_path: Path) -> None:
    """Only that one, once: hooks that tests set are set, and it starts as `python -m test` does."""
    Tree(tmp_path).write(
        {
            "test/__init__.py": "",
            "test/__main__.py": """
                import sys

                heard = []

                def _test_audit_hook(name, arguments):
                    heard.append("the runner's")

                def hook_of_a_test(name, arguments):
                    name == "event" and heard.append("a test's")

                add = sys.addaudithook
                add(_test_audit_hook)
                sys.addaudithook(hook_of_a_test)
                sys.audit("event")
                print(heard, add is sys.addaudithook, sys.argv[1:], __spec__.name)
                """,
        }
    )
    command = read_suites()["cpython"].command(Path(sys.executable), ["test_one"], Path("xml"), Path("tmp"))

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.stdout == f'["a test\'s"] False {command[3:]} test.__main__\n', done.stderr


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
    assert (result.images or 0) > 50 or not HAS_NATIVE
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


@pytest.mark.skipif(not HAS_NATIVE, reason="only the native module can use images")
def test_a_run_without_images_does_not_count(tmp_path: Path) -> None:
    """Where Velo has images of functions, a run that could not use them proves nothing about them."""
    suite, made = own_suite(tmp_path, {"test_own.py": "def test_good(): pass\n"})
    place = Place(suite, made, ".", "3.x")
    place.extra["VELO_REMEMBER"] = "patterns,sources,metadata"

    result = run_part(place, ".")

    assert result.served > 50
    assert result.problems == ["no function came from an image (0)"]


@pytest.mark.skipif(not HAS_NATIVE, reason="only the native module can use images")
def test_images_may_come_a_run_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine too busy to make them in time, the run that counts is the next one."""
    suite, made = own_suite(tmp_path, {"test_own.py": "def test_good(): pass\n"})
    place = Place(suite, made, ".", "3.x")
    place.extra["VELO_REMEMBER"] = "patterns,sources,metadata"
    run = place.run

    def in_time_at_last(kind: str, arguments: Sequence[str]) -> Run:
        if place.turn == 2:
            del place.extra["VELO_REMEMBER"]
        return run(kind, arguments)

    monkeypatch.setattr(place, "run", in_time_at_last)

    result = run_part(place, ".")

    assert result.problems == []
    assert (result.images or 0) > 50
    assert list(result.codes) == ["plain", "first", "served", "served without images"]


def test_sockets_fit_into_the_temporary_folder(tmp_path: Path) -> None:
    """However long the name of a part and of the work folder are: multiprocessing makes such sockets."""
    text = """
        import socket, tempfile

        def test_socket():
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(tempfile.mkdtemp(prefix="pymp-") + "/listener-12345678")
        """
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    suite, made = own_suite(folder, {"test_own.py": text})

    outcomes = Place(suite, made, "part" * 15, "3.x").run("plain", ["."]).outcomes

    assert outcomes.results["test_own::test_socket"] == "passed"


def test_a_suite_that_cannot_start_does_not_count(tmp_path: Path) -> None:
    """No outcomes at all are not the same outcomes."""
    suite, made = own_suite(tmp_path, {"test_own.py": "raise SystemExit(3)\n"})

    result = run_part(Place(suite, made, "--no-such-option", "3.x"), "--no-such-option")

    assert "no outcomes of the plain run" in result.problems[0]


@pytest.mark.parametrize("ended_by", [None, KeyboardInterrupt])
def test_what_hangs_is_ended(
    ended_by: type[BaseException] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that takes too long, and one whose harness is ended, leaves no process behind."""
    text = "import os, time\ndef test_one():\n    open('pid', 'w').write(str(os.getpid())); time.sleep(60)\n"
    suite, made = own_suite(tmp_path, {"test_own.py": text})
    place = Place(replace(suite, limit=5), made, ".", "3.x")
    if ended_by is None:
        assert place.run("plain", ["."]).code == "killed after 5 s"
    else:
        waited = subprocess.Popen.wait

        def end(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
            if timeout != 5:
                return waited(process, timeout)
            while not (made.here / "pid").exists():
                time.sleep(0.05)
            raise ended_by

        monkeypatch.setattr(subprocess.Popen, "wait", end)
        with pytest.raises(ended_by):
            place.run("plain", ["."])

    with pytest.raises(ProcessLookupError):
        os.kill(int((made.here / "pid").read_text()), 0)


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
    parts = [
        PartResult("a", "pytest a", tests=3, passed=2, skipped=1, served=40),
        PartResult("b", "pytest b", tests=9, passed=9, problems=["nothing was served"]),
        PartResult("b", "pytest b", tests=5, passed=5, served=2, images=1500, once={"t": {}}),
    ]

    for each in parts:
        keep_own(path, each)

    lines = table([path]).splitlines()
    assert lines[2] == "| 3.12.1 | own==1 | 2 of 2 | 8 | 7 | 0 | 1 | 42 | 1,500 | 0 | 0 | 0 | 1 | 0 |"
    assert lines[-1] == "All of it with Velo as of abc."
    keep_own(tmp_path / "twins.json", parts[0])
    row = table([tmp_path / "twins.json"]).splitlines()[2]
    assert row == "| 3.12.1 | own==1 | 1 of 2 | 3 | 2 | 0 | 1 | 40 | - | 0 | 0 | 0 | 0 | 0 |"


def keep_own(path: Path, result: PartResult, revision: str = "abc") -> None:
    keep(path, "3.12.1", Suite("own", "pytest", ("a", "b"), source="own==1"), result, ("a", "b"), revision)


def test_revisions_are_not_mixed_by_accident(tmp_path: Path) -> None:
    """Results of several revisions are shown only when asked for, each row with its own."""
    path = tmp_path / "3.12.json"
    keep_own(path, PartResult("a", "pytest a", tests=3, passed=3, served=40))
    keep_own(path, PartResult("b", "pytest b", tests=5, passed=5, served=2), "def")

    with pytest.raises(SystemExit, match=r"several revisions \(abc, def\)"):
        table([path])
    heads, _, row = table([path], mixed=True).splitlines()
    assert heads.endswith("| unexplained | Velo |")
    assert row.endswith("| 0 | abc, def |")


def test_what_was_run_is_not_run_again(tmp_path: Path) -> None:
    """A run that is resumed leaves out what is settled at this very revision, and nothing else."""
    path = tmp_path / "3.12.json"
    keep_own(path, PartResult("a", "pytest a", unexplained={"t": {}}))
    keep_own(path, PartResult("b", "pytest b"))

    assert settled(path, "own", "abc") == {"b"}
    assert settled(path, "own", "def") == settled(path, "other", "abc") == set()
    keep_own(path, PartResult("a", "pytest a"), "abc-dirty")
    assert settled(path, "own", "abc") == {"b"}
    assert settled(path, "own", "abc-dirty") == settled(tmp_path / "none.json", "own", "abc") == set()


def test_old_native_modules_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built of older sources would be compared under a revision that it is not."""
    monkeypatch.setattr("tests.suites.results.NATIVE", tmp_path)
    Tree(tmp_path).write({"core.c": "", "core.h": "", "core.abi3.so": ""})
    os.utime(tmp_path / "core.c", (10, 10))
    os.utime(tmp_path / "core.h", (10, 10))

    assert is_built()
    os.utime(tmp_path / "core.abi3.so", (9, 9))
    assert not is_built()
    (tmp_path / "core.abi3.so").unlink()
    assert is_built()


def test_the_page_shows_what_is_kept(tmp_path: Path) -> None:
    """The table of docs/suites.md is that of the kept results, and they have no unexplained difference."""
    page = tmp_path / "suites.md"
    page.write_text((CHECKOUT / "docs" / "suites.md").read_text())

    write_table(page, sorted(FOLDER.glob("*.json")), mixed=True)

    assert page.read_text() == (CHECKOUT / "docs" / "suites.md").read_text()
    rows = [line for line in page.read_text().splitlines() if line.startswith("| 3.")]
    assert rows != [] == [line for line in rows if line.split(" | ")[-2] != "0"]


def test_parts_are_those_that_there_are(tmp_path: Path) -> None:
    """CPython's modules have other names from version to version."""
    Tree(tmp_path).write(
        {"test/test_one.py": "", "test/test_many_a/__init__.py": "", "test/test_many_b.py": ""}
    )

    parts = parts_of(Suite("cpython", "regrtest", ("test_gone", "test_many_*", "test_one")), tmp_path)

    assert parts == ("test_many_a", "test_many_b", "test_one")


def test_large_packages_are_run_module_by_module(tmp_path: Path) -> None:
    """Those of multiprocessing take half an hour; what is one file on an older Python stays one part."""
    Tree(tmp_path).write(
        {
            "test/test_many_a/__init__.py": "",
            "test/test_many_a/test_two.py": "",
            "test/test_many_a/test_one.py": "",
            "test/test_many_a/util.py": "",
            "test/test_many_b.py": "",
        }
    )
    suite = Suite("cpython", "regrtest", ("test_many_*",), split=("test_many_*",))

    assert parts_of(suite, tmp_path) == (
        "test.test_many_a.test_one",
        "test.test_many_a.test_two",
        "test_many_b",
    )


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
    part = "tests/a.py::Slow tests/a.py::Slower tests"
    assert suite.selection(part, ["tests/a.py", "tests/b.py"]) == [
        "tests/a.py::Slow",
        "tests/a.py::Slower",
        "tests/b.py",
    ]


def test_what_hides_the_installed_has_its_native_modules(tmp_path: Path) -> None:
    """A package of an sdist that is found before the installed one is as complete."""
    Tree(tmp_path).write(
        {
            "venv/lib/python3.12/site-packages/one/fast.so": "",
            "venv/lib/python3.12/site-packages/two/fast.so": "",
            "source/one/__init__.py": "",
            "source/two/__init__.py": "",
        }
    )

    add_native("one", tmp_path / "venv", tmp_path / "source")

    assert [path.relative_to(tmp_path / "source") for path in (tmp_path / "source").rglob("*.so")] == [
        Path("one/fast.so")
    ]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14", "3.15"])
def test_each_python_has_one_numpy(python: str) -> None:
    """The newest numpy is not for the oldest Python, which has the last that is."""
    suites = [suite for suite in read_suites().values() if suite.is_for(python)]

    assert len([suite for suite in suites if any(each.startswith("numpy==") for each in suite.install)]) == 1


@pytest.mark.suites
@pytest.mark.parametrize("name", sorted(read_suites()))
def test_whole_suites(name: str, tmp_path: Path) -> None:
    """Everything on the Python that runs the tests: hours, and a network."""
    interpreter = ask(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
    assert interpreter is not None
    suite = read_suites()[name]
    if not suite.is_for(interpreter.name):
        pytest.skip(f"is for {', '.join(suite.only)}")
    made = make(suite, interpreter, tmp_path)

    for part in parts_of(suite, made.stdlib):
        result = run_part(Place(suite, made, part, interpreter.name), part)
        assert (result.problems, result.unexplained) == ([], {})

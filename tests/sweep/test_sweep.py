# SPDX-License-Identifier: Apache-2.0
"""The sweep over what every test environment has, and proof that it can fail: it sees a planted difference,
tells noise from difference, and refuses a run in which nothing was served.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interpreters import ask
from tests.support.running import HAS_NATIVE, clean_environment
from tests.support.tree import Tree, make_environment

from .compare import Difference, Seen, differences, flatten, read_rules, without_noise
from .results import keep, summary, table
from .run import ARMS, PackageResult, Sweep
from .scan import METADATA, Environment, scan

# Of those that the test extra brings: small, pure, native, with data, with sub-packages.
DISTRIBUTIONS = ("click", "iniconfig", "packaging", "pathspec", "pluggy", "psutil", "blake3", "cbor2")


@pytest.fixture
def environment_folder(tmp_path: Path) -> Path:
    """A fresh virtual environment of the interpreter that runs the tests."""
    base = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    interpreter = ask(base)
    assert interpreter is not None
    make_environment(tmp_path / "venv", interpreter, base)
    return tmp_path / "venv"


@pytest.fixture
def site(environment_folder: Path) -> Path:
    (found,) = environment_folder.glob("lib/python3.*/site-packages")
    return found


def copy_distribution(name: str, site: Path) -> None:
    """One installed distribution, file by file, as its RECORD lists them."""
    for file in importlib.metadata.files(name) or []:
        source = Path(str(file.locate()))
        if ".." not in file.parts and source.is_file() and source.suffix != ".pyc":
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, site / file)


def swept(
    folder: Path, work: Path, only: tuple[str, ...] = (), arms: tuple[str, ...] = ARMS, **extra: str
) -> tuple[Environment, list[PackageResult]]:
    """The sweep of an environment, as the command line does it."""
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "compileall", "-q", folder / "lib"], check=True)
    environment = scan(python, clean_environment(work))
    sweep = Sweep(environment, work, arms, extra)
    sweep.prepare([folder])
    names = [name for name in environment.packages if not name.startswith("(")]
    return environment, sweep.run(only or names, 2, lambda result: None)


def test_packages_of_this_environment(environment_folder: Path, site: Path, tmp_path: Path) -> None:
    """Every module of the packages at hand is the same in all that can be seen, and was served."""
    for name in DISTRIBUTIONS:
        copy_distribution(name, site)

    environment, results = swept(environment_folder, tmp_path / "work")

    assert {owner for owners in environment.owners.values() for owner in owners} == set(DISTRIBUTIONS)
    assert [each.problems for each in results if each.problems] == []
    assert [each.unexplained for each in results if each.unexplained] == []
    found = summary(keep(tmp_path / "results.json", environment, results))
    assert found["imported"] > 80
    for arm in ("ingested", "learned"):
        assert found["arms"][arm]["own_served"] == found["arms"][arm]["sources"] > 60
    if HAS_NATIVE:
        assert found["arms"]["imaged"]["images"] > 60
    assert found["unexplained"] == found["problems"] == 0 < sum(found["explained"].values())


def test_metadata_of_this_environment(environment_folder: Path, site: Path, tmp_path: Path) -> None:
    """Names, versions, files and entry points of all distributions, in the same order."""
    for name in DISTRIBUTIONS:
        copy_distribution(name, site)

    _, (result,) = swept(environment_folder, tmp_path / "work", (METADATA,), ("ingested",))

    assert (result.problems, result.unexplained) == ([], [])


def test_what_only_velo_causes_is_found(environment_folder: Path, site: Path, tmp_path: Path) -> None:
    """A package that looks for the hook and behaves differently is a difference; one that is different each
    time is not, and says that it was noise.
    """
    Tree(site).write(
        {
            "looks.py": """
                import sys
                if any(type(finder).__name__ == "VeloFinder" for finder in sys.meta_path):
                    SEEN = True
                """,
            "random_names.py": "import os\nglobals()['name_' + os.urandom(4).hex()] = 1\n",
        }
    )

    _, results = swept(environment_folder, tmp_path / "work", arms=("ingested",))

    looks, random_names = results
    assert [(each["aspect"], each["key"]) for each in looks.unexplained] == [("module names", "looks")]
    assert (random_names.unexplained, random_names.noise) == ([], 1)


def test_a_run_without_velo_does_not_count(environment_folder: Path, site: Path, tmp_path: Path) -> None:
    """Where nothing was served nothing was compared, and the sweep says so."""
    Tree(site).write({"single.py": "VALUE = 1\n"})

    _, (result,) = swept(environment_folder, tmp_path / "work", arms=("ingested",), VELO_DISABLE="1")

    assert "nothing served" in result.problems[0]


def test_a_module_that_ends_the_process_is_swept_alone(
    environment_folder: Path, site: Path, tmp_path: Path
) -> None:
    """It does not keep the others from being compared, and is compared itself, by its output."""
    Tree(site).write(
        {
            "box/__init__.py": "",
            "box/ends.py": "import os\nprint('ending', flush=True)\nos._exit(3)\n",
            "box/part.py": "import box\n",
        }
    )

    _, (result,) = swept(environment_folder, tmp_path / "work", arms=("ingested",))

    assert result.lost == {"box.ends": "3"}
    assert result.imported == 2
    assert (result.problems, result.unexplained) == ([], [])


def test_every_reviewed_difference_has_a_reason() -> None:
    """A rule without a reason is refused when the list is read; every rule recognises something."""
    rules = read_rules()
    assert len({each.reason for each in rules}) == len(rules)
    assert all(len(each.reason) > 20 for each in rules)


def test_lists_are_compared_line_by_line() -> None:
    """What was inserted and what is missing; the rest of two long lists is no difference."""
    lines = [f"line {number}" for number in range(50_000)]
    one = Seen({}, {"events": lines})
    two = Seen({}, {"events": [*lines[:400], "new", *lines[400:30_000], *lines[30_001:]]})

    assert set(differences(one, two)) == {
        Difference("events", "", None, "new"),
        Difference("events", "", "line 30000", None),
    }
    assert differences(one, one) == []
    assert differences(one, Seen({}, {"events": [*lines[1:], lines[0]]})) != []


def test_noise_is_what_two_plain_runs_differ_in() -> None:
    """The same question, or the same line."""
    plain = flatten({"module": {"a": {"file": "1", "names": "x"}}, "modules": ["a"]})
    again = flatten({"module": {"a": {"file": "1", "names": "y"}}, "modules": ["a"]})
    velo = flatten({"module": {"a": {"file": "2", "names": "z"}}, "modules": ["a", "b"]})

    found = without_noise(differences(plain, velo), differences(plain, again))

    assert [(each.aspect, each.key, each.other) for each in found] == [
        ("module file", "a", "2"),
        ("modules", "", "b"),
    ]


def test_the_table_says_which_revision_and_how_many_came_from_images(tmp_path: Path) -> None:
    """One row, from what was kept of two packages in turn."""
    environment = Environment(Path("python"), "3.13.0", {"box": ["box-dist"]}, {"box": ("box",)})
    for name in ("box", "six"):
        counts = {"own_served": 1, "sources": 2, "images": 700}
        keep(tmp_path / "3.13.json", environment, [PackageResult(name, 3, 2, {"imaged": counts})])

    *_, row = table([tmp_path / "3.13.json"]).splitlines()

    assert row.startswith("| 3.13.0 (3.13) | ")
    assert row.endswith("| imaged | 1 | 2 | 6 | 4 | 2 of 4 | 1,400 | 0 | 0 | 0 |")


@pytest.mark.sweep
def test_distributions_of_the_lock(tmp_path: Path) -> None:
    """All locked distributions on the Python that runs the tests: half an hour, and a network."""
    from .make import make

    version = ".".join(map(str, sys.version_info[:2]))
    make(version, tmp_path / "venv")

    environment, results = swept(tmp_path / "venv", tmp_path / "work")

    assert len({owner for owners in environment.owners.values() for owner in owners}) >= 60
    assert [each.problems for each in results if each.problems] == []
    assert [each.unexplained for each in results if each.unexplained] == []


@pytest.mark.sweep
def test_projects_installed_in_place(tmp_path: Path) -> None:
    """Every flavour of editable installation; needs a network and a C compiler."""
    from .make import make

    version = ".".join(map(str, sys.version_info[:2]))
    make(version, tmp_path / "venv", kind="editables")
    python = tmp_path / "venv" / "bin" / "python"
    environment = scan(python, clean_environment(tmp_path))
    names = [name for name in environment.packages if name.startswith("in_place")]
    sweep = Sweep(environment, tmp_path / "work", ARMS, {})
    sweep.prepare([tmp_path / "venv", tmp_path / "venv" / "projects"])

    results = sweep.run(names, 2, lambda result: None)

    assert len(results) == 13
    assert [each.problems for each in results if each.problems] == []
    assert [each.unexplained for each in results if each.unexplained] == []

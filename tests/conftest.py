# SPDX-License-Identifier: Apache-2.0
"""Fixtures: an interpreter, a small project, ways to run it with and without Velo; an empty store.

A story that asks for `python` runs on the newest installed interpreter; on every other one as well when it is
marked `core`, and otherwise when the slow tests are asked for (`-m slow`). So the suite stays short and
nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import interpreters, sid
from tests.support.interpreters import Interpreter
from tests.support.running import HAS_NATIVE, Both, Result, Velo
from tests.support.tree import Tree, make_environment
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "core: run on every supported interpreter, not only on the newest installed"
    )
    config.addinivalue_line("markers", "since(major, minor): skip on older interpreters")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "interpreter" in metafunc.fixturenames:
        since = metafunc.definition.get_closest_marker("since")
        found = [each for each in interpreters.supported() if since is None or each.version[:2] >= since.args]
        everywhere = metafunc.definition.get_closest_marker("core") is not None
        metafunc.parametrize(
            "interpreter",
            [
                pytest.param(each, id=each.name, marks=[] if everywhere or turn == 0 else [pytest.mark.slow])
                for turn, each in enumerate(found)
            ],
            indirect=True,
        )
    if "foreign_python" in metafunc.fixturenames:
        strangers = [pytest.param(each, id=each.name) for each in interpreters.foreign()]
        metafunc.parametrize("foreign_python", strangers, indirect=True)


@pytest.fixture
def interpreter(request: pytest.FixtureRequest) -> Interpreter:
    """Who runs the story: version and brand."""
    found: Interpreter = request.param
    return found


@pytest.fixture
def can_tell_auditors(interpreter: Interpreter) -> None:
    """From 3.14 on only the native module can tell whether somebody audits; its twin stands aside then."""
    if interpreter.version >= (3, 14) and not HAS_NATIVE:
        pytest.skip("needs the native module on this interpreter")


@pytest.fixture
def base_python(interpreter: Interpreter) -> Path:
    """The interpreter's executable, outside of any virtual environment."""
    try:
        return interpreter.resolve()
    except sid.Unavailable as reason:
        pytest.skip(f"no Python {interpreter.name}: {reason}")


@pytest.fixture
def python(tmp_path: Path, interpreter: Interpreter, base_python: Path) -> Path:
    """The executable of a fresh virtual environment, which is where programs live."""
    return make_environment(tmp_path / "venv", interpreter, base_python)


@pytest.fixture
def site_packages(python: Path, interpreter: Interpreter) -> Tree:
    """The folder that packages are installed to."""
    return Tree(python.parents[1] / interpreter.library / "site-packages")


@pytest.fixture
def foreign_python(request: pytest.FixtureRequest) -> Path:
    """The executable of a Python that Velo does not support."""
    found: Interpreter = request.param
    return found.resolve()


@pytest.fixture
def velo(tmp_path: Path, python: Path) -> Velo:
    """A store of its own, the interpreter, and the project's folder."""
    project = tmp_path / "project"
    project.mkdir()
    return Velo(tmp_path, python, project)


@pytest.fixture
def tree(velo: Velo) -> Tree:
    """The project's folder: `.write({...})`, `.ingest()`."""
    return Tree(velo.cwd, velo)


@pytest.fixture
def run_python(velo: Velo) -> Callable[..., Result]:
    """Run the interpreter without Velo."""
    return velo.plain


@pytest.fixture
def run_velo(velo: Velo) -> Callable[..., Result]:
    """Run the interpreter under `velo run`."""
    return velo.run


@pytest.fixture
def wait_learned(velo: Velo) -> Callable[..., None]:
    """Wait until the learner has finished."""
    return velo.wait_learned


@pytest.fixture
def both(velo: Velo) -> Callable[..., Both]:
    """Run plain, learning and served; the answers have to be equal."""
    return velo.both


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store, for tests of its parts."""
    return Store.open(tmp_path / "home", create=True)


@pytest.fixture
def catalog(store: Store) -> Iterator[Catalog]:
    """The catalogue of that store, open."""
    with Catalog.open(store) as opened:
        yield opened

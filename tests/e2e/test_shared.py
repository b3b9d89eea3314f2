# SPDX-License-Identifier: Apache-2.0
"""Several accounts, one store: who is served from it, who may write to it, and whose files are believed."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import CHECKOUT, VELO, Velo, clean_environment
from tests.support.tree import Tree
from velo_import.launch.environment import child_environment
from velo_import.launch.injection import injection_folder

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two accounts")
STRANGER = 12345
APP = {"app.py": "import helper, private\nprint(helper.VALUE, private.VALUE)\n", "helper.py": "VALUE = 1\n"}


@pytest.fixture
def shared(tree: Tree, velo: Velo) -> Path:
    """A store that knows the project and is open to others."""
    tree.write(APP | {"private.py": "VALUE = 2\n"})
    tree.ingest()
    home = velo.home.parent / "shared"
    velo.home.rename(home)
    done = subprocess.run(
        [*VELO, "store", "share", "--json"],
        env=velo.plain_environment(VELO_HOME=str(home)),
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["shared"]
    return home


@pytest.mark.core
def test_a_private_store_layers_over_a_shared_one(tree: Tree, velo: Velo, shared: Path) -> None:
    """What the shared store has is served from there; what it lacks is learned into the own one."""
    before = Tree(shared).listing()
    assert velo.plain("app.py").answer == velo.run("app.py", env={"VELO_SHARED": str(shared)}).answer
    assert velo.learn("app.py", env={"VELO_SHARED": str(shared)}).served >= 2

    tree.write({"private.py": "VALUE = 'edited'\n"})
    edited = velo.learn("app.py", env={"VELO_SHARED": str(shared)})
    assert edited.answer == velo.plain("app.py").answer
    again = velo.learn("app.py", env={"VELO_SHARED": str(shared)})
    assert again.answer == edited.answer
    assert again.served >= 2
    assert Tree(shared).listing() == before


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_shared_store_that_others_may_write_is_not_believed(
    tree: Tree, velo: Velo, shared: Path, mode: int
) -> None:
    """The answer is plain Python's, and the statistics say why."""
    shared.chmod(mode)
    done = velo.run("app.py", env={"VELO_SHARED": str(shared)})
    assert done.answer == velo.plain("app.py").answer
    assert done.served == 0
    assert "shared store: others may write" in done.reasons


def test_a_shared_store_that_is_gone_is_silence(tree: Tree, velo: Velo, shared: Path) -> None:
    shutil.rmtree(shared)
    done = velo.run("app.py", env={"VELO_SHARED": str(shared)})
    assert done.answer == velo.plain("app.py").answer
    assert "shared store: missing" in done.reasons


def test_only_content_is_opened(velo: Velo, shared: Path) -> None:
    """Locks, notes and the catalogue stay the owner's; one command closes all of it again."""

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(shared) == 0o755
    assert mode(shared / "run") == mode(shared / "meta.db") == 0o700
    for path in (*shared.glob("packs/**/*"), *shared.glob("manifests/**/*")):
        assert mode(path) == (0o755 if path.is_dir() else 0o444)
    command = [*VELO, "store", "share", "--off"]
    subprocess.run(
        command, env=velo.plain_environment(VELO_HOME=str(shared)), check=True, capture_output=True
    )
    assert mode(shared) == 0o700


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can reach, as pytest's own cannot be."""
    folder = Path(tempfile.mkdtemp(prefix="velo-shared-"))
    folder.chmod(0o755)
    yield folder
    end = time.monotonic() + 30
    while folder.exists():  # A stranger's learner may still be writing there.
        shutil.rmtree(folder, ignore_errors=time.monotonic() < end)


def stranger() -> None:
    os.setgroups([])
    os.setgid(STRANGER)
    os.setuid(STRANGER)


@pytest.fixture
def python_of_all() -> str:
    """A supported interpreter, and a checkout, that another account may run."""
    code = "import sys; print(sys.version_info >= (3, 11), sys.implementation.name)"
    hook = CHECKOUT / "velo_import" / "hook" / "install.py"
    for candidate in ("/usr/bin/python3", "/usr/local/bin/python3"):
        command = [candidate, "-c", f"{code}; open({str(hook)!r}).close()"]
        try:
            done = subprocess.run(command, preexec_fn=stranger, capture_output=True, text=True, cwd="/")
        except (OSError, subprocess.SubprocessError):
            continue
        if done.stdout == "True cpython\n" and done.returncode == 0:
            return candidate
    pytest.skip("another account has no Python 3.11 here, or may not read this checkout")


@as_root
@pytest.mark.parametrize("owner", [0, 23456])
def test_another_account_is_served_and_cannot_write(
    open_folder: Path, python_of_all: str, owner: int
) -> None:
    """Root's store, or a service account's, serves a stranger; the stranger's own store learns the rest."""
    project, shared, own = (open_folder / name for name in ("project", "shared", "own"))
    project.mkdir()
    for name, text in (APP | {"private.py": "VALUE = 2\n"}).items():
        (project / name).write_text(text)
    ingesting = clean_environment(open_folder, VELO_HOME=str(shared))
    ingest = ["ingest", str(project), "--python", python_of_all]
    # Another owner is another stamp, so what was given away is looked at again before it is referred to.
    for words in (ingest, ["store", "share"], ingest):
        subprocess.run([*VELO, *words], env=ingesting, check=True, capture_output=True)
        for path in shared.glob("packs/v1/*/*"):
            if path.stat().st_uid != owner:
                os.chown(path, owner, owner)
    for path in (shared, *shared.glob("manifests/**/*")):
        os.chown(path, owner, owner)
    own.mkdir()
    os.chown(own, STRANGER, STRANGER)
    environment = child_environment(
        clean_environment(own),
        injection_folder=injection_folder(),
        home=str(own / "velo"),
        shared=str(shared),
    )
    (own / "velo").mkdir(mode=0o700)
    os.chown(own / "velo", STRANGER, STRANGER)

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python_of_all, "-c", code],
            cwd=project,
            env=environment | {"VELO_STATS": str(own / "stats")},
            preexec_fn=stranger,
            capture_output=True,
            text=True,
        )

    done = run("import app")
    assert (done.stdout, done.stderr, done.returncode) == ("1 2\n", "", 0)
    statistics = json.loads((own / "stats").read_text().splitlines()[-1])
    assert statistics["served"] >= 3
    assert statistics["errors"] == 0
    for folder in (shared, *(path for path in shared.rglob("*") if path.is_dir())):
        attack = run(f"import os; os.open({str(folder / 'new')!r}, os.O_CREAT | os.O_WRONLY)")
        assert "PermissionError" in attack.stderr


@as_root
def test_an_account_that_may_not_look_into_the_store_runs_plainly(
    open_folder: Path, python_of_all: str
) -> None:
    """As a service that drops its rights after it was started under Velo."""
    project, home, own = (open_folder / name for name in ("project", "velo", "own"))
    project.mkdir()
    for name, text in (APP | {"private.py": "VALUE = 2\n"}).items():
        (project / name).write_text(text)
    ingest = [*VELO, "ingest", str(project), "--python", python_of_all]
    ingesting = clean_environment(open_folder, VELO_HOME=str(home))
    subprocess.run(ingest, env=ingesting, check=True, capture_output=True)
    own.mkdir()
    os.chown(own, STRANGER, STRANGER)
    plain = clean_environment(own)
    environment = child_environment(plain, injection_folder=injection_folder(), home=str(home))

    def run(
        environment: dict[str, str], statistics: str, as_whom: Callable[[], None] | None
    ) -> tuple[Any, ...]:
        done = subprocess.run(
            [python_of_all, "-c", "import app"],
            cwd=project,
            env=environment | {"VELO_STATS": str(own / statistics), "PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=as_whom,
            capture_output=True,
            text=True,
        )
        return done.stdout, done.stderr, done.returncode

    assert run(environment, "by-root", None) == run(plain, "none", None) == ("1 2\n", "", 0)
    assert json.loads((own / "by-root").read_text())["served"] >= 2
    assert run(environment, "by-stranger", stranger) == run(plain, "none", stranger) == ("1 2\n", "", 0)
    assert not (own / "by-stranger").exists() or '"served": 0' in (own / "by-stranger").read_text()


@as_root
def test_a_strangers_file_in_a_shared_store_is_not_believed(tree: Tree, velo: Velo, shared: Path) -> None:
    """A manifest or pack of a third account counts as missing, wherever it lies."""
    for path in [*shared.glob("manifests/v1/*/*"), *shared.glob("packs/v1/*/*")]:
        os.chown(path, STRANGER, STRANGER)
    done = velo.run("app.py", env={"VELO_SHARED": str(shared)})
    assert done.answer == velo.plain("app.py").answer
    assert done.served == 0

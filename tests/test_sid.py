# SPDX-License-Identifier: Apache-2.0
"""Velo where the newest CPythons are: the interpreters of a Debian sid root, as targets and as Velo's own.

The stories of tests/e2e run on these interpreters like on any other; here is only what is particular to them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import interpreters, sid
from tests.support.interpreters import Interpreter
from tests.support.running import CHECKOUT, clean_environment, is_locked
from tests.support.tree import make_environment

LIMIT = 240


@pytest.fixture(scope="module")
def newest() -> Interpreter:
    """The newest interpreter of the sid root."""
    try:
        folder = sid.root() / "usr" / "bin"
    except sid.Unavailable as reason:
        pytest.skip(f"no Debian sid root: {reason}")
    found = [interpreters.ask(path) for path in sorted(folder.glob("python3.*[0-9]"))]
    return max((each for each in found if each is not None), key=lambda each: each.version)


def test_root_brings_a_newer_python(newest: Interpreter) -> None:
    """The sid root has a Python of at least 3.14, it runs outside of its root and finds its own libraries."""
    assert newest.version >= (3, 14)

    program = "import ctypes, lzma, sqlite3, ssl, sys; print(sys.prefix)"
    done = subprocess.run([newest.resolve(), "-I", "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.returncode) == (f"{sid.folder() / 'usr'}\n", 0), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("version", sid.VERSIONS, ids=lambda version: f"{version[0]}.{version[1]}")
def test_velo_itself_runs_there(tmp_path: Path, version: tuple[int, int]) -> None:
    """`pip install` of this checkout on the newest Pythons: `velo run` learns, then serves."""
    newest = Interpreter(version)
    try:
        python = make_environment(tmp_path / "venv", newest, newest.resolve())
    except sid.Unavailable as reason:
        pytest.skip(f"no Python {newest.name}: {reason}")
    environment = clean_environment(tmp_path, VELO_HOME=str(tmp_path / "store"))
    source = tmp_path / "source"
    kept = (
        "velo_import",
        "sitecustomize",
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
    )
    source.mkdir()
    for name in kept:
        path = CHECKOUT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        elif path.exists():
            shutil.copy(path, source / name)
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", str(source)],
        env={**environment, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    if installed.returncode != 0:
        pytest.skip(f"not installable on {newest.name}: {installed.stderr.strip().splitlines()[-1:]}")
    (tmp_path / "app.py").write_text("import json, part; print(part.VALUE, json.__name__)\n")
    (tmp_path / "part.py").write_text("VALUE = 1\n")

    for turn in range(2):
        statistics = tmp_path / f"stats{turn}"
        done = subprocess.run(
            [python.parent / "velo", "run", "--", python, "app.py"],
            cwd=tmp_path,
            env={**environment, "VELO_STATS": str(statistics)},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert (done.stdout, done.stderr, done.returncode) == ("1 json\n", "", 0)
        while any(is_locked(lock) for lock in (tmp_path / "store" / "run").glob("*.lock")):
            os.sched_yield()
    assert '"served": 0' not in statistics.read_text()

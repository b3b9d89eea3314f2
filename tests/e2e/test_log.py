# SPDX-License-Identifier: Apache-2.0
"""VELO_LOG: what the hook decided about each module, on stderr or in a file, and nothing else changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

LINE = re.compile(r"velo\[\d+\] ([\w.]+): (found /\S+|left to Python(?:: .+)?)")
APP = {
    "app.py": "import part\ntry:\n    import nowhere\nexcept ImportError as error:\n    print(error)",
    "part.py": "",
}


def decisions(text: str) -> dict[str, str]:
    """Module -> what was decided; every line has to be one of ours."""
    lines = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(lines), text
    return {line[1]: line[2] for line in lines if line}


@pytest.mark.core
def test_each_decision_is_one_line(tree: Tree, velo: Velo, tmp_path: Path) -> None:
    """Served, not there, and what is never ours: the last is no error."""
    log = tmp_path / "log"
    tree.write(APP)
    plain = velo.plain("app.py")
    velo.learn("app.py")

    result = velo.run("app.py", env={"VELO_LOG": str(log)})

    assert result.answer == plain.answer
    said = decisions(log.read_text())
    assert said["part"] == f"found {tree / 'part.py'}"
    assert said["nowhere"] == "left to Python: not found"
    assert said["sitecustomize"] == "left to Python"


def test_on_stderr_it_comes_beside_the_programs_own(tree: Tree, velo: Velo) -> None:
    """VELO_LOG=1: stdout is the program's."""
    tree.write(APP)
    velo.learn("app.py")

    result = velo.run("app.py", env={"VELO_LOG": "1"})

    assert result.stdout == velo.plain("app.py").stdout
    assert decisions(result.stderr)["part"] == f"found {tree / 'part.py'}"


@pytest.mark.parametrize("place", ["/no/such/folder/log", "/", "/dev/full"])
def test_a_log_that_cannot_be_written_is_none(tree: Tree, velo: Velo, place: str) -> None:
    """It is a program's start that is being watched, so it goes on."""
    tree.write(APP)
    velo.learn("app.py")

    result = velo.run("app.py", env={"VELO_LOG": place})

    assert result.answer == velo.plain("app.py").answer
    assert result.served >= 1

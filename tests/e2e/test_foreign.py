# SPDX-License-Identifier: Apache-2.0
"""Other Pythons that inherit Velo's variables run as if these were not there, and say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

SHOW = """
    import sys
    print(sys.path)
    print(sorted(sys.modules))
    import part
    try:
        import sitecustomize
        print(sitecustomize)
    except ImportError as error:
        print(error)
    sys.stderr.write("done\\n")
    """


@pytest.fixture
def stranger(tmp_path: Path, foreign_python: Path) -> tuple[Velo, Tree]:
    """The same fixtures as for a supported Python."""
    velo = Velo(tmp_path, foreign_python, tmp_path / "project")
    tree = Tree(velo.cwd, velo).write({"app.py": SHOW, "part.py": ""})
    return velo, tree


def test_foreign_python_is_left_alone(stranger: tuple[Velo, Tree]) -> None:
    """Output, messages, modules, path and exit code are equal, and nothing is written for it."""
    velo, tree = stranger
    plain = velo.plain("-B", "app.py")
    assert plain.code == 0, plain.stderr

    for _ in range(2):
        result = velo.run("-B", "app.py")
        assert result.answer == plain.answer
        assert result.stats == ()
    assert set(tree.listing()) == {"app.py", "part.py"}


def test_foreign_python_with_its_own_sitecustomize(stranger: tuple[Velo, Tree]) -> None:
    """Its own sitecustomize runs all the same, also one that fails."""
    velo, tree = stranger
    for text in ("print('mine')\n", "raise ValueError('broken')\n"):
        tree.write({"lib/sitecustomize.py": text})
        env = {"PYTHONPATH": str(tree / "lib")}

        assert velo.run("-B", "app.py", env=env).answer == velo.plain("-B", "app.py", env=env).answer


def test_nothing_is_compiled_for_a_foreign_python(stranger: tuple[Velo, Tree]) -> None:
    """Not even a bytecode file of our own injected module appears in Velo's folder."""
    velo, _ = stranger
    folder = Path(velo.run("-c", "import os; print(os.environ['PYTHONPATH'])").stdout.strip())
    before = set(folder.rglob("*"))

    assert velo.run("app.py").code == 0

    assert {path.name for path in set(folder.rglob("*")) - before} <= set()

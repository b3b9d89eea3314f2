# SPDX-License-Identifier: Apache-2.0
"""What is built is what is there: packages, data, licence, and the README's commands."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import velo_import
from tests.support.running import CHECKOUT

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
LATER = {"_native"}  # no Python package


def sources() -> list[Path]:
    rooms = ("velo_import", "sitecustomize", "tests", "bench")
    return [path for room in rooms for path in sorted((CHECKOUT / room).rglob("*.py"))]


def test_every_package_is_shipped() -> None:
    """The list in pyproject.toml is explicit, so a new folder could be forgotten."""
    folders = {path.parent for path in (CHECKOUT / "velo_import").rglob("__init__.py")}
    expected = {".".join(folder.relative_to(CHECKOUT).parts) for folder in folders}
    expected |= {"velo_import._inject", "velo_import._node"}  # from folders of other names

    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_package_data_is_there() -> None:
    """FORMAT.md travels with the code it specifies; py.typed tells type checkers."""
    assert (CHECKOUT / "velo_import" / "format" / "FORMAT.md").is_file()
    assert (CHECKOUT / "velo_import" / "py.typed").is_file()


def test_versions_agree() -> None:
    """One version: that of the package, which the command prints."""
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "velo_import.__version__"}
    assert velo_import.__version__.count(".") == 2


def test_dependencies_have_lower_bounds_only() -> None:
    """An upper bound would hold back people whose other packages need more."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(each for extra in extras for each in extra)]:
        assert ">=" in requirement and "<" not in requirement and "==" not in requirement, requirement


def test_every_source_names_its_licence() -> None:
    """Apache-2.0, on the first line, or the second below `#!`."""
    for path in sources():
        first = path.read_text(encoding="utf-8").split("\n", 2)[:2]
        assert "# SPDX-License-Identifier: Apache-2.0" in first or path.stat().st_size == 0, path


def test_the_licence_is_whole() -> None:
    """The full text, from its title to its appendix."""
    text = (CHECKOUT / "LICENSE").read_text(encoding="utf-8")

    assert "Apache License\n                           Version 2.0" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_continuous_integration_finds_the_readmes_test_command() -> None:
    """.ci/run takes the command from the README; both must go on meeting."""
    script = (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")
    expression = script.split("command=$(sed -n '", 1)[1].split("'", 1)[0]
    found = subprocess.run(
        ["sed", "-n", expression, "README.md"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )

    assert found.stdout.count("\n") == 1
    assert "'.[test]'" in found.stdout and found.stdout.rstrip().endswith("-m pytest")
    assert os.access(CHECKOUT / ".ci" / "run", os.X_OK)

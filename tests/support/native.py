# SPDX-License-Identifier: Apache-2.0
"""The C sources of `_native`, compiled for a test: every warning an error, or under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.support.running import CHECKOUT

COMPILER = shutil.which(os.environ.get("CC", "cc"))
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")


def compiled(name: str, folder: Path, *flags: str) -> Path:
    """The extension module `<name>`, of the sources that pyproject.toml names; skips where that cannot be."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").exists():
        pytest.skip("needs the headers of Python")
    target = folder / f"{name}.abi3.so"
    described = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    listed = {each["name"].rpartition(".")[2]: each["sources"] for each in described}
    sources = listed.get(name, [f"velo_import/_native/{name}.c"])
    command = [COMPILER, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{include}", *flags]
    subprocess.run([*command, *(str(CHECKOUT / each) for each in sources), "-o", str(target)], check=True)
    return target


def run_under_sanitizers(name: str, folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that imports the module from `sys.argv[1]`, watched by AddressSanitizer and UBSan."""
    compiled(name, folder, *SANITIZERS)
    runtime = subprocess.run(
        [str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("needs the runtime of AddressSanitizer")
    return subprocess.run(
        [sys.executable, "-S", "-E", "-c", script, str(folder)],
        env={
            **os.environ,
            "LD_PRELOAD": runtime,
            # The interpreter itself frees nothing at exit, and allocates before it is looked at.
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
        },
        capture_output=True,
        text=True,
    )

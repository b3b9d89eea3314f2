# SPDX-License-Identifier: Apache-2.0
"""What the hook costs before the program's first line: no module that Python has not loaded, few system
calls.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

LARGEST_COUNT = 40  # File-related system calls of the install; FORMAT.md and the issue promise no more.
# What a program sees first; sys.modules keeps the order in which modules were loaded.
MODULES = "import sys; print('\\n'.join(sys.modules))"


def injected(velo: Velo, **extra: str | None) -> dict[str, str]:
    """The environment that `velo run` gives, for starting the interpreter directly."""
    told: dict[str, str] = velo.run("-c", "import json, os; print(json.dumps(dict(os.environ)))").json
    velo.wait_learned()
    chosen = {name: told[name] for name in ("PYTHONPATH", "VELO_HOME")}
    return velo.plain_environment(**{**chosen, "VELO_READONLY": "1", **extra})


@pytest.mark.core
def test_no_module_is_left_behind(tree: Tree, velo: Velo) -> None:
    """At the program's first line `sys.modules` holds what it holds without Velo, in the same order."""
    plain = velo.plain("-c", MODULES).stdout.split()
    for _ in range(3):
        assert velo.learn("-c", MODULES).stdout.split() == plain


@pytest.mark.core
def test_no_other_module_is_imported(tree: Tree, velo: Velo) -> None:
    """Not even for a moment: of modules loaded from files during the start, only `mmap` is one more."""
    velo.learn("-c", "pass")
    velo.learn("-c", "pass")

    def trail(environment: Mapping[str, str]) -> list[str]:
        done = subprocess.run(
            [velo.python, "-X", "importtime", "-c", "pass"],
            env=environment,
            cwd=velo.cwd,
            capture_output=True,
            text=True,
        )
        return re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", done.stderr, re.M)

    plain = trail(velo.plain_environment())
    accelerated = trail(injected(velo))

    assert set(accelerated) - set(plain) <= {"mmap", "sitecustomize", "marshal", "posix", "time", "atexit"}


def traced(command: list[str], environment: Mapping[str, str], cwd: Path, log: Path) -> list[str]:
    """File-related system calls of a command, one line each."""
    subprocess.run(
        ["strace", "-o", str(log), "-e", "trace=%file,%desc", *command],
        env=dict(environment),
        cwd=cwd,
        check=True,
        capture_output=True,
    )
    return [line for line in log.read_text().splitlines() if re.match(r"[a-z_0-9]+\(", line)]


@pytest.mark.core
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_system_calls_of_the_install(tree: Tree, velo: Velo) -> None:
    """Installing the hook takes at most forty file-related system calls more than a plain start."""
    tree.write({"app.py": "import json\n"})
    velo.learn("app.py")
    velo.learn("app.py")
    log = velo.folder / "strace"
    command = [str(velo.python), "-c", "pass"]
    traced(command, velo.plain_environment(), velo.cwd, log)

    plain = traced(command, velo.plain_environment(), velo.cwd, log)
    accelerated = traced(command, injected(velo), velo.cwd, log)

    extra = len(accelerated) - len(plain)
    assert extra <= LARGEST_COUNT, "\n".join(accelerated)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_serving_asks_less_than_plain_python(tree: Tree, velo: Velo) -> None:
    """A program of many modules makes fewer file-related system calls with Velo than without, install
    included.
    """
    app = "import json, argparse, logging, unittest, email.message, http.client, box.a, box.b, box.c\n"
    tree.write({"app.py": app, "box/__init__.py": "", **{f"box/{name}.py": "" for name in "abc"}})
    velo.both("app.py", served=40)
    log = velo.folder / "strace"
    command = [str(velo.python), "app.py"]

    plain = traced(command, velo.plain_environment(), velo.cwd, log)
    accelerated = traced(command, injected(velo), velo.cwd, log)

    assert len(accelerated) < len(plain)


def test_nothing_is_mapped_or_open_in_vain(tree: Tree, velo: Velo) -> None:
    """The hook keeps no descriptor open, and maps nothing that it does not use."""
    program = """
        import os
        print(sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd > "2"
              and os.path.exists(f"/proc/self/fd/{fd}")))
        """
    tree.write({"app.py": program})

    velo.both("app.py", served=0)

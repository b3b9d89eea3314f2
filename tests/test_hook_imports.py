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

from tests.support.running import CHECKOUT, HAS_NATIVE, Velo
from tests.support.tree import Tree

# File-related system calls: of the install, and of a whole start of 340 modules whose files are not asked.
MOST_OF_INSTALL, MOST_OF_START = 20, 36
# What anybody has to pay who wants to be there first: CPython looks for it, and it looks for the next one.
HANDS_OVER = """
import sys
del sys.modules[__name__]
folder = __file__.rpartition("/")[0]
sys.path.remove(folder)
sys.path_importer_cache.pop(folder, None)
import sitecustomize
"""
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

    assert set(accelerated) - set(plain) <= {"mmap", "sitecustomize", "marshal", "posix", "time"}


@pytest.mark.core
def test_tracers_see_no_file_of_ours(tree: Tree, velo: Velo) -> None:
    """What is loaded late runs while a program imports; tracers are shown importlib's file name for it."""
    tree.write({"part.py": "import dataclasses, json\n"})
    program = """
        import sys
        seen = set()
        sys.settrace(lambda frame, event, argument: seen.add(frame.f_code.co_filename.rpartition("/")[2]))
        import part
        sys.settrace(None)
        print(sorted(name for name in seen if "site" in name or "velo" in name), "part.py" in seen)
        """
    tree.write({"app.py": program})
    for _ in range(3):
        done = velo.learn("app.py")
        assert done.stdout == "[] True\n"
    assert done.served >= 3


def traced(command: list[str], environment: Mapping[str, str], cwd: Path, log: Path) -> list[str]:
    """File-related system calls of a command, one line each; memory is mapped by the same call as files."""
    subprocess.run(
        ["strace", "-o", str(log), "-e", "trace=%file,%desc", *command],
        env=dict(environment),
        cwd=cwd,
        check=True,
        capture_output=True,
    )
    lines = log.read_text().splitlines()
    return [line for line in lines if re.match(r"[a-z_0-9]+\(", line) and "MAP_ANONYMOUS" not in line]


def fewest(command: list[str], environment: Mapping[str, str], cwd: Path, log: Path) -> list[str]:
    """As `traced`, of three: what has to be read from the disk is read ahead, which takes more calls."""
    return min((traced(command, environment, cwd, log) for _ in range(3)), key=len)


def calls_about(folders: tuple[Path, ...], lines: list[str]) -> list[str]:
    """The calls that name one of these folders or what is in it, and all on what was opened there."""
    found, opened = [], set()
    for line in lines:
        descriptor = re.search(r"^mmap\(.*, (\d+), \w+\) |^\w+\((\d+)[,)]", line)
        if any(f'"{folder}' in line for folder in folders):
            found.append(line)
            result = re.search(r"^openat.* = (\d+)$", line)
            opened |= {result[1]} if result else set()
        elif descriptor and opened & {*descriptor.groups()}:
            found.append(line)
            if line.startswith("close("):
                opened.remove(descriptor[2])
    return found


@pytest.mark.core
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_system_calls_of_the_install(tree: Tree, velo: Velo, tmp_path: Path) -> None:
    """Installing the hook takes at most twenty file-related system calls more than a `sitecustomize` that
    does nothing but hand over to the next one.
    """
    tree.write({"app.py": "import json\n"})
    velo.learn("app.py")
    velo.learn("app.py")
    log = velo.folder / "strace"
    command = [str(velo.python), "app.py"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(HANDS_OVER)
    handing_over = velo.plain_environment(PYTHONPATH=str(other))
    tree.write({"app.py": ""})

    others = fewest(command, handing_over, velo.cwd, log)
    ours = fewest(command, injected(velo), velo.cwd, log)

    assert len(ours) - len(others) <= MOST_OF_INSTALL, "\n".join(ours)


@pytest.mark.skipif(
    not HAS_NATIVE, reason="without the native module files are read, and there are no images"
)
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("check", ["root", "none"])
def test_system_calls_of_a_start(tree: Tree, velo: Velo, check: str) -> None:
    """A start of 340 modules makes fewer than forty file-related system calls of ours, with all that Velo
    does for it: regular expressions, dataclasses and distributions included.
    """
    modules = [f"box.m{number:03}" for number in range(300)]
    app = f"import dataclasses, json, logging, email.message, importlib.metadata, {', '.join(modules)}\n"
    tree.write({"app.py": app + "list(importlib.metadata.entry_points())\n", "box/__init__.py": ""})
    tree.write({f"{name.replace('.', '/')}.py": f"def f(): return {name!r}\n" for name in modules})
    for _ in range(3):
        served = velo.learn("app.py", env={"VELO_CHECK": check}).served
    assert served >= 340
    environment = injected(velo, VELO_CHECK=check)
    folders = velo.home, CHECKOUT / "velo_import", velo.cwd / "box"

    command = [str(velo.python), "app.py"]
    ours = calls_about(folders, fewest(command, environment, velo.cwd, velo.folder / "strace"))

    assert len(ours) <= MOST_OF_START, "\n".join(ours)


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

# SPDX-License-Identifier: Apache-2.0
"""Exact Nodes, one of each line that Velo accelerates, brought by npm and kept in a cache folder.

`python -m tests.support.nodes` fetches what is missing and prints them all. Needs npm and the registry it
is set up for; without them `Unavailable` says what was missing, and the tests skip with that reason.

Surprise: nothing is installed. `npm pack` brings a plain archive whose `bin/node` runs from wherever it lies,
and of which the rest (headers, documentation) is left out.
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

# The last of each line when this was written: an exact number, because ranges are answered in no order.
VERSIONS = ("18.20.8", "20.20.2", "22.23.3", "24.21.0", "26.10.0")
OLD_VERSIONS = ("12.22.12", "14.21.3", "16.20.2")  # Which Velo leaves alone.
HERE = "here"  # Stands for the Node on PATH.
LIMIT = 400  # Seconds for one archive of some 50 MB.
MACHINES = {"x86_64": "x64", "aarch64": "arm64"}


class Unavailable(Exception):
    """There is no such Node and none can be brought; the text says why."""


def folder() -> Path:
    """Where they are kept; VELO_TESTS_NODES names another place."""
    if named := os.environ.get("VELO_TESTS_NODES"):
        return Path(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "velo-tests" / "nodes"


@functools.cache
def attempt(version: str) -> Path | str:
    """The executable, or the reason why there is none. Tried once in a session: a failure takes as long as a
    success.
    """
    try:
        return ready(version)
    except Unavailable as reason:
        return str(reason)


def node(version: str) -> Path:
    """The executable of exactly this version, brought on first use."""
    answer = attempt(version)
    if isinstance(answer, str):
        raise Unavailable(answer)
    return answer


def ready(version: str) -> Path:
    if version == HERE:
        return on_path()
    executable = folder() / version / "bin" / "node"
    if executable.exists():
        return executable
    machine = MACHINES.get(platform.machine())
    if not sys.platform.startswith("linux") or machine is None:
        raise Unavailable(f"there are no Nodes for {sys.platform} on {platform.machine()}")
    folder().mkdir(parents=True, exist_ok=True)
    with open(folder() / f"{version}.lock", "w") as lock:  # Two test runs: the second waits, then finds it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not executable.exists():
            fetch(f"node-linux-{machine}@{version}", executable)
    return executable


def on_path() -> Path:
    """The Node that is installed, if Velo accelerates it."""
    found = shutil.which("node")
    if found is None:
        raise Unavailable("there is no node on PATH")
    said = said_version(found)
    if not said or int(said.partition(".")[0]) < 18:
        raise Unavailable(f"the node on PATH is {said or 'none'}")
    return Path(os.path.realpath(found))


def said_version(executable: str | Path) -> str:
    """What a Node says that it is: `20.20.2`."""
    said = subprocess.run([executable, "--version"], capture_output=True, text=True).stdout.strip()
    return said.removeprefix("v")


def versions(*, core: bool = False) -> list[Any]:
    """What a story is parametrised with: the Node on PATH; all lines as well if it is a core story, and
    otherwise when the slow tests are asked for.
    """
    marks = [] if core else [pytest.mark.slow]
    return [HERE, *(pytest.param(version, marks=marks) for version in VERSIONS)]


def fetch(package: str, executable: Path) -> None:
    """Take `bin/node` out of a package, and let it appear all at once."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("there is no npm to bring Nodes")
    with tempfile.TemporaryDirectory(dir=folder()) as name:
        place = Path(name)
        run(npm, "pack", package, "--silent", "--pack-destination", str(place))
        archive = next(place.glob("*.tgz"), None)
        if archive is None:
            raise Unavailable(f"npm brought no {package}")
        with tarfile.open(archive) as opened:
            source = opened.extractfile("package/bin/node")
            assert source is not None
            made = place / "made" / "bin" / "node"
            made.parent.mkdir(parents=True)
            with open(made, "wb") as target:
                shutil.copyfileobj(source, target)
        made.chmod(0o755)
        os.rename(place / "made", executable.parents[1])


def run(*command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NODE_OPTIONS"}
    try:
        done = subprocess.run(command, capture_output=True, env=environment, timeout=LIMIT)
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unavailable(f"{command[0]}: {problem}") from problem
    if done.returncode != 0:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise Unavailable(
            f"{os.path.basename(command[0])} {command[1]} failed ({(said or ['no output'])[0]})"
        )


if __name__ == "__main__":
    for version in VERSIONS:
        try:
            print(node(version))
        except Unavailable as reason:
            print(f"no Node {version}: {reason}", file=sys.stderr)

# SPDX-License-Identifier: Apache-2.0
"""Which tools there are and how each is started: read from tools.toml. Knows how their words are compared.

Also installs their packages: once, from the lock file, without running any script of theirs.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = Path(__file__).with_name("programs")
LIST = Path(__file__).with_name("tools.toml")
OUT = "out"
LIMIT = 900  # Seconds for npm to bring some 1,000 packages.


class Unavailable(Exception):
    """The packages cannot be brought; the text says why."""


@dataclass(frozen=True)
class Tool:
    """One tool, and a job for it."""

    name: str
    package: str
    commands: tuple[tuple[str, ...], ...]
    folder: str = "."
    copies: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    passing: tuple[str, ...] = ()
    varies: tuple[str, ...] = ()
    unordered: bool = False

    def alike(self, text: str) -> str:
        """What a run said, without what differs between any two runs."""
        for pattern in self.varies:
            text = re.sub(pattern, "<varies>", text)
        return "\n".join(sorted(text.splitlines())) if self.unordered else text

    def written(self, project: Path) -> dict[str, str]:
        """What a run has left below out/: paths and digests."""
        found = {}
        for path in sorted((project / OUT).rglob("*")):
            name = path.relative_to(project / OUT).as_posix()
            if path.is_file() and not any(fnmatch.fnmatch(name, each) for each in (*self.passing, "trees/*")):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def read_tools(path: Path = LIST) -> dict[str, Tool]:
    """All tools of the list, by name."""
    found = {}
    for name, entry in tomllib.loads(path.read_text()).items():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        values["commands"] = tuple(tuple(words) for words in entry["commands"])
        found[name] = Tool(name=name, **values)
    return found


def install(folder: Path) -> Path:
    """The project with its packages, made on first use.

    Raises:
        Unavailable: npm is missing, or cannot bring them.
    """
    names = sorted(
        path for path in PROGRAMS.rglob("*") if path.is_file() and "node_modules" not in path.parts
    )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in names)).hexdigest()[:8]
    project = folder / f"tools-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (project / "node_modules" / ".package-lock.json").exists():
            npm = shutil.which("npm")
            if npm is None:
                raise Unavailable("there is no npm to bring the packages")
            shutil.rmtree(project, ignore_errors=True)
            shutil.copytree(PROGRAMS, project)
            words = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            environment = {name: value for name, value in os.environ.items() if name != "NODE_OPTIONS"}
            try:
                done = subprocess.run(words, cwd=project, env=environment, capture_output=True, timeout=LIMIT)
            except (OSError, subprocess.TimeoutExpired) as problem:
                raise Unavailable(f"npm ci: {problem}") from problem
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
                raise Unavailable(f"npm ci failed ({said[-1]})")
    return project

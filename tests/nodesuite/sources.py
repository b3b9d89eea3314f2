# SPDX-License-Identifier: Apache-2.0
"""Where Node's own tests come from: a public repository that has copies of them, one commit for a release.

Fetched once by `git clone` and kept in a cache folder; no package registry has them, and Node's whole history
is too large. VELO_TESTS_NODE_SUITE names a clone that is already there. The surprise: a clone may lack some
large files, which no test here needs; what is missing is left out.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

from tests.support import nodes

REPOSITORY = "https://github.com/denoland/node_test"
# By line of Node: the commit whose tests are nearest to the release in tests/support/nodes.py.
COMMITS = {
    "18": ("18.18.2", "b114fad0ec952fddddefc8972c43d2959388bbc1"),
    "20": ("20.11.1", "be77956923934fee955d80a3e53c4fa493fe1be0"),
    "22": ("23.9.0", "dfcae8dc3d7ed7dd4d6d51764d307468c849915d"),
    "24": ("24.12.0", "170b25ab9080b9d58d21b582fbf28ee5676b8387"),
    "26": ("25.8.1", "c5baef08e6692c16940b82e2ee5d778a11da64d7"),
}
FOLDERS = (
    "test/common",
    "test/fixtures",
    "test/parallel",
    "test/sequential",
    "test/es-module",
    "test/module-hooks",
)
UNUSED = ("test/fixtures/postject-copy/", "test/fixtures/wpt/")
LIMIT = 300  # Seconds for a clone of some 60 MB.


class Unavailable(Exception):
    """The tests are not there and cannot be brought; the text says why."""


def sources(line: str) -> Path:
    """The folder that holds `test/`, of the tests for a line of Node: `20`. Brought on first use.

    Raises:
        Unavailable: nobody keeps such tests, or they cannot be fetched from here.
    """
    if line not in COMMITS:
        raise Unavailable(f"no tests of Node {line} are kept anywhere")
    commit = COMMITS[line][1]
    folder = nodes.folder().parent / "node-suite"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / commit
    with open(folder / "lock", "w") as lock:  # Two test runs: the second waits, then finds it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            partial = folder / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            unpack(repository(folder), commit, partial)
            os.rename(partial, made)
    return made


def repository(folder: Path) -> Path:
    """A clone, ours or the one that is named."""
    if named := os.environ.get("VELO_TESTS_NODE_SUITE"):
        return Path(named).absolute()
    clone = folder / "node_test.git"
    if not clone.is_dir():
        partial = folder / "partial.git"
        shutil.rmtree(partial, ignore_errors=True)
        git("clone", "--quiet", "--bare", REPOSITORY, str(partial))
        os.rename(partial, clone)
    return clone


def unpack(clone: Path, commit: str, target: Path) -> None:
    """Write the files of a commit that tests may read."""
    listed = git("-C", str(clone), "ls-tree", "-r", "-z", commit, "--", *FOLDERS).decode()
    entries = [entry.partition("\t")[::2] for entry in listed.split("\0") if entry]
    wanted = [(about.split(" "), name) for about, name in entries if not name.startswith(UNUSED)]
    if not wanted:
        raise Unavailable(f"{clone} has no {commit}")
    asked = "".join(f"{about[2]}\n" for about, _ in wanted).encode()
    answers = git("-C", str(clone), "cat-file", "--batch", asked=asked)
    at = 0
    for (mode, *_), name in wanted:
        end = answers.index(b"\n", at)
        head = answers[at:end].split()
        at = end + 1
        if head[-1] == b"missing":
            continue
        data = answers[at : at + int(head[2])]
        at += len(data) + 1
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode == "120000":
            path.symlink_to(data.decode())
        else:
            path.write_bytes(data)
            path.chmod(0o755 if mode == "100755" else 0o644)


def git(*arguments: str, asked: bytes = b"") -> bytes:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}
    try:
        done = subprocess.run(
            ["git", *arguments], input=asked, capture_output=True, env=environment, timeout=LIMIT
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unavailable(f"git: {problem}") from problem
    if done.returncode != 0:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise Unavailable(f"git {arguments[0]} failed ({(said or ['no output'])[-1]})")
    return done.stdout

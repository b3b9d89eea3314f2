# SPDX-License-Identifier: Apache-2.0
"""The Nodes of this machine: found by looking, and asked who they are.

Knows PATH and where version managers keep what they install; what an identity is made of is the preload's own
business (node_accel), which is what answers. The surprise: a Node on PATH is often a shim that starts another
one, so whoever answers says where it is, and is counted once.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from velo_import.errors import VeloError

from ..owner import shown

PATIENCE_SECONDS = 30.0
OLDEST = (18, 0)
_HINT = "programs run unchanged under it; name another with --node"
# What makes a Node another one, or slower to start, than it would be in a program.
_UNWANTED = ("NODE_", "VELO")
# Variable, the folder where it is not set, and what follows: of each version manager that is widely used.
_MANAGERS = (
    ("NVM_DIR", "~/.nvm", "versions/node/*/bin/node"),
    ("FNM_DIR", "~/.local/share/fnm", "node-versions/*/installation/bin/node"),
    ("VOLTA_HOME", "~/.volta", "tools/image/node/*/bin/node"),
    ("ASDF_DATA_DIR", "~/.asdf", "installs/nodejs/*/bin/node"),
    ("MISE_DATA_DIR", "~/.local/share/mise", "installs/node/*/bin/node"),
    ("NODENV_ROOT", "~/.nodenv", "versions/*/bin/node"),
    ("N_PREFIX", "/usr/local", "n/versions/node/*/bin/node"),
)


class Node(NamedTuple):
    """What one Node says about itself; `identity` as in FORMAT.md, section 14.1."""

    executable: str
    identity: str

    @property
    def version(self) -> str:
        return self.identity.split("\n")[1].removeprefix("v")


def find_nodes(environ: Mapping[str, str] | None = None) -> list[Node]:
    """Every Node found that Velo can accelerate, the one on PATH first; each once."""
    found: dict[str, Node] = {}
    for path in dict.fromkeys(map(os.path.realpath, candidates(os.environ if environ is None else environ))):
        try:
            node = ask(path)
        except VeloError:  # Too old, or broken: programs run unchanged under it.
            continue
        found.setdefault(node.executable, node)
    return list(found.values())


def candidates(environ: Mapping[str, str]) -> Iterator[str]:
    """Executables that may be Nodes: those on PATH, then those that version managers have installed."""
    for folder in environ.get("PATH", "").split(os.pathsep):
        for name in ("node", "nodejs"):
            path = os.path.join(folder, name)
            if folder and os.path.isfile(path) and os.access(path, os.X_OK):
                yield path
    home = environ.get("HOME", "")
    for variable, default, pattern in _MANAGERS:
        folder = environ.get(variable) or default.replace("~", home, 1)
        if os.path.isabs(folder):
            yield from sorted(glob(os.path.join(folder, pattern)), reverse=True)


def ask(executable: str) -> Node:
    """Who a Node is.

    Raises:
        VeloError: it cannot be run, is none, or is one that Velo leaves alone.
    """
    first, *_ = answers_of(executable, (), "", PATIENCE_SECONDS)
    try:
        node = Node(str(first["execPath"]), str(first["identity"]))
        version = tuple(map(int, node.version.split(".")[:2]))
    except (KeyError, ValueError, IndexError):
        raise VeloError(f"{shown(executable)} is no Node that Velo knows", hint=_HINT) from None
    if version < OLDEST:
        raise VeloError(f"{shown(executable)} is Node {node.version}; Velo needs 18 or later", hint=_HINT)
    return node


def answers_of(
    executable: str, options: Sequence[str], records: str, patience: float
) -> list[dict[str, Any]]:
    """What our worker says in a Node (FORMAT.md, section 14.5): first about itself, then to each record.

    Raises:
        VeloError: it cannot be run, or does not answer as our worker does.
    """
    try:
        # No pipe: Node 18 that has read one takes every link for the end of a path.
        with tempfile.TemporaryFile() as asked:
            asked.write(records.encode())
            asked.seek(0)
            done = subprocess.run(
                [executable, *options, str(_worker())],
                stdin=asked,
                capture_output=True,
                env=plain_environment(os.environ),
                cwd="/",
                timeout=patience,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "it gave no answer"
        raise VeloError(f"cannot run {shown(executable)}: {reason.lower()}", hint=_HINT) from None
    try:
        answers = [json.loads(line) for line in done.stdout.splitlines()]
    except ValueError:
        answers = []
    if done.returncode or not answers:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "it said nothing"
        raise VeloError(f"{shown(executable)} cannot look at modules: {said}", hint=_HINT)
    return answers


def _worker() -> Path:
    """What a Node runs to say who it is, and to compile and resolve without running anything."""
    package = Path(__file__).parents[2]
    for folder in (package / "_node", package.parent / "node_accel"):
        if (folder / "worker.cjs").is_file():
            return folder / "worker.cjs"
    raise VeloError("this Velo was installed without its part for Node", hint="install Velo again")


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The child's environment without what changes how Node starts, and with Velo switched off."""
    plain = {name: value for name, value in environ.items() if not name.startswith(_UNWANTED)}
    plain["VELO_DISABLE"] = "1"
    return plain

# SPDX-License-Identifier: Apache-2.0
"""What a Python says about itself.

Asks an interpreter by running it; which one that is, and the question, are owner.py's, and what the answer
means for a manifest is format/manifest.py's.
"""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

from velo_import.errors import VeloError
from velo_import.format.manifest import Build

from .owner import QUESTION, answer_in, plain_environment, shown

OLDEST = (3, 11)
PATIENCE_SECONDS = (
    60.0  # A cold interpreter on a slow network disk needs seconds; a hung one would need for ever.
)


class Interpreter(NamedTuple):
    """What one CPython says about itself; every field is its own answer, none is guessed from a path."""

    executable: str
    prefix: str
    base_prefix: str
    version: str
    implementation: str
    cache_tag: str
    magic: bytes
    abiflags: str
    suffixes: tuple[str, ...]  # In the order in which the standard finder tries them.
    gil_disabled: bool
    stdlib: tuple[str, ...]
    sys_path: tuple[
        str, ...
    ]  # As a plain start gives it, without the script's own folder; may name missing folders.

    def build(self, optimisation: int = 0) -> Build:
        return Build(self.cache_tag, self.magic, optimisation, self.abiflags, self.suffixes)


class Probe:
    """A question on its way: the interpreter starts while the caller goes on working."""

    def __init__(self, python: str) -> None:
        self.said = b""  # The answer as it came; equal bytes are an equal answer.
        self._python = python
        try:
            # -B: the question must not leave .pyc files in the user's environment.
            self._process = subprocess.Popen(
                [python, "-E", "-s", "-B", "-c", QUESTION],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=plain_environment(os.environ),
                cwd="/",
            )
        except OSError as error:
            raise VeloError(
                f"cannot run {shown(python)}: {error.strerror}",
                hint="give a CPython 3.11 or later with --python",
            ) from None

    def answer(self) -> Interpreter:
        """The interpreter's answer; refuses what Velo cannot accelerate."""
        try:
            output, complaint = self._process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.abandon()
            raise VeloError(
                f"{shown(self._python)} gave no answer in {PATIENCE_SECONDS:.0f} s",
                hint="run it by hand: a .pth file or sitecustomize there may be waiting for something",
            ) from None
        self.said = answer_in(output)
        return _read_answer(self._python, self.said, complaint, self._process.returncode)

    def abandon(self) -> None:
        """Stop asking; used when the caller has failed in the meantime."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def probe(python: str) -> Interpreter:
    """Ask `python` (a path, or a name on PATH) who it is."""
    return Probe(python).answer()


def _read_answer(python: str, answer: bytes, complaint: bytes, returncode: int) -> Interpreter:
    text = answer.decode("utf-8", "surrogateescape")
    said: dict[str, list[str]] = {}
    for record in text.split("\0"):
        name, _, value = record.partition("=")
        said.setdefault(name, []).append(value)
    if "end" not in said:
        last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise VeloError(
            f"{shown(python)} does not work as a Python interpreter (exit code {returncode})"
            + (f": {last}" if last else ""),
            hint="create the environment anew, or name another interpreter with --python",
        )
    implementation, version = said["implementation"][0], said["version"][0]
    if implementation != "cpython":
        raise VeloError(
            f"{shown(python)} is {implementation}, and its bytecode is not CPython's",
            hint="programs run unchanged under it; Velo speeds up CPython 3.11 or later",
        )
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise VeloError(
            f"{shown(python)} is Python {version}; Velo needs 3.11 or later",
            hint="programs run unchanged under it; name a later interpreter with --python",
        )
    one = {name: values[0] for name, values in said.items()}
    if not one["cache_tag"]:
        raise VeloError(
            f"{shown(python)} has bytecode caching switched off in its build",
            hint="name another with --python",
        )
    path = tuple(dict.fromkeys(folder for folder in said.get("path", ()) if folder.startswith("/")))
    return Interpreter(
        executable=one["executable"] or python,
        prefix=one["prefix"],
        base_prefix=one["base_prefix"],
        version=version,
        implementation=implementation,
        cache_tag=one["cache_tag"],
        magic=bytes.fromhex(one["magic"]),
        abiflags=one["abiflags"],
        suffixes=tuple(said["suffix"]),
        gil_disabled=bool(one["gil_disabled"]),
        stdlib=_stdlib_folders(one["stdlib"], path),
        sys_path=path,
    )


def _stdlib_folders(main: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """The folders of `path` that hold the standard library: that of os.py, and lib-dynload wherever it is."""
    return tuple(folder for folder in path if folder == main or os.path.basename(folder) == "lib-dynload")

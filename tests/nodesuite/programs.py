# SPDX-License-Identifier: Apache-2.0
"""Which of Node's tests are run, and how each is started. Pure but for reading the tests.

The surprise: a test of Node's is a program that says in comments which options and variables it wants; what
it came to is its exit code, and a line `1..0 # Skipped` if it did not want to run here.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).with_name("suite.toml")
SUFFIXES = (".js", ".mjs", ".cjs")
PASSED, SKIPPED, FAILED = "passed", "skipped", "failed"
_FLAGS = re.compile(r"^// Flags:(.*)$", re.MULTILINE)
_VARIABLES = re.compile(r"^// Env:(.*)$", re.MULTILINE)
_SKIPPED = re.compile(rb"^1\.\.0 # [Ss]kipped", re.MULTILINE)


class Program(NamedTuple):
    """One test: its name is its path below `test/`."""

    name: str
    options: tuple[str, ...]
    variables: Mapping[str, str]


def read_parts(path: Path = LIST) -> dict[str, tuple[str, ...]]:
    """Patterns by part, in the order of the list."""
    return {name: tuple(entry["tests"]) for name, entry in tomllib.loads(path.read_text()).items()}


def programs_of(sources: Path, parts: Mapping[str, tuple[str, ...]]) -> dict[str, list[Program]]:
    """The tests that there are, by part; each in one part."""
    taken: set[str] = set()
    found: dict[str, list[Program]] = {}
    for part, patterns in parts.items():
        names = {
            path.relative_to(sources / "test").as_posix()
            for pattern in patterns
            for suffix in SUFFIXES
            for path in (sources / "test").glob(pattern + suffix)
        }
        found[part] = [read_program(sources, name) for name in sorted(names - taken)]
        taken |= names
    return found


def read_program(sources: Path, name: str) -> Program:
    text = (sources / "test" / name).read_text(errors="replace")
    options = [option for line in _FLAGS.findall(text) for option in shlex.split(line)]
    pairs = [pair.partition("=") for line in _VARIABLES.findall(text) for pair in shlex.split(line)]
    return Program(name, tuple(options), {variable: value for variable, _, value in pairs})


def outcome_of(code: int | None, stdout: bytes) -> str:
    """What a test came to; `code` is None if it did not end by itself."""
    if code != 0:
        return FAILED
    return SKIPPED if _SKIPPED.search(stdout) else PASSED

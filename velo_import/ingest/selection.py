# SPDX-License-Identifier: Apache-2.0
"""Which part of a tree an ingest takes: what the user includes and excludes, by patterns as in .gitignore.

Knows patterns and paths; what happens without any (secrets and histories stay out) is decided where the
files are met. The surprise: a folder that is left out is not entered, so nothing below it can be included
again, exactly as git has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from velo_import.errors import UsageFault

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec


class Selection:
    """What the user says about the files of one folder. Exclusion wins over inclusion."""

    def __init__(self, base: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """
        Args:
            base: the absolute folder that patterns are relative to; they say nothing about other files.
            include: takes in what is left out by default.
            exclude: leaves out more.

        Raises:
            UsageFault: a pattern that can match nothing.
        """
        self._base = base.rstrip("/") + "/"
        self._include = _compiled(include)
        self._exclude = _compiled(exclude)
        self.is_empty = self._include is None and self._exclude is None

    def verdict(self, path: str) -> bool | None:
        """True: take it, False: leave it out, None: nobody said. The path of a folder ends in `/`."""
        if self.is_empty or not path.startswith(self._base) or path == self._base:
            return None
        name = path[len(self._base) :]
        if self._exclude is not None and self._exclude.match_file(name):
            return False
        if self._include is not None and self._include.match_file(name):
            return True
        return None


def _compiled(patterns: Sequence[str]) -> GitIgnoreSpec | None:
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec  # 15 ms that an ingest without patterns need not pay

    for pattern in patterns:
        try:
            (read,) = GitIgnoreSpec.from_lines([pattern]).patterns
        except ValueError:
            raise _meaningless(pattern) from None
        if read.include is None:
            raise _meaningless(pattern)
    # Shells complete to `./name`, which git would take for a folder called `.`.
    return GitIgnoreSpec.from_lines(
        pattern[1:] if pattern.startswith("./") else pattern for pattern in patterns
    )


def _meaningless(pattern: str) -> UsageFault:
    return UsageFault(
        f"the pattern {pattern!r} can match nothing",
        hint="patterns are written as in .gitignore and are relative to the folder: `*.log`, `data/`",
    )


EVERYTHING = Selection("/")

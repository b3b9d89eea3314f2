# SPDX-License-Identifier: Apache-2.0
"""Node programs with and without Velo: what running.py does for Python, and when a learner of theirs is done.

Surprise: it takes three runs until nothing is left to learn. The first is noted, the second is served and
leaves the bytecode of what it ran, the third is what every later one is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.running import Result, Velo

TURNS = ("noted", "served", "captured")


class NodeVelo(Velo):
    """One store, one Node, one folder to stand in."""

    def wait_learned(self, limit: float = 180.0) -> None:
        """A Node cannot hand its lock on: what it started is known by a mark that the learner removes."""
        end = time.monotonic() + limit
        while any((self.home / "run/node").glob("*.started")):
            assert time.monotonic() < end, f"no learner has ended after {limit} s"
            time.sleep(0.02)
        super().wait_learned(limit)

    def same(
        self,
        *arguments: str | Path,
        served: int = 1,
        alike: Callable[[str], str] = lambda text: text,
        between: Callable[[], object] = lambda: None,
        env: Mapping[str, str | None] | None = None,
    ) -> list[Result]:
        """Plain, then three accelerated runs: one answer, and at least `served` modules in the later two."""
        between()
        plain = self.plain(*arguments, env=env)
        expected = alike(plain.stdout), alike(plain.stderr), plain.code
        runs = []
        for turn in TURNS:
            between()
            result = self.learn(*arguments, env=env)
            assert (alike(result.stdout), alike(result.stderr), result.code) == expected, turn
            assert result.errors == 0, f"{turn}: {result.stats}"
            runs.append(result)
        for turn, result in zip(TURNS[1:], runs[1:], strict=True):
            assert result.served >= served, f"{turn}: {result.served} of {served}: {self.story(runs)}"
        return [plain, *runs]

    def differs_not(self, *arguments: str | Path, env: Mapping[str, str | None] | None = None) -> Result:
        """One more accelerated run says what a plain one says now."""
        plain = self.plain(*arguments, env=env)
        result = self.learn(*arguments, env=env)
        assert result.answer == plain.answer, self.story([result])
        assert result.errors == 0, result.stats
        return result

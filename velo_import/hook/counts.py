# SPDX-License-Identifier: Apache-2.0
"""What happened in this process: how many modules were served, and why the others were not."""


class Counts:
    """Plain counters, bumped on the hot path and read at exit.

    `learn` becomes true when something was met that a learning run could serve next time.
    """

    __slots__ = (
        "deferred",
        "errors",
        "install_us",
        "learn",
        "native",
        "reasons",
        "served",
        "stale",
        "verify",
    )

    def __init__(self, verify: bool = False) -> None:
        self.verify = verify
        self.install_us = 0
        self.reset()

    def reset(self) -> None:
        """Start again from zero: a forked child counts for itself."""
        self.served = self.native = self.deferred = self.stale = self.errors = 0
        self.reasons: dict[str, int] = {}
        self.learn = False

    def defer(self, reason: str) -> None:
        """Count a module left to the next finder for a reason that no learning run would change."""
        self.deferred += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def defer_learnable(self, reason: str) -> None:
        """Count a module left to the next finder that a learning run could serve next time."""
        self.learn = True
        self.defer(reason)

    def defer_stale(self, reason: str) -> None:
        """Count a module whose source or folder is no longer what the manifest describes."""
        self.stale += 1
        self.defer_learnable(reason)

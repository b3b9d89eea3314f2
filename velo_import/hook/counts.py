# SPDX-License-Identifier: Apache-2.0
"""What happened in this process: how many modules were served, and why the others were not."""


class Counts:
    """Plain counters, bumped on the hot path and read at exit.

    `wanted` maps modules that a learning run could serve next time to their files. They are kept by name
    because a module whose import failed is in no other list at exit.
    """

    __slots__ = (
        "deferred",
        "errors",
        "install_us",
        "native",
        "reasons",
        "served",
        "stale",
        "verify",
        "wanted",
    )

    def __init__(self, verify: bool = False) -> None:
        self.verify = verify
        self.install_us = 0
        self.reset()

    def reset(self) -> None:
        """Start again from zero: a forked child counts for itself."""
        self.served = self.native = self.deferred = self.stale = self.errors = 0
        self.reasons: dict[str, int] = {}
        self.wanted: dict[str, str] = {}

    def defer(self, reason: str) -> None:
        """Count a module left to the next finder for a reason that no learning run would change."""
        self.deferred += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def defer_learnable(self, reason: str, name: str, origin: str) -> None:
        """Count a module left to the next finder that learning from file `origin` could serve next time."""
        self.wanted[name] = origin
        self.defer(reason)

    def defer_stale(self, reason: str, name: str, origin: str) -> None:
        """Count a module whose source or folder is no longer what the manifest describes."""
        self.stale += 1
        self.defer_learnable(reason, name, origin)

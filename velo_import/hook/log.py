# SPDX-License-Identifier: Apache-2.0
"""VELO_LOG: one line per module that Velo was asked for, to a file or (VELO_LOG=1) to stderr.

Loaded only when the variable is set, so the plain finder carries no logging at all.
"""

from os import environ
from posix import O_APPEND, O_CLOEXEC, O_CREAT, O_WRONLY, close, getpid, open, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def append_line(target: str, line: str) -> None:
    """Append one line in one write: lines of processes that share a file stay whole. Failure is silence."""
    data = (line + "\n").encode("utf-8", "backslashreplace")
    try:
        if target == "1":
            write(2, data)
            return
        descriptor = open(target, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o600)
        try:
            write(descriptor, data)
        finally:
            close(descriptor)
    except OSError:
        pass


class LoggingFinder:
    """Asks the finder it wraps and writes down the answer. Its name on `sys.meta_path` is all it changes."""

    def __init__(self, finder: "Any") -> None:
        self.finder = finder
        self.target = environ["VELO_LOG"]

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """As `VeloFinder.find_spec`."""
        counts = self.finder.counts
        before, errors = dict(counts.reasons), counts.errors
        spec = self.finder.find_spec(name, path, target)
        if spec is not None:
            outcome = f"found {spec.origin}"
        else:
            after = counts.reasons
            reasons = [reason for reason in after if after[reason] != before.get(reason, 0)]
            reasons += ["error"] if counts.errors != errors else []
            # None: it is never ours (sitecustomize).
            outcome = f"left to Python: {reasons[0]}" if reasons else "left to Python"
        append_line(self.target, f"velo[{getpid()}] {name}: {outcome}")
        return spec

    def invalidate_caches(self) -> None:
        """As `VeloFinder.invalidate_caches`."""
        self.finder.invalidate_caches()

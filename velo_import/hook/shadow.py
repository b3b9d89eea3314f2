# SPDX-License-Identifier: Apache-2.0
"""VELO_CHECK=shadow: every answer of ours is compared with the one that Python gives, and Python's is used
where they differ.

Loaded only then. What was seen is counted for VELO_STATS, written to VELO_LOG at once, and left in the store
when the program ends (farewell.py), for `velo doctor`. The surprise: a module's code is compared when
it is loaded and not when it is found, because CPython's loader writes a cached file, and a program that only
asks where a module is must not cause that.
"""

from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import PathFinder, SourceFileLoader
from os import environ
from posix import getpid

from velo_import.hook.loader import VeloSourceLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

    from velo_import.hook.counts import Counts

MISSING: "Any" = object()
CODE = type(compile("", "", "exec"))
MOST_KEPT = 20  # differences described for each process; all are counted
# All that a code object is made of; constants last, because they are looked into.
PARTS = (
    "co_filename",
    "co_name",
    "co_qualname",
    "co_flags",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
    "co_nlocals",
    "co_names",
    "co_code",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_stacksize",
    "co_firstlineno",
    "co_linetable",
    "co_exceptiontable",
)


class ShadowFinder:
    """Asks the finder it wraps and `PathFinder`; gives the answer of the first where they agree, and None, so
    that `PathFinder` speaks for itself, where they do not.
    """

    def __init__(self, finder: "Any", append_line: "Callable[[str, str], None] | None") -> None:
        self.finder = finder
        self.counts: Counts = finder.counts
        self.counts.note_difference = self.note
        self.append_line = append_line

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        """As `VeloFinder.find_spec`, when `PathFinder` says the same."""
        misses = self.counts.reasons.get("not found", 0)
        ours = self.finder.find_spec(name, path, target)
        if ours is None and self.counts.reasons.get("not found", 0) == misses:
            return None  # left to Python, for another reason than that there is nothing
        try:
            difference = difference_of_specs(ours, PathFinder.find_spec(name, path, target))
        except Exception as error:
            difference = f"Python raises {type(error).__name__}"
        self.counts.compared += 1
        if difference:
            self.note(name, difference)
            return None
        if ours is not None and type(ours.loader) is VeloSourceLoader:
            ours.loader.__class__ = ShadowLoader
        return ours

    def invalidate_caches(self) -> None:
        """As `VeloFinder.invalidate_caches`."""
        self.finder.invalidate_caches()

    def note(self, name: str, difference: str) -> None:
        """Count a difference, write it to the log, and keep the first ones for `velo doctor`."""
        counts = self.counts
        counts.differed += 1
        reason = f"shadow: {difference}"
        counts.reasons[reason] = counts.reasons.get(reason, 0) + 1
        if len(counts.differences) < MOST_KEPT:
            counts.differences.append(f"{name}: {difference}")
        if self.append_line is not None:
            line = f"velo[{getpid()}] {name}: shadow: {difference}; Python's answer is used"
            self.append_line(environ["VELO_LOG"], line)


class ShadowLoader(VeloSourceLoader):
    """Loads CPython's code of a module, after it has been compared with ours; equal code is ours."""

    __slots__ = ()

    def get_code(self, fullname: str) -> "CodeType | None":
        """The module's code, as CPython's loader gives it."""
        try:
            stock = SourceFileLoader(self.name, self.path).get_code(fullname)
        except Exception as error:
            if self._own(fullname) is not None:
                self._counts.compared += 1
                self._counts.note_difference(fullname, f"Python raises {type(error).__name__}")
            raise
        ours = self._own(fullname)
        self._counts.compared += 1
        difference = difference_of_codes(ours, stock)
        if not difference:
            return ours
        self._counts.note_difference(fullname, difference)
        return stock

    def _own(self, fullname: str) -> "CodeType | None":
        """What would have been executed without a comparison; None if it would have failed."""
        try:
            return super().get_code(fullname)
        except Exception:
            return None


def difference_of_specs(ours: "ModuleSpec | None", stock: "ModuleSpec | None") -> str:
    """The first thing in which two answers differ; empty if there is none."""
    if ours is None or stock is None:
        if ours is stock:
            return ""
        return "Velo finds nothing" if ours is None else "Python finds nothing"
    mine, its = vars(ours), vars(stock)
    for name in [*its, *mine]:
        if name not in ("loader", "_cached") and mine.get(name, MISSING) != its.get(name, MISSING):
            return name.lstrip("_")
    # Worked out when it is asked for; ours may have it already.
    if (mine.get("_cached") or its.get("_cached")) and ours.cached != stock.cached:
        return "cached"
    if list(mine) != list(its):
        return "attributes"
    # A served module's loader is a subclass of CPython's own; every other class is exactly the same.
    kind = SourceFileLoader if type(ours.loader) is VeloSourceLoader else type(ours.loader)
    if kind is not type(stock.loader):
        return "loader"
    return "" if vars(ours.loader) == vars(stock.loader) else "loader's path"


def difference_of_codes(ours: "CodeType | None", stock: "CodeType | None") -> str:
    """The first part in which two code objects differ, nested ones included; empty if there is none.

    Not their marshalled bytes: those depend on how often a constant is referred to.
    """
    if ours is None or stock is None:
        return "" if ours is stock else "code is missing"
    for name in PARTS:
        if getattr(ours, name) != getattr(stock, name):
            return f"code: {name}"
    if len(ours.co_consts) != len(stock.co_consts):
        return "code: co_consts"
    for mine, its in zip(ours.co_consts, stock.co_consts):  # noqa: B905 # same length
        if type(mine) is CODE and type(its) is CODE:
            difference = difference_of_codes(mine, its)
            if difference:
                return difference
    # By CPython's own comparison, to which 1, 1.0 and True, and 0.0 and -0.0, are different constants.
    return "" if ours == stock else "code: co_consts"

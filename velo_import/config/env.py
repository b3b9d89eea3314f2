# SPDX-License-Identifier: Apache-2.0
"""Every VELO_* variable, once: its name, what it means, what it takes. Leaves reading them to those who use
them.

The README's table is generated from here (`python -m velo_import.config.env`) and a test compares the two.
The hook cannot import this file, so it repeats the names; a test compares those as well.
"""

from typing import NamedTuple


class Variable(NamedTuple):
    """One variable that users and scripts may rely on."""

    name: str
    value: str
    meaning: str


HOME = "VELO_HOME"
MANIFEST = "VELO_MANIFEST"
DISABLE = "VELO_DISABLE"
CHECK = "VELO_CHECK"
VERIFY = "VELO_VERIFY"
READONLY = "VELO_READONLY"
LOG = "VELO_LOG"
STATS = "VELO_STATS"
SHARED = "VELO_SHARED"
REMEMBER = "VELO_REMEMBER"
CALM = "VELO_CALM"
PACK = "VELO_PACK"
TRACE = "VELO_TRACE"
NO_PROGRESS = "VELO_NO_PROGRESS"

VARIABLES = (
    Variable(HOME, "folder", "where the store is; default: `velo` below the user's cache folder"),
    Variable(MANIFEST, "file", "a manifest to consult first, as `velo run --manifest` does"),
    Variable(SHARED, "folder", "another account's store, read only, below the own one; its owner is trusted"),
    Variable(DISABLE, "`1`", "switches all of Velo off: programs run as if it were not installed"),
    Variable(
        CHECK,
        "`auto`, `stat`, `root`, `none`, `shadow`",
        "how freshness is checked: every file used, once per root, or never; `auto` asks the file system; "
        "`shadow` compares every answer with Python's, which is used where they differ",
    ),
    Variable(VERIFY, "`1`", "hash every piece of bytecode again before it is used"),
    Variable(READONLY, "`1`", "use what the store has; learn and write nothing"),
    Variable(LOG, "`1` or file", "one line per decision of the hook, on stderr or appended to the file"),
    Variable(
        STATS, "`1` or file", "one JSON object per process at its exit, on stderr or appended to the file"
    ),
    Variable(
        REMEMBER,
        "`all`, `none`, or some of `images`, `patterns`, `sources`, `metadata` with commas",
        "which work of a start is done once and kept: unmarshalling functions, compiling regular "
        "expressions, the text that dataclasses and namedtuple make, and what `importlib.metadata` reads",
    ),
    Variable(CALM, "`0`", "leaves the garbage collector alone: as many collections as without Velo"),
    Variable(PACK, "folder", "set by `velo pack`: where each process leaves what its start needed"),
    Variable(
        TRACE,
        "folder",
        "set by `velo trace`: where each process leaves what its imports took; `plain:` before it "
        "keeps Velo itself out",
    ),
    Variable(NO_PROGRESS, "`1`", "no progress display, even on a terminal"),
)


def table() -> str:
    """The README's table, in Markdown."""
    lines = ["| variable | value | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{variable.name}` | {variable.value} | {variable.meaning} |" for variable in VARIABLES]
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    sys.stdout.write(table() + "\n")

# SPDX-License-Identifier: Apache-2.0
"""A trace in the words of `python -X importtime`, which tuna and others read.

Inner imports stand before the ones they belong to, two spaces deeper. The surprise: a module's name may hold
anything, and the format has no quoting, so what could end a line or a column is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator

from .notes import Import, Process

HEADER = "import time: self [us] | cumulative | imported package"


def lines(process: Process) -> Iterator[str]:
    """The lines of one process."""
    inner: dict[int, list[Import]] = {}
    for each in process.imports:
        if each.served != "waited":
            inner.setdefault(each.parent, []).append(each)
    yield HEADER
    # A walk without recursion: an import may lie deeper than our own stack.
    walk: list[tuple[Import, int, bool]] = [(each, 0, False) for each in reversed(inner.get(0, []))]
    while walk:
        each, depth, is_done = walk.pop()
        if is_done:
            own, total = round(each.self_time / 1000), round(each.total / 1000)
            yield f"import time: {own:9} | {total:10} | {'  ' * depth}{safe(each.name)}"
        else:
            walk.append((each, depth, True))
            walk += [(child, depth + 1, False) for child in reversed(inner.get(each.number, []))]


def safe(name: str) -> str:
    """A name that stays in its column."""
    kept = "".join(letter if letter.isprintable() and letter not in " |" else "?" for letter in name)
    return kept or "?"

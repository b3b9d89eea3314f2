# SPDX-License-Identifier: Apache-2.0
"""A trace in words: what a person sees first. Pure: rows of text, laid out and coloured elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from .notes import PHASES, Import, Process, Trace

HEADERS = ("self ms", "total ms", *PHASES[:-1], "module", "served by", "imported by")
NUMBERS = range(8)
LEAST_SHARE = 0.005  # of all imports: what took less is left out of the tree
MODES = {"native": "Velo", "twin": "Velo without its native module", "plain": "without Velo"}
SHOWN = {"nobody": "not found", "other": "another loader", "waited": "another thread", "open": "never ended"}


def summary(trace: Trace, process: Process, against: Process | None = None) -> dict[str, str]:
    """What is to be said about one process, name by name."""
    found = {
        "process": f"{process.pid}: {' '.join(process.argv)}",
        "python": f"CPython {process.version}, {MODES.get(process.mode, process.mode)}",
        "command": f"{milliseconds(trace.ended - trace.began)} ms from start to end, "
        f"{milliseconds(process.began - trace.began)} of them before tracing began "
        f"({len(process.before)} modules were loaded by then)",
        "imports": f"{len(process.imports)} in {milliseconds(process.importing)} ms",
        "phases": ", ".join(f"{phase} {milliseconds(process.phase(phase))}" for phase in PHASES),
        "served": ", ".join(f"{SHOWN.get(who, who)} {count}" for who, count in process.served().items()),
    }
    if reasons := process.reasons():
        found["left to python"] = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    if against is not None:
        found["compared with"] = (
            f"{len(against.imports)} in {milliseconds(against.importing)} ms "
            f"({MODES.get(against.mode, against.mode)})"
        )
    if process.damaged:
        found["damaged"] = f"{process.damaged} lines of the notes could not be read"
    return found


def others(trace: Trace, chosen: Process) -> list[str]:
    """One line for each other process."""
    return [
        f"{each.pid}  {len(each.imports)} imports in {milliseconds(each.importing)} ms  {' '.join(each.argv)}"
        for each in trace.processes
        if each is not chosen
    ]


def longest(process: Process, count: int) -> list[tuple[str, ...]]:
    """The modules that took most by themselves, one row each."""
    chosen = sorted(process.imports, key=lambda each: -each.self_time)[:count]
    return [_row(each, 0) for each in chosen]


def tree(process: Process) -> list[tuple[str, ...]]:
    """Who imported whom, in order; what took nearly nothing is left out."""
    least = process.importing * LEAST_SHARE
    return [_row(each, depth) for each, depth in walk(process) if each.total >= least]


def walk(process: Process) -> Iterator[tuple[Import, int]]:
    """Every import and its depth, outer ones first. Without recursion: they may lie deeper than our stack."""
    inner: dict[int, list[Import]] = {}
    for each in process.imports:
        inner.setdefault(each.parent, []).append(each)
    rest = [(each, 0) for each in reversed(inner.get(0, []))]
    while rest:
        each, depth = rest.pop()
        yield each, depth
        rest += [(child, depth + 1) for child in reversed(inner.get(each.number, []))]


def milliseconds(nanoseconds: int) -> str:
    """Three digits that matter."""
    value = nanoseconds / 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _row(each: Import, depth: int) -> tuple[str, ...]:
    served = SHOWN.get(each.served, each.served)
    why = ", ".join(filter(None, ["" if each.served == "nobody" else each.reason, each.error]))
    return (
        milliseconds(each.self_time),
        milliseconds(each.total),
        *(milliseconds(getattr(each, phase)) if getattr(each, phase) else "" for phase in PHASES[:-1]),
        "  " * depth + one_line(each.name),
        served + (f": {why}" if why else ""),
        one_line(f"{each.importer}:{each.line}") if each.importer else "",
    )


def one_line(text: str) -> str:
    """A name as it can be shown: what would move the cursor is written out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)

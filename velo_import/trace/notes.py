# SPDX-License-Identifier: Apache-2.0
"""The notes of traced processes (FORMAT.md, section 11) as processes and imports, and both as a document.

The document is what `velo trace --json` prints, and what a saved trace is read from. The surprise: notes and
documents come from programs, so nothing in them is believed beyond its type.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import VeloError

SCHEMA = 1
HEAD = "velo-trace 1"
PHASES = ("find", "read", "unmarshal", "compile", "dlopen", "exec", "wait")
NOT_ASKED = "Velo was not asked: another finder was first, or it is sitecustomize"


@dataclass
class Import:
    """One import of one module. Times in nanoseconds; the phases are without the imports within it."""

    number: int
    parent: int
    name: str
    importer: str
    line: int
    start: int
    thread: int
    total: int = 0
    find: int = 0
    read: int = 0
    unmarshal: int = 0
    compile: int = 0
    dlopen: int = 0
    exec: int = 0
    wait: int = 0
    error: str = ""
    served: str = "open"
    reason: str = ""
    origin: str = ""
    loader: str = ""
    manifest: str = ""
    pack: str = ""
    self_time: int = 0


@dataclass
class Process:
    """One traced process. `ended` is 0 where it did not end by itself; `before` are the modules that were
    there when tracing began.
    """

    pid: int
    parent: int
    argv: list[str]
    executable: str
    version: str
    mode: str
    began: int
    forked: bool
    before: list[str]
    ended: int = 0
    damaged: int = 0
    imports: list[Import] = field(default_factory=list)

    def phase(self, name: str) -> int:
        """What one phase took, all modules together."""
        return sum(getattr(each, name) for each in self.imports)

    @property
    def importing(self) -> int:
        """What all imports took, all threads together."""
        return sum(each.self_time for each in self.imports)

    def served(self) -> dict[str, int]:
        """How many modules each one served, most first."""
        counted: dict[str, int] = {}
        for each in self.imports:
            counted[each.served] = counted.get(each.served, 0) + 1
        return dict(sorted(counted.items(), key=lambda item: -item[1]))

    def reasons(self) -> dict[str, int]:
        """Why modules were left to Python, most frequent first."""
        counted: dict[str, int] = {}
        for each in self.imports:
            if each.served == "python" and each.reason:
                counted[each.reason] = counted.get(each.reason, 0) + 1
        return dict(sorted(counted.items(), key=lambda item: -item[1]))


@dataclass
class Trace:
    """One traced command: what it was, how it ended, and its processes, the first one first."""

    command: list[str]
    began: int
    ended: int
    exit_code: int
    processes: list[Process]

    def document(self) -> dict[str, Any]:
        """As JSON has it; later versions only ever add fields."""
        return {"kind": "velo trace", **asdict(self)}


IMPORT_FIELDS = [each.name for each in fields(Import)]
IMPORT_TYPES = {each.name: str if each.type == "str" else int for each in fields(Import)}


def read_folder(folder: Path) -> list[Process]:
    """Every process that left notes there, in the order in which they began."""
    found = [read_notes(path.read_bytes()) for path in sorted(folder.glob("*.trace"))]
    return sorted((each for each in found if each is not None), key=lambda each: each.began)


def read_notes(data: bytes) -> Process | None:
    """One process's notes; None where not even the first line is there."""
    process: Process | None = None
    imports: dict[int, Import] = {}
    damaged = 0
    for text in data.decode("ascii", "replace").splitlines():
        try:
            kind, *items = ast.literal_eval(text)
            if kind == HEAD:
                process = process or _process(items[0])
            elif kind in ("open", "import"):
                entry = _import(items)
                if kind == "import" or entry.number not in imports:
                    imports[entry.number] = entry
            elif kind == "end" and process is not None:
                process.ended = int(items[0])
        except (ValueError, SyntaxError, TypeError, IndexError, KeyError, MemoryError, RecursionError):
            damaged += 1
    if process is None:
        return None
    process.damaged = damaged
    process.imports = with_self_times(imports.values(), process)
    return process


def with_self_times(imports: Iterable[Import], process: Process) -> list[Import]:
    """In the order in which they began; what never ended lasts until the end, or as long as what is in it."""
    known = {each.number: each for each in sorted(imports, key=lambda each: (each.start, each.number))}
    # Inner ones first: they began later.
    for each in reversed(known.values()):
        if each.served == "open":
            inner = [child.start + child.total for child in known.values() if child.parent == each.number]
            each.total = max([each.start, process.ended, *inner]) - each.start
        if each.parent not in known or known[each.parent].thread != each.thread:
            each.parent = 0
    for each in known.values():
        each.self_time += each.total
        if each.parent:
            known[each.parent].self_time -= each.total
    for each in known.values():
        each.self_time = max(0, each.self_time)
        if each.served == "python" and not each.reason and process.mode != "plain":
            each.reason = NOT_ASKED
    return list(known.values())


def load(path: Path) -> Trace:
    """A document that `velo trace` saved.

    Raises:
        VeloError: it cannot be read, or is none.
    """
    hint = "make one with: velo trace -o FILE.json -- COMMAND"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["kind"] != "velo trace" or not document["processes"]:
            raise ValueError("kind")
        processes = []
        for each in document["processes"]:
            process = _process(each)
            process.ended, process.damaged = int(each["ended"]), int(each["damaged"])
            process.imports = [_import([entry[name] for name in IMPORT_FIELDS]) for entry in each["imports"]]
            processes.append(process)
        return Trace(
            [str(word) for word in document["command"]],
            int(document["began"]),
            int(document["ended"]),
            int(document["exit_code"]),
            processes,
        )
    except OSError as error:
        raise VeloError(f"cannot read {path}: {error.strerror}", hint=hint) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise VeloError(f"{path} is not a saved trace", hint=hint) from None


def _process(items: Mapping[str, Any]) -> Process:
    return Process(
        argv=[str(word) for word in items["argv"]],
        forked=bool(items["forked"]),
        before=[str(name) for name in items["before"]],
        executable=str(items["executable"]),
        version=str(items["version"]),
        mode=str(items["mode"]),
        pid=int(items["pid"]),
        parent=int(items["parent"]),
        began=int(items["began"]),
    )


def _import(items: list[Any]) -> Import:
    values: dict[str, Any] = {}
    for name, value in zip(IMPORT_FIELDS, items, strict=False):
        if type(value) is not IMPORT_TYPES[name]:
            raise TypeError(name)
        values[name] = value
    return Import(**values)

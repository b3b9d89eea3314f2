# SPDX-License-Identifier: Apache-2.0
"""Notes of traced programs, and the forms made of them: plain data in, text out."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velo_import.errors import VeloError
from velo_import.trace import importtime, report
from velo_import.trace.notes import Process, Trace, load, read_notes
from velo_import.trace.page import page

HEAD = {
    "pid": 1,
    "parent": 0,
    "argv": ("python", "app.py"),
    "executable": "/usr/bin/python",
    "version": "3.12.1",
    "mode": "native",
    "began": 1000,
    "forked": False,
    "before": ("sys",),
}
HOSTILE = [
    "</script><script>document.title='taken'</script>",
    "<!--",
    "<img src=x onerror=alert(1)>",
    "a\nimport time: 1 | 1 | b",
    "\u2028\u2029\x00\x1b[31m",
    "{style}{data}",
    "\udc80",
]


def line(number: int, parent: int, name: str, start: int, total: int, **more: Any) -> str:
    """An `import` line; FORMAT.md, section 11."""
    phases = [
        more.get(phase, 0) for phase in ("find", "read", "unmarshal", "compile", "dlopen", "exec", "wait")
    ]
    rest = [
        more.get(what, "") for what in ("error", "served", "reason", "origin", "loader", "manifest", "pack")
    ]
    return ascii(
        ("import", number, parent, name, "__main__", 1, start, more.get("thread", 5), total, *phases, *rest)
    )


def notes(*lines: str) -> Process:
    found = read_notes("".join(f"{each}\n" for each in (ascii(("velo-trace 1", HEAD)), *lines)).encode())
    assert found is not None
    return found


def trace_of(process: Process) -> Trace:
    return Trace(["python", "app.py"], 0, 10_000_000, 0, [process])


def test_self_time_is_what_is_left() -> None:
    """Of the time of an import its own is what the imports within did not take."""
    found = notes(line(2, 1, "inner", 20, 30), line(1, 0, "outer", 10, 100), ascii(("end", 5000)))

    assert [(each.name, each.self_time) for each in found.imports] == [("outer", 70), ("inner", 30)]
    assert found.importing == 100
    assert found.ended == 5000


def test_open_imports_last_until_the_end() -> None:
    """An import that is open when the process ends has taken all the time until then."""
    opened = ascii(("open", 1, 0, "server", "__main__", 1, 100, 5))

    assert notes(opened, line(2, 1, "inner", 200, 300)).imports[0].total == 400
    assert notes(opened, line(2, 1, "inner", 200, 300), ascii(("end", 9100))).imports[0].total == 9000
    assert notes(opened, line(1, 0, "server", 100, 50)).imports[0].total == 50


def test_a_parent_of_another_thread_is_none() -> None:
    """Numbers that lead nowhere, or to another thread, do not make a tree."""
    found = notes(line(1, 0, "one", 10, 100), line(2, 1, "two", 20, 10, thread=6), line(3, 9, "three", 30, 5))

    assert [each.parent for each in found.imports] == [0, 0, 0]


@pytest.mark.parametrize(
    "damage",
    [
        "('import', 1",
        "('import', 'one', 0, 'name', '', 1, 1, 1)",
        "('import',)",
        "[1, 2",
        "__import__('os').system('true')",
        "('open', 1, 0, b'name', '', 1, 1, 1)",
        "(" * 500,
        "\x00\xff",
        "7",
        "('end',)",
    ],
)
def test_damaged_lines_are_left_out(damage: str) -> None:
    """A line cut short by a full disk, or by anything else, costs that line."""
    found = notes(damage, line(1, 0, "one", 10, 100))

    assert [each.name for each in found.imports] == ["one"]
    assert found.damaged == 1


def test_no_head_no_process() -> None:
    assert read_notes(b"") is None
    assert read_notes(line(1, 0, "one", 10, 100).encode()) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    """Whatever stands in a file of notes: an answer, never an exception."""
    found = read_notes(ascii(("velo-trace 1", HEAD)).encode() + b"\n" + data)

    assert found is not None


def test_a_document_is_read_again(tmp_path: Path) -> None:
    """What is saved and read is what was saved."""
    trace = trace_of(notes(*(line(at + 1, 0, name, at, 10) for at, name in enumerate(HOSTILE))))
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace.document()))

    assert load(path) == trace


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "velo trace", "processes": []}', '{"kind": "velo trace"}']
)
def test_what_is_no_document(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)

    with pytest.raises(VeloError):
        load(path)


def test_names_stay_in_their_line() -> None:
    """A module may call itself anything; it stays one line, and one column, in every text form."""
    process = notes(*(line(at + 1, 0, name, at, 10) for at, name in enumerate(HOSTILE)))

    lines = list(importtime.lines(process))
    assert len(lines) == len(HOSTILE) + 1
    assert all(each.count("|") == 2 and each.isprintable() for each in lines)
    rows = report.longest(process, 99)
    assert all(cell.isprintable() for row in rows for cell in row)


def test_a_deep_tree_is_walked() -> None:
    """Imports may lie deeper than our own stack allows functions to."""
    process = notes(*(line(at, at - 1, f"m{at}", at, 10_000 - at) for at in range(1, 5000)))

    assert list(importtime.lines(process))[1].endswith("  " * 4998 + "m4999")
    assert len(report.tree(process)) > 0


class Elements(HTMLParser):
    """The names of all elements of a page, and the text of its data element."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.data = ""
        self.is_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.is_data = ("id", "data") in attrs

    def handle_data(self, data: str) -> None:
        if self.is_data and not self.data:
            self.data = data


def elements(*names: str) -> Elements:
    process = notes(*(line(at + 1, 0, name, at, 10, origin=name) for at, name in enumerate(names)))
    parser = Elements()
    parser.feed(page(trace_of(process), 0))
    return parser


def test_hostile_names_stay_text() -> None:
    """No name of a module becomes markup: the page has the same elements whatever the modules are called."""
    harmless, hostile = elements(*("abcdefg")), elements(*HOSTILE)

    assert hostile.names == harmless.names
    strings = json.loads(hostile.data)["strings"]
    assert set(HOSTILE) <= set(strings)


def test_the_page_asks_nobody() -> None:
    """One file: no address, no import, nothing that another machine would be asked for."""
    text = page(trace_of(notes(line(1, 0, "one", 1, 1))), 0)

    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text

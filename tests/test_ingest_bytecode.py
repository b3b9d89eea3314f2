# SPDX-License-Identifier: Apache-2.0
"""When a cached file may be believed, and compiling that survives whatever it is given."""

from __future__ import annotations

import importlib.util
import marshal
import os
import py_compile
import sys
from pathlib import Path

import psutil
import pytest

from velo_import.errors import VeloError
from velo_import.format.manifest import Build
from velo_import.ingest.bytecode import Cached, Source, cached_name, compile_all, judge_cached
from velo_import.ingest.content import entry_of
from velo_import.ingest.scan import FileEntry

MAGIC = importlib.util.MAGIC_NUMBER


def entry(path: Path) -> FileEntry:
    return entry_of(path.name, os.stat(path), False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "module.py"
    path.write_text("answer = 42\n")
    return path


def judge(source: Path, mode: py_compile.PycInvalidationMode) -> tuple[Cached, bytes]:
    cached = Path(py_compile.compile(str(source), invalidation_mode=mode))
    return judge_cached(cached.read_bytes(), entry(cached), source.read_bytes, entry(source), MAGIC)


def test_what_python_has_just_compiled_is_taken_over(source):
    verdict, payload = judge(source, py_compile.PycInvalidationMode.TIMESTAMP)

    assert verdict is Cached.USABLE
    namespace: dict[str, object] = {}
    exec(marshal.loads(payload), namespace)
    assert namespace["answer"] == 42


def test_a_checked_hash_is_checked(source):
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    cached = Path(py_compile.compile(str(source), invalidation_mode=mode))

    assert judge(source, mode)[0] is Cached.USABLE
    source.write_text("answer = 43\n")
    verdict, _ = judge_cached(cached.read_bytes(), entry(cached), source.read_bytes, entry(source), MAGIC)
    assert verdict is Cached.REFUSED


def test_a_file_that_python_does_not_check_stays_pythons(source):
    assert judge(source, py_compile.PycInvalidationMode.UNCHECKED_HASH)[0] is Cached.UNCHECKED


def test_an_edit_within_the_second_is_not_answered_with_the_old_bytecode(source):
    """CPython compares whole seconds and sizes, and would run the old code here; a shared store must not."""
    cached = Path(py_compile.compile(str(source)))
    old = cached.read_bytes()
    second = entry(source).mtime_ns // 1_000_000_000 * 1_000_000_000
    source.write_text("answer = 43\n")
    os.utime(source, ns=(second, second))

    verdict, _ = judge_cached(old, entry(cached), source.read_bytes, entry(source), MAGIC)

    assert verdict is Cached.REFUSED


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:15],
        lambda data: data[:16],
        lambda data: b"\0\0\r\n" + data[4:],
        lambda data: data[:4] + b"\x02" + data[5:],
        lambda data: data[:4] + b"\x80" + data[5:],
        lambda data: data[:8] + b"\0\0\0\0" + data[12:],
        lambda data: data[:12] + b"\0\0\0\0" + data[16:],
        lambda data: data[:16] + b"N" + data[17:],
    ],
)
def test_a_damaged_or_foreign_file_is_refused(source, damage):
    cached = Path(py_compile.compile(str(source)))

    data = damage(cached.read_bytes())

    assert judge_cached(data, entry(cached), source.read_bytes, entry(source), MAGIC) == (Cached.REFUSED, b"")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_names_of_cached_files_are_pythons_own(level):
    path = importlib.util.cache_from_source("/x/mod.py", optimization=level or "")

    assert os.path.basename(path) == cached_name("mod", sys.implementation.cache_tag, level)


def own_build(level: int) -> Build:
    """The build of the Python that runs these tests, as far as compiling is concerned."""
    return Build(sys.implementation.cache_tag, importlib.util.MAGIC_NUMBER, level, "", ())


def test_another_interpreter_than_the_one_named_is_refused():
    """A path that leads to another Python must not put its bytecode under our tag."""
    other = own_build(0)._replace(cache_tag="cpython-399")

    with pytest.raises(VeloError, match="is not the interpreter"):
        list(compile_all([Source(0, "m.py", b"x = 1\n")], sys.executable, other, 2))


def compiled(sources: list[Source], jobs: int = 2, level: int = 0) -> dict[int, bytes | None]:
    return dict(compile_all(sources, sys.executable, own_build(level), jobs))


def test_compiled_code_is_what_python_would_have_compiled():
    text = b"# -*- coding: latin-1 -*-\n'doc'\nname = '\xe4'\ndef f(x: int) -> int:\n    assert x\n"

    for level in (0, 1, 2):
        code = compiled([Source(7, "/somewhere/m.py", text)], level=level)[7]
        assert code is not None
        expected = compile(text, "/somewhere/m.py", "exec", dont_inherit=True, optimize=level)
        assert marshal.loads(code) == expected


def test_what_cannot_be_compiled_has_no_bytecode_and_spoils_no_other():
    sources = [
        Source(0, "good.py", b"x = 1\n"),
        Source(1, "syntax.py", b"def\n"),
        Source(2, "null.py", b"x\0y\n"),
        Source(3, "encoding.py", b"# coding: no-such-thing\n"),
        Source(4, "bytes.py", b"\xff\xfe\xfa\n"),
        Source(5, "deep.py", b"(" * 100_000),
        Source(6, "empty.py", b""),
        Source(7, "noisy.py", b"x = '\\d'\nassert (1, 'always')\n"),
    ]

    answers = compiled(sources)

    assert {ticket for ticket, code in answers.items() if code is None} == {1, 2, 3, 4, 5, 7}
    assert len(answers) == len(sources)


def test_paths_that_are_not_utf8_reach_the_compiler():
    path = os.fsdecode(b"/x/\xff.py")

    code = compiled([Source(0, path, b"x = 1\n")])[0]

    assert code is not None and marshal.loads(code).co_filename == path


def test_thousands_of_files_come_back_once_each():
    sources = (
        Source(ticket, f"m{ticket}.py", b"x = %d\n" % ticket * (ticket % 300)) for ticket in range(3000)
    )

    answers = list(compile_all(sources, sys.executable, own_build(0), 3))

    assert sorted(ticket for ticket, _ in answers) == list(range(3000))
    assert all(code for _, code in answers)


def fragile(folder: Path, condition: str) -> str:
    """An interpreter that dies as soon as it is given a certain source, as CPython's parser once did."""
    worker = folder / "fragile.py"
    worker.write_text(
        "import builtins, os, runpy, sys\n"
        "real = compile\n"
        "def brittle(source, *rest, **more):\n"
        f"    if {condition}:\n"
        "        os._exit(9)\n"
        "    return real(source, *rest, **more)\n"
        "sys.argv = sys.argv[-2:]\n"
        "with open(sys.argv[0]) as file:\n"
        "    code = real(file.read(), sys.argv[0], 'exec')\n"
        "exec(code, {'__name__': '__main__', '__builtins__': {**vars(builtins), 'compile': brittle}})\n"
    )
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {worker} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_a_source_that_kills_the_compiler_costs_only_itself(tmp_path):
    python = fragile(tmp_path, "source.startswith(b'kill')")
    sources = [Source(n, f"m{n}.py", b"kill()" if n in (3, 40) else b"x = 1\n" * 500) for n in range(300)]

    answers = dict(compile_all(sources, python, own_build(0), 2))

    assert {ticket for ticket, code in answers.items() if code is None} == {3, 40}
    assert len(answers) == 300


def test_an_interpreter_that_dies_on_everything_is_an_error(tmp_path):
    python = fragile(tmp_path, "True")

    with pytest.raises(VeloError, match="dies whenever it compiles"):
        list(compile_all((Source(n, f"{n}.py", b"x = 1\n") for n in range(1000)), python, own_build(0), 2))


def test_a_missing_interpreter_is_an_error(tmp_path):
    with pytest.raises(VeloError, match="cannot run"):
        list(compile_all([Source(0, "m.py", b"")], str(tmp_path / "python"), own_build(0), 2))


def test_nothing_to_compile_starts_no_interpreter(tmp_path):
    assert list(compile_all([], str(tmp_path / "python"), own_build(0), 2)) == []


def test_a_caller_that_stops_early_leaves_no_process_behind():
    answers = compile_all(
        (Source(n, "m.py", b"x = 1\n") for n in range(100_000)), sys.executable, own_build(0), 2
    )

    before = set(psutil.Process().children())  # other tests may keep servers

    next(answers)
    answers.close()  # type: ignore[attr-defined] # it is a generator

    assert set(psutil.Process().children()) <= before

# SPDX-License-Identifier: Apache-2.0
"""The native look at what is alive: it finds what would do something when destroyed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.native import compiled, run_under_sanitizers

# Run in a fresh interpreter, so that nothing of the test runner is alive in it.
LOOK = """
import sys, os, types, gc
sys.path.insert(0, sys.argv[1])
import core, _weakref
from _frozen_importlib import ModuleSpec

def look(ignored=(), deep=True, stdlib=None):
    folder = (os.path.dirname(os.__file__) + "/lib-dynload/").encode() if stdlib is None else stdlib
    return core.look_at_remains(
        ModuleSpec, _weakref.ReferenceType, types.FunctionType, folder, ignored, gc.get_objects, deep
    )

std = []
for stream in (sys.stdin, sys.stdout, sys.stderr):
    std += [stream, stream.buffer, stream.buffer.raw]
std = tuple(std)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("core", tmp_path_factory.mktemp("native"), "-O2").parent


def told(folder: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", LOOK + script, str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("deep", ["True", "False"])
def test_of_a_bare_interpreter_only_the_streams(folder: Path, deep: str) -> None:
    """The standard streams have finalisers; nothing else in a bare interpreter does."""
    assert told(folder, f"print(look(std, deep={deep})[0], look(deep={deep})[2])") == "[] set()\n"
    assert "TextIOWrapper" in told(folder, f"print(look(deep={deep})[0])")


def test_finalisers_callbacks_and_foreign_code_are_found(folder: Path) -> None:
    """Objects by their finaliser, weak references by their callback, native types by their file."""
    script = """
class Loud:
    def __del__(self): pass
class Inherited(Loud): pass
kept = [Loud(), (Inherited(), 1)]
class Plain: pass
plain = Plain()
def callback(reference): pass
references = [_weakref.ref(plain, callback), _weakref.ref(plain, callback), _weakref.ref(plain)]
class Named(_weakref.ReferenceType): pass
references.append(Named(plain, kept.append))
references.append(_weakref.ref(Plain, print))
generator = (x for x in [1]); next(generator)
objects, callbacks, libraries = look(std)
print(sorted(type(each).__name__ for each in objects))
print(sorted(each.__name__ for each in callbacks))
print(len(look(std, stdlib=b"/nowhere/")[2]) >= len(libraries))
"""
    assert told(folder, script).splitlines() == [
        "['Inherited', 'Loud', 'generator']",
        "['append', 'callback', 'print']",
        "True",
    ]


def test_too_much_is_an_error_and_not_a_guess(folder: Path) -> None:
    """More finalisers than anyone wants to judge."""
    script = """
class Loud:
    def __del__(self): pass
kept = [Loud() for _ in range(1000)]
try:
    look()
except OverflowError as error:
    print(error)
"""
    assert "too many" in told(folder, script)


def test_wrong_arguments_are_refused(folder: Path) -> None:
    script = """
for wrong in ((), (1,) * 7, (int, int, int, "text", (), None, True), (int, int, int, b"", [], None, True)):
    try:
        core.look_at_remains(*wrong)
    except TypeError:
        print("refused")
"""
    assert told(folder, script) == "refused\n" * 4


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the module that makes interpreters has another name")
def test_another_interpreter_gives_its_memory_back(folder: Path) -> None:
    """The process goes on after an interpreter in it has ended."""
    script = """
import _xxsubinterpreters as interpreters
made = interpreters.create(isolated=False)
text = open(sys.argv[1] + "/look.py").read()
interpreters.run_string(made, "import sys; sys.argv = %r\\n" % sys.argv + text)
"""
    (folder / "look.py").write_text(
        LOOK + "try:\n    look()\nexcept RuntimeError as error:\n    print(error, flush=True)\n"
    )
    assert "not the main interpreter" in told(folder, script)


def test_under_sanitizers(tmp_path: Path) -> None:
    """A full look and every error, without a finding of AddressSanitizer or UBSan."""
    script = """
import json, decimal, datetime, re, collections, functools, ctypes, weakref
class Loud:
    def __del__(self): pass
for _ in range(3):
    kept = [Loud() for _ in range(200)]
    look(std)
    look(std, deep=False)
    kept += [Loud() for _ in range(200)]
    try:
        look(std)
    except OverflowError:
        pass
nested = ()
for _ in range(100):
    nested = (nested, 1.5)
gc.collect()
try:
    look(std)
except (RecursionError, OverflowError):
    pass
kept.clear()
callbacks = [weakref.ref(Loud, lambda reference, n=n: n) for n in range(3000)]
assert len(look(std)[1]) < 1000
assert len([weakref.ref(Loud, functools.partial(print, n)) for n in range(3000)]) == 3000
look(std)
"""
    done = run_under_sanitizers("core", tmp_path, LOOK + script)

    assert done.returncode == 0, done.stderr
    assert "runtime error" not in done.stderr

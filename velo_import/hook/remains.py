# SPDX-License-Identifier: Apache-2.0
"""What is alive at exit, judged: would anybody notice if it were never taken apart?

Loaded at exit. The native module finds what could matter (objects with finalisers, callbacks of weak
references, native code that cleans up); each of them is either known to do nothing in its state
(finalisers.py), or is the reason to end as CPython ends. Whatever is not understood is such a reason.

The surprise: native code is trusted by the name of its top package. The list holds packages whose native
types were reviewed: destroying their objects gives memory back and does nothing else.
"""

import sys
from _frozen_importlib import ModuleSpec
from _io import BufferedReader, BufferedWriter, TextIOWrapper
from _weakref import ReferenceType
from os import __file__ as stdlib_file

import velo_import.hook.mapping as mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MEMORY_ONLY = frozenset(
    (
        "PIL",
        "_yaml",
        "black",
        "blib2to3",
        "contourpy",
        "kiwisolver",
        "markupsafe",
        "matplotlib",
        "numpy",
        "pandas",
        "pydantic_core",
        "scipy",
        "sklearn",
        "sqlalchemy",
        "velo_import",
        "yaml",
    )
)
# Modules of the standard library with native types that write or tell somebody when destroyed.
CAREFUL = frozenset(("_curses", "_dbm", "_gdbm", "_sqlite3", "_tkinter", "_interpreters"))

FUNCTION = type(lambda: None)
MODULE = type(sys)


def reason_to_tidy() -> str:
    """Why what is alive has to be taken apart at exit; empty if nobody could tell.

    Raises:
        Exception: it cannot be told, so it has to be.
    """
    if mapping.look_at_remains is None:
        return "no native module"
    if "_xxsubinterpreters" in sys.modules:
        # Up to 3.12. Its objects end an interpreter when they are destroyed, and a process with one left
        # aborts.
        return "subinterpreters"
    stdlib = stdlib_file.rpartition("/")[0] + "/lib-dynload/"
    packages = native_packages(stdlib)
    # What the collector lists comes first: it takes a third of the time, and most reasons are there.
    reason = reason_among(packages, stdlib, False)
    if reason or (all(map(is_memory_only, packages.values())) and CAREFUL.isdisjoint(sys.modules)):
        return reason
    return reason_among(packages, stdlib, True)


def reason_among(packages: "dict[str, str]", stdlib: str, is_deep: bool) -> str:
    """The first reason among what the collector lists; `is_deep`: and what that refers to."""
    objects, callbacks, libraries = mapping.look_at_remains(
        ModuleSpec,
        ReferenceType,
        FUNCTION,
        stdlib.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()),
        streams(),
        mapping.load_extension("gc").get_objects,
        is_deep,
    )
    for library in libraries:
        if not is_memory_only(packages.get(library, "")):
            return f"native code of {packages.get(library) or library.rpartition('/')[2]}"
    if not objects and not callbacks:
        return ""
    from velo_import.hook.finalisers import is_at_rest, is_tidying

    for found in objects:
        if not is_at_rest(found):
            return f"{type(found).__module__}.{type(found).__qualname__}"
    for found in callbacks:
        if not is_tidying(found):
            return f"callback {getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '?')}"
    return ""


def native_packages(stdlib: str) -> "dict[str, str]":
    """The top package of each loaded native module that is not the standard library's, by file."""
    found = {}
    namespace: Any = vars(MODULE)["__dict__"].__get__
    for name, module in list(sys.modules.items()):
        # Only the dict is asked: an attribute of a lazy module would run its code.
        file = namespace(module).get("__file__") if isinstance(module, MODULE) else None
        if isinstance(file, str) and file.endswith(".so") and not file.startswith(stdlib):
            found[file] = name.partition(".")[0]
    return found


def is_memory_only(package: str) -> bool:
    """Whether destroying objects of this package's native types was reviewed. Mypyc's shared modules have
    generated names and generated clean-up.
    """
    return package in MEMORY_ONLY or package.endswith("__mypyc")


def streams() -> "tuple[Any, ...]":
    """The standard streams that Python itself opened, with what lies below: flushed at exit in any case."""
    found: list[Any] = []
    stream: Any
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        if type(stream) is TextIOWrapper:
            buffer = stream.buffer
            found += [stream, buffer]
            if type(buffer) in (BufferedReader, BufferedWriter):
                found.append(buffer.raw)
    return tuple(found)

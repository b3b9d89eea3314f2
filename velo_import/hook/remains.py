# SPDX-License-Identifier: Apache-2.0
"""What is alive at exit, judged: would anybody notice if it were never taken apart?

The native module finds what could matter (objects with finalisers, callbacks of weak
references, native code that cleans up); here each of them is either known to do nothing in its state, or is
the reason to end as CPython ends. Whatever is not understood is such a reason.

The surprise: native code is trusted by the name of its top package. The list holds packages whose native
types were reviewed: destroying their objects gives memory back and does nothing else.
"""

import sys
from _frozen_importlib import ModuleSpec
from _io import (
    BufferedRandom,
    BufferedReader,
    BufferedWriter,
    BytesIO,
    FileIO,
    StringIO,
    TextIOWrapper,
)
from _weakref import ReferenceType
from os import __file__ as stdlib_file
from os import fsencode

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

# Functions that tidy the tables of their own module when a referent goes, and do nothing else.
TIDYING = frozenset(
    (
        ("_weakrefset", "WeakSet.__init__.<locals>._remove"),
        ("django.dispatch.dispatcher", "Signal._flag_dead_receivers"),
        ("logging", "_removeHandlerRef"),
        ("matplotlib.cbook", "CallbackRegistry._remove_proxy"),
        ("matplotlib.transforms", "TransformNode.set_children.<locals>.<lambda>"),
        ("sqlalchemy.event.registry", "_collection_gced"),
        ("sqlalchemy.orm.clsregistry", "_MultipleClassMarker._remove_item"),
        ("weakref", "WeakKeyDictionary.__init__.<locals>.remove"),
        ("weakref", "WeakValueDictionary.__init__.<locals>.remove"),
    )
)

# Finalisers that do nothing once an attribute has a certain value: who defines `__del__`, attribute, value.
AT_REST = {
    ("joblib.externals.loky.backend.stdlib_py314_resource_tracker", "ResourceTracker"): ("_fd", None),
    ("multiprocessing.resource_tracker", "ResourceTracker"): ("_fd", None),
    ("subprocess", "Popen"): ("_child_created", False),
    ("zipfile", "ZipFile"): ("fp", None),
}

FUNCTION = type(fsencode)
MODULE = type(sys)
FILES = (BufferedRandom, BufferedReader, BufferedWriter, FileIO, TextIOWrapper)


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
        fsencode(stdlib),
        streams(),
        mapping.load_extension("gc").get_objects,
        is_deep,
    )
    for library in libraries:
        if not is_memory_only(packages.get(library, "")):
            return f"native code of {packages.get(library) or library.rpartition('/')[2]}"
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


def is_at_rest(found: "Any") -> bool:
    """Whether this object's finaliser would do nothing, as things are."""
    kind = type(found)
    if kind is BytesIO or kind is StringIO:
        return True
    if kind in FILES:
        return bool(found.closed)
    if kind.__name__ == "generator" and kind.__module__ == "builtins":
        return is_generator_at_rest(found)
    for owner in kind.__mro__:
        finaliser: Any = owner.__dict__.get("__del__")
        if finaliser is not None:
            attribute, value = AT_REST.get((owner.__module__, owner.__qualname__), ("", None))
            if attribute:
                values = getattr(found, "__dict__", {})
                return attribute in values and values[attribute] is value
            return type(finaliser) is FUNCTION and is_only_dropping(kind, finaliser)
    return False


def is_generator_at_rest(generator: "Any") -> bool:
    """Whether closing it runs nothing: it has ended, or never started, or hangs outside of any `try`.

    From 3.12 on the one handler around a whole generator is the compiler's own.
    """
    if generator.gi_frame is None or not generator.gi_suspended:
        return True
    code = generator.gi_code
    return is_plain_generator(code)


def is_plain_generator(code: "Any") -> bool:
    """Whether code has no handler but the compiler's own: as few bytes of table as a bare `yield` has."""
    bare = functions("def bare():\n while 1: yield")["bare"].__code__
    # One entry of the table takes four fields of one to five bytes each; two entries have eight or more.
    return len(code.co_exceptiontable) <= (7 if bare.co_exceptiontable else 0)


def is_only_dropping(kind: "Any", finaliser: "Any") -> bool:
    """Whether `__del__` is `pass` or `del self.attribute`: destruction does the same."""
    known = functions("def nothing(self): pass\ndef drop(self): del self.attribute")
    code = finaliser.__code__
    if code.co_code == known["nothing"].__code__.co_code:
        return True
    return (
        code.co_code == known["drop"].__code__.co_code
        and kind.__delattr__ is object.__delattr__
        and not hasattr(kind, code.co_names[0])
    )


def functions(source: str) -> "dict[str, Any]":
    """What this source defines, as the compiler that is here compiles it."""
    namespace: dict[str, Any] = {}
    # Compiled first: where `exec` is given text, CPython forgets that the program ended by Ctrl-C, and the
    # process would not end by that signal.
    exec(compile(source, "<velo>", "exec", 0, True), namespace)
    return namespace


def is_tidying(callback: "Any") -> bool:
    """Whether this callback of a weak reference only tidies tables that nobody will look at any more."""
    kind = type(callback)
    if (kind.__module__, kind.__qualname__) == ("weakref", "finalize"):
        return kind._shutdown is True  # those that had to run have run
    if (kind.__module__, kind.__qualname__) == ("functools", "partial"):
        return is_tidying(callback.func)
    function = getattr(callback, "__func__", callback)
    if type(function) is not FUNCTION:
        return False
    name = (function.__module__, function.__code__.co_qualname)
    if name == ("weakref", "WeakMethod.__new__.<locals>._cb"):
        values = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        inner = values["callback"].cell_contents
        return inner is None or is_tidying(inner)
    return name in TIDYING

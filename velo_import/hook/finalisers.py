# SPDX-License-Identifier: Apache-2.0
"""Objects alive at exit that have a finaliser, or are watched by a callback: would either do anything?

Loaded only where there are such. What is not understood would.
"""

from _io import (
    BufferedRandom,
    BufferedReader,
    BufferedWriter,
    BytesIO,
    FileIO,
    StringIO,
    TextIOWrapper,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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

FUNCTION = type(lambda: None)
FILES = (BufferedRandom, BufferedReader, BufferedWriter, FileIO, TextIOWrapper)


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

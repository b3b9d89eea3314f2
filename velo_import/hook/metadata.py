# SPDX-License-Identifier: Apache-2.0
"""`importlib.metadata`, made to ask us first.

Loaded only in programs that import it (or its backport `importlib_metadata`), after its body has run. Many of
them ask it nothing: so who answers (answers.py) is loaded at the first question, and never where anybody
audits. The surprise: `entry_points` itself is not touched. It asks `_unique` for the distributions, and gets
one object that has the entry points of all of them.
"""

import sys
from _frozen_importlib_external import PathFinder
from _operator import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from velo_import.hook.counts import Counts

FUNCTION: "Any" = type(lambda: None)

# What our answers stand for, besides the three that we replace. A name that a version does not have counts
# as None.
NAMES = (
    "Distribution",
    "EntryPoint",
    "EntryPoints",
    "FastPath",
    "FreezableDefaultDict",
    "Lookup",
    "MetadataPathFinder",
    "PathDistribution",
    "Prepared",
    "Sectioned",
    "SelectableGroups",
    "_safe_has_metadata",
    "distributions",
)
PARTS = {
    "Distribution": (
        "__new__",
        "_normalized_name",
        "discover",
        "_discover_resolvers",
        "_prefer_valid",
        "_has_metadata",
        "entry_points",
        "metadata",
    )
    + ("name", "version"),
    "EntryPoint": ("__init__", "__new__", "_for"),
    "EntryPoints": ("__new__", "_from_text", "_from_text_for"),
    "FastPath": ("__init__", "__new__", "children", "joinpath", "lookup", "mtime", "search"),
    "Lookup": ("__init__", "search"),
    "MetadataPathFinder": ("_search_paths", "find_distributions"),
    "PathDistribution": (
        "__init__",
        "_name_from_stem",
        "_normalized_name",
        "entry_points",
        "metadata",
        "name",
    )
    + ("read_text", "version"),
    "Prepared": ("__init__", "normalize", "legacy_normalize"),
    "Sectioned": ("read", "section_pairs", "valid"),
}
# What may stand in the code of `entry_points`, in which we answer one call for all of them.
COLLECTS = frozenset(
    (
        "Distribution",
        "EntryPoints",
        "SelectableGroups",
        "_prefer_valid",
        "_unique",
        "chain",
        "distributions",
        "entry_points",
        "from_iterable",
        "itertools",
        "load",
        "select",
    )
)
# What the contents of distributions stand for, besides these (contents.py).
NAMES_OF_CONTENTS = ("FileHash", "PackagePath")
PARTS_OF_CONTENTS = {
    "Distribution": (
        "_assemble_message",
        "_ensure_metadata_present",
        "_metadata_text",
        "_read_files_distinfo",
        "files",
    ),
    "FileHash": ("__init__",),
    "PackagePath": ("__init__", "__new__", "exists", "locate"),
    "PathDistribution": ("_read_files_distinfo", "files", "locate_file"),
}
# Which method of `Answers` is asked in the place of a property of `Distribution`, and of these functions.
QUESTIONS = {
    "entry_points": "entry_points_of",
    "files": "content_of",
    "metadata": "content_of",
    "name": "field_of",
    "version": "field_of",
}
ASKING = ("_top_level_declared", "_top_level_inferred")


class Place:
    """One module that asks us, `importlib.metadata` or its backport: what it was before, and who answers."""

    def __init__(self, module: "Any", counts: "Counts", open_answers: "Callable[[Place], Any]") -> None:
        self.module = module
        self.counts = counts
        self.open_answers = open_answers
        self.answers: Any = None
        self.names: dict[str, Any] = vars(module)
        self.path_type = self.names["pathlib"].PosixPath
        self.find_distributions = vars(PathFinder).get("find_distributions")
        self.replace()
        # As our functions are in their places by now: what somebody replaces later is seen by these.
        self.stock = self.watched(NAMES, PARTS)
        self.stock_contents = self.watched(NAMES_OF_CONTENTS, PARTS_OF_CONTENTS)
        # Nothing else than these attributes is set: without the calls that takes a third of the time, and a
        # tenth where each new distribution looks for abstract methods first (3.12, 3.13).
        made = [vars(self.names["EntryPoint"])[name] for name in ("__init__", "_for")]
        made.append(vars(self.names["PathDistribution"])["__init__"])
        does = [each.__code__.co_names for each in made]
        self.is_plain = does == [("vars", "update"), ("vars", "update"), ("_path",)]

    def ask(self, question: str, *arguments: "Any") -> "Any":
        """What the method of that name answers; None, or False, to have Python go its own way."""
        try:
            if self.answers is None:
                self.answers = self.open_answers(self)
            return self.answers and getattr(self.answers, question)(*arguments)
        except Exception:
            self.counts.errors += 1
            return None

    # -- what is replaced --------------------------------------------------------------------------

    def replace(self) -> None:
        """Put our functions where theirs were: in the module's `_unique`, in `Lookup` and `Distribution`."""
        names, ask = self.names, self.ask  # signatures are seen: in what follows `self` is theirs
        distribution, lookup, unique = names["Distribution"], names["Lookup"], names["_unique"]
        everseen = unique.func
        read_folder = vars(lookup)["__init__"]
        self.getters = getters = {name: vars(distribution)[name] for name in QUESTIONS}
        functions: dict[str, Any] = {name: names.get(name) for name in ASKING}
        stock_functions = {name: each for name, each in functions.items() if type(each) is FUNCTION}
        self.stock_functions = stock_functions
        code = names["entry_points"].__code__
        collects = {name for each in (code, *code.co_consts) for name in getattr(each, "co_names", ())}
        self.entry_points_code = code if collects <= COLLECTS else None
        # Later versions of the backport put those that have no METADATA last.
        self.prefers_valid = "_prefer_valid" in collects
        if type(unique) is not names["functools"].partial or not all(
            type(each) is property for each in getters.values()
        ):
            raise KeyError("another version")

        def unique_everseen(iterable: "Any", key: "Any" = None) -> "Any":
            found = ask("everything", sys._getframe(1), iterable)
            return everseen(iterable, key) if found is None else found

        def __init__(self: "Any", path: "Any") -> None:
            if not ask("fill", self, path):
                read_folder(self, path)

        def getter(name: str) -> "Any":
            stock = getters[name].fget
            question = QUESTIONS[name]

            def get(self: "Any") -> "Any":
                known = ask(question, self, name)
                return stock(self) if known is None else known

            disguise(get, stock)
            return property(get, doc=getters[name].__doc__)

        def asking(name: str) -> "Any":
            stock = stock_functions[name]

            def function(dist: "Any") -> "Any":
                known = ask("content_of", dist, name)
                return stock(dist) if known is None else known

            disguise(function, stock)
            return function

        disguise(unique_everseen, everseen)
        disguise(__init__, read_folder)
        for name in getters:
            setattr(distribution, name, getter(name))
        for name in stock_functions:
            names[name] = asking(name)
        lookup.__init__ = __init__
        names["_unique"] = type(unique)(unique_everseen, *unique.args, **unique.keywords)

    def watched(
        self, names: "tuple[str, ...]", parts: "dict[str, tuple[str, ...]]"
    ) -> "tuple[list[Any], ...]":
        """Every part of the module that answers stand for: how to look it up, its name, and what it is."""
        found = [(self.names.get, name) for name in names]
        for name, members in parts.items():
            found += [(vars(self.names[name]).get, member) for member in members]
        look_ups, wanted = map(list, zip(*found))  # noqa: B905 # pairs
        return look_ups, wanted, list(map(call, look_ups, wanted))


def disguise(ours: "Any", stock: "Any") -> None:
    """Let a function look like the one whose place it takes: in tracebacks, to `inspect` and to readers."""
    code = stock.__code__
    ours.__code__ = ours.__code__.replace(
        co_filename=code.co_filename,
        co_firstlineno=code.co_firstlineno,
        co_name=code.co_name,
        co_qualname=code.co_qualname,
    )
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__annotations__"):
        setattr(ours, name, getattr(stock, name))
    vars(ours).update(vars(stock))


def accelerate(
    module: "Any",
    path: str,
    identity: bytes,
    counts: "Counts",
    mapping: "Any",
    check: "int | None",
    load: "Callable[..., Any]",
) -> None:
    """Have a module that was just loaded ask us first.

    Args:
        path: where the table is.
        identity: the interpreter's (FORMAT.md, section 2).
        check: STAT, ROOT_ONLY or NEVER for every root, or None for what was learned.
        load: gives the namespace of another module of the hook by its short name.
    """
    identity += b"\0" + sys.version.encode()

    def open_answers(place: Place) -> "Any":
        answers = load("answers", True)
        if answers is None:
            return None

        def open_contents(asked: "Any") -> "Any":
            at = path.rpartition("/")[0] + "/contents.table"
            start, entry = answers["START_OF_CONTENTS"], answers["ENTRY_SIZE"]
            mapped = answers["mapped_table"](at, start, identity, mapping, entry)
            return load("contents")["Contents"](asked, mapped)

        def open_table() -> "Any":
            return answers["Table"](path, identity, mapping, check)

        return answers["Answers"](place, open_table, open_contents, mapping)

    try:
        Place(module, counts, open_answers)
    except (KeyError, AttributeError):
        counts.reasons["metadata: another version"] = 1

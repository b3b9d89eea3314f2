# SPDX-License-Identifier: Apache-2.0
"""`importlib.metadata` answered from what was learned: which distributions there are, their versions and
entry points.

Loaded only in programs that import it (or its backport `importlib_metadata`), after its body has run. What it
hands out is its own: its classes, made by its own code; we spare it the listing, reading and parsing of files
that are what they were, and leave it alone where anybody has replaced a part of it, audits, or put another
finder of distributions in place. What single files say is known to contents.py. The surprise: `entry_points`
itself is not touched. It asks `_unique` for the distributions, and gets one object that has the entry points
of all of them.
"""

import sys
from _frozen_importlib_external import PathFinder
from _imp import source_hash
from _operator import call, is_
from itertools import accumulate
from os import fsencode
from posix import geteuid, listdir, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import Any, NamedTuple

    from velo_import.hook.contents import Contents
    from velo_import.hook.counts import Counts

    class Mapped(NamedTuple):
        """A table that was mapped and checked, also as words; where its parts begin, and their number."""

        bytes: memoryview
        words: memoryview
        at: int
        parts: int


HASH_KEY = 0x56454C4F
# FORMAT.md, sections 12 and 12.1: version 1, no features.
START = b"VELOMETA\x01\x00\x00\x00\x00\x00\x00\x00"
START_OF_CONTENTS = b"VELOINFO\x01\x00\x00\x00\x00\x00\x00\x00"
HEADER_SIZE, ENTRY_SIZE = 64, 24
MOST_ROOTS = 256
ROOT_WORDS, RECORD_WORDS = 7, 9
LEFT = 1 << 40
STAT, ROOT_ONLY, NEVER = 0, 1, 2
INFOS = (".dist-info", ".egg-info")
# Opening the contents takes as long as Python takes to read and parse so many descriptions.
PARSED_FIRST = 2
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
# Who says in `Contents` what a property or a function of Python is to say.
CONTENTS_OF = {
    "metadata": "metadata_of",
    "files": "files_of",
    "_top_level_declared": "declared_by",
    "_top_level_inferred": "inferred_from",
}


class Unusable(Exception):
    """Why a table is not used; the text is the reason that is counted. Never leaves the hook."""


class Known:
    """One distribution as it was learned: stamp of its METADATA, and of what tells its entry points."""

    __slots__ = ("beside", "child", "metadata", "name", "normalized", "points", "root", "version")

    def __init__(self, root: "Root", words: "list[str]", stamps: "list[int]", points: "list[str]") -> None:
        self.root = root
        self.child, self.normalized, self.name, self.version = words
        self.metadata = stamps[:4]
        self.beside = stamps[4:8]
        self.points = points

    def path(self) -> str:
        """Where its metadata is."""
        return self.root.prefix + self.child

    def source(self) -> str:
        """What tells about its entry points: the file, or the folder in which it would appear."""
        return self.path() if self.beside[3] == -1 else self.path() + "/entry_points.txt"


class Root:
    """One folder as it was learned. Most programs ask for one or two of its distributions: each is made when
    it is asked for.
    """

    __slots__ = (
        "check",
        "children",
        "ctime",
        "ino",
        "is_left",
        "made",
        "mtime",
        "normalized",
        "numbers",
        "path",
        "prefix",
        "starts",
        "texts",
    )

    def __init__(self, words: memoryview, texts: "list[str]", check: "int | None") -> None:
        count, head = words[2:4]
        # As signed numbers: times before 1970, and -1 for any size.
        numbers = words[: ROOT_WORDS + count * RECORD_WORDS].cast("B").cast("q").tolist()
        self.path = texts[0]
        self.prefix = self.path.rstrip("/") + "/"
        self.check = head >> 32 & 0xFF if check is None else check
        self.is_left = bool(head & LEFT)
        self.mtime, self.ctime, self.ino = numbers[4:ROOT_WORDS]
        self.numbers, self.texts = numbers, texts
        counts = [3 * number for number in numbers[ROOT_WORDS + RECORD_WORDS - 1 :: RECORD_WORDS]]
        self.starts = list(accumulate(counts, initial=1 + 4 * count))
        if len(counts) != count or min(counts, default=0) < 0 or len(texts) != self.starts[-1] + 1:
            raise Unusable("damaged")
        self.children = dict(zip(texts[1 : 1 + count], range(count)))  # noqa: B905 # of one length
        self.normalized = texts[1 + count : 1 + 2 * count]
        self.made: dict[int, Known] = {}

    def known(self, index: int) -> Known:
        """One of the distributions."""
        try:
            return self.made[index]
        except KeyError:
            texts, (start, end) = self.texts, self.starts[index : index + 2]
            place = ROOT_WORDS + index * RECORD_WORDS
            columns = texts[1 + index : self.starts[0] : len(self.children)]
            made = Known(self, columns, self.numbers[place : place + 8], texts[start:end])
            self.made[index] = made
            return made

    def child(self, name: str) -> "Known | None":
        """The distribution in that folder, if there is one."""
        index = self.children.get(name)
        return None if index is None else self.known(index)

    def is_current(self, mapping: "Any") -> bool:
        """Whether the folder is as it was; asked of a network's disk, its inode does not count."""
        if self.check == NEVER:
            return True
        if self.check == ROOT_ONLY:
            status = stat(self.path)
            return (status.st_mtime_ns, status.st_ctime_ns) == (self.mtime, self.ctime)
        return mapping.is_unchanged(self.path, -1, self.mtime, self.ctime, self.ino) is True


def mapped_table(path: str, start: bytes, identity: bytes, mapping: "Any", entry: int = 0) -> "Mapped":
    """Map a table that starts so and was made for this build; `entry` bytes of its head belong to each part.

    Raises:
        Unusable, OSError, ValueError: it is not there or no such.
    """
    mapped, (uid, mode, *_) = mapping.map_file(fsencode(path))
    if uid not in (0, geteuid()) or mode & 0o022:
        raise Unusable("owner")
    table = memoryview(mapped)
    size = len(table)
    if size < HEADER_SIZE or size % 8 or table[:16] != start:
        raise Unusable("not a table")
    words = table.cast("Q")
    at = (HEADER_SIZE + words[4] + 7) // 8 * 8
    end = at + entry * words[5]
    if words[2] != size or end > size:
        raise Unusable("damaged")
    if int.from_bytes(source_hash(HASH_KEY, table[32:end]), "little") != words[3]:
        raise Unusable("damaged")
    if table[HEADER_SIZE : HEADER_SIZE + words[4]] != identity:
        raise Unusable("build")
    return table, words, at, words[5]  # type: ignore[return-value] # no such class when the hook runs


class Table:
    """The mapped table, checked once; each root when it is first asked for.

    Raises:
        Unusable, OSError, ValueError, IndexError: for the constructor only; it is not there or no such.
    """

    def __init__(self, path: str, identity: bytes, mapping: "Any", check: "int | None") -> None:
        self.bytes, self.words, at, count = mapped_table(path, START, identity, mapping)
        size, words = len(self.bytes), self.words
        if count > MOST_ROOTS:
            raise Unusable("damaged")
        self.check = check
        self.places: list[tuple[int, int]] = []
        for _ in range(count):
            length = words[at >> 3]
            if length % 8 or not ROOT_WORDS * 8 <= length <= size - at:
                raise Unusable("damaged")
            self.places.append((at, length))
            at += length
        self.roots: dict[str, Root | None] = {}

    def root(self, path: str) -> "Root | None":
        """What was learned of one folder."""
        try:
            return self.roots[path]
        except KeyError:
            pass
        found = None
        wanted = path.encode("utf-8", "surrogateescape") + b"\0"
        for at, length in self.places:
            words = self.words[at >> 3 : at + length >> 3]
            start = (ROOT_WORDS + words[2] * RECORD_WORDS) * 8
            size = words[3] & 0xFFFFFFFF
            if start + size > length:
                raise Unusable("damaged")
            text = self.bytes[at + start : at + start + size]
            if text[: len(wanted)] != wanted:
                continue
            body = self.bytes[at + 16 : at + length]
            if int.from_bytes(source_hash(HASH_KEY, body), "little") != words[1]:
                raise Unusable("damaged")
            found = Root(words, str(text, "utf-8", "surrogateescape").split("\0"), self.check)
        self.roots[path] = found
        return found


def is_same(watched: "tuple[list[Any], ...]") -> bool:
    """Whether everything is what it was. Asked at each answer: a loop would take twice as long."""
    look_ups, names, stock = watched
    return all(map(is_, map(call, look_ups, names), stock))


class Everything:
    """Stands for all distributions where `entry_points` asks each of them for its own."""

    __slots__ = ("entry_points",)

    def __init__(self, entry_points: "list[Any]") -> None:
        self.entry_points = entry_points


class Answers:
    """What we answer in the place of one module: `importlib.metadata` or its backport."""

    def __init__(
        self,
        module: "Any",
        open_table: "Callable[[], Table]",
        open_contents: "Callable[[Answers], Contents]",
        counts: "Counts",
        mapping: "Any",
    ) -> None:
        self.module = module
        self.table_of = open_table
        self.contents_of = open_contents
        self.contents: Contents | None = None
        self.is_contents_open = False
        self.parsed = 0
        self.is_parser_loaded = False
        self.loaded: set[tuple[str, str]] = set()
        self.table: Table | None = None
        self.is_open = False
        self.counts = counts
        self.mapping = mapping
        self.names: dict[str, Any] = vars(module)
        names = self.names
        self.is_backport = module.__name__ != "importlib.metadata"
        self.path_type = self.names["pathlib"].PosixPath
        self.find_distributions = vars(PathFinder).get("find_distributions")
        self.replace()
        self.stock = self.watched(NAMES, PARTS)
        self.stock_contents = self.watched(NAMES_OF_CONTENTS, PARTS_OF_CONTENTS)
        # Nothing else than these attributes is set: without the calls that takes a third of the time, and a
        # tenth where each new distribution looks for abstract methods first (3.12, 3.13).
        made = [vars(names["EntryPoint"])["__init__"], vars(names["EntryPoint"])["_for"]]
        made.append(vars(names["PathDistribution"])["__init__"])
        does = [each.__code__.co_names for each in made]
        self.is_plain = does == [("vars", "update"), ("vars", "update"), ("_path",)]

    # -- what is replaced --------------------------------------------------------------------------

    def replace(self) -> None:
        """Put our functions where theirs were: in the module's `_unique`, in `Lookup` and `Distribution`."""
        names, answers = self.names, self  # signatures are seen: in what follows `self` is theirs
        distribution, lookup, unique = names["Distribution"], names["Lookup"], names["_unique"]
        everseen = unique.func
        read_folder = vars(lookup)["__init__"]
        watched = ("entry_points", "files", "metadata", "name", "version")
        self.getters = getters = {name: vars(distribution)[name] for name in watched}
        functions: dict[str, Any] = {name: names.get(name) for name in CONTENTS_OF if name.startswith("_")}
        self.stock_functions = {name: each for name, each in functions.items() if type(each) is FUNCTION}
        code = names["entry_points"].__code__
        collects = {name for each in (code, *code.co_consts) for name in getattr(each, "co_names", ())}
        self.entry_points_code = code if collects <= COLLECTS else None
        # Later versions of the backport put those that have no METADATA last.
        self.prefers_valid = "_prefer_valid" in collects
        if type(unique) is not names["functools"].partial or not all(
            type(each) is property for each in getters.values()
        ):
            raise Unusable("another version")

        def unique_everseen(iterable: "Any", key: "Any" = None) -> "Any":
            found = answers.everything(sys._getframe(1), iterable)
            return everseen(iterable, key) if found is None else found

        def __init__(self: "Any", path: "Any") -> None:
            if not answers.fill(self, path):
                read_folder(self, path)

        def getter(name: str) -> "Any":
            stock = getters[name].fget
            answer = answers.content_of if name in CONTENTS_OF else answers.field_of
            answer = answers.entry_points_of if name == "entry_points" else answer

            def get(self: "Any") -> "Any":
                known = answer(self, name)
                return stock(self) if known is None else known

            disguise(get, stock)
            return property(get, doc=getters[name].__doc__)

        def asking(name: str) -> "Any":
            stock = answers.stock_functions[name]

            def ask(dist: "Any") -> "Any":
                known = answers.content_of(dist, name)
                return stock(dist) if known is None else known

            disguise(ask, stock)
            return ask

        disguise(unique_everseen, everseen)
        disguise(__init__, read_folder)
        for name in getters:
            setattr(distribution, name, getter(name))
        for name in self.stock_functions:
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

    def is_stock(self) -> bool:
        """Whether nobody has replaced anything, and nobody audits what is read."""
        return is_same(self.stock) and not self.mapping.is_audited()

    def is_only_finder(self) -> bool:
        """Whether distributions are found in folders of `sys.path` alone."""
        finders = [each for each in sys.meta_path if getattr(each, "find_distributions", None)]
        if len(finders) != 1:
            return False
        if self.is_backport:
            return type(finders[0]) is self.names["MetadataPathFinder"]
        found: Any = finders[0]
        return found is PathFinder and vars(PathFinder).get("find_distributions") is self.find_distributions

    # -- what is known -----------------------------------------------------------------------------

    def opened(self) -> "Table | None":
        """The table; opened at first use."""
        if not self.is_open:
            self.is_open = True
            try:
                self.table = self.table_of()
            except FileNotFoundError:
                self.want()
            except (OSError, ValueError, IndexError) as error:
                self.want(type(error).__name__)
            except Unusable as unusable:
                self.want(str(unusable))
        return self.table

    def root_of(self, path: str) -> "Root | None":
        """What was learned of one folder."""
        table = self.opened()
        if table is None:
            return None
        try:
            return table.root(path)
        except (Unusable, ValueError, IndexError):
            self.table = None
            self.counts.errors += 1
            self.want("damaged")
            return None

    def want(self, reason: str = "") -> None:
        """Have it learned again."""
        self.counts.wanted["metadata"] = ""
        if reason:
            self.counts.reasons[f"metadata: {reason}"] = 1

    def known_in(self, path: str) -> "Root | list[Known] | None":
        """What is in a folder: as it was learned, nothing at all, or None where Python has to look."""
        root = self.root_of(path)
        try:
            if root is not None and root.is_current(self.mapping):
                return None if root.is_left else root
            names = listdir(path or ".")
        except FileNotFoundError:
            # It might have been a zip file.
            self.load("zipfile", "Path", vars(self.names["FastPath"]).get("zip_children"))
            return []
        except OSError:
            return None  # It may be a zip file.
        found = [name for name in names if name.lower().endswith(INFOS)]
        if path.lower().endswith(".egg") or (not path and found):
            return None
        if root is None and not found:
            return []
        if root is not None and not root.is_left and found == list(root.children):
            return root  # Something else in it has changed.
        if path.startswith("/") and not path.endswith("/"):
            self.want("folder changed" if root else "folder not known")
        return None

    def known_of(self, own: "Any") -> "Known | None":
        """What was learned of a distribution object, if it is one of the plain ones."""
        names = self.names
        if type(own) is not names["PathDistribution"]:
            return None
        place = vars(own).get("_path")
        if type(place) is not self.path_type or not self.is_stock():
            return None
        folder, _, child = str(place).rpartition("/")
        root = self.root_of(folder)
        return None if root is None or root.is_left else root.child(child)

    def is_fresh(self, root: Root, path: str, stamp: "list[int]") -> bool:
        """Whether a file in this folder is what it was."""
        if root.check != STAT and root.is_current(self.mapping):
            return True
        mtime, ctime, ino, size = stamp
        if self.mapping.is_unchanged(path, size, mtime, ctime, ino) is True:
            return True
        self.want("file changed")
        return False

    # -- answers -----------------------------------------------------------------------------------

    def field_of(self, own: "Any", name: str) -> "str | None":
        """Name or version of a distribution, or None."""
        try:
            known = self.known_of(own)
            if known is None or not known.metadata[3]:
                return None
            if not self.is_fresh(known.root, known.path() + "/METADATA", known.metadata):
                return None
            self.load_parser()
            self.counts.metadata += 1
            return known.version if name == "version" else known.name
        except Exception:
            self.counts.errors += 1
            return None

    @staticmethod
    def codes_of(*functions: "Any") -> "Iterator[Any]":
        """The code of functions, and of those in them."""
        codes = [each.__code__ for each in functions if type(each) is FUNCTION]
        while codes:
            code = codes.pop()
            yield code
            codes += [each for each in code.co_consts if type(each) is type(code)]

    def load(self, name: str, part: str, *functions: "Any") -> None:
        """Have a module loaded that these functions load when they are called: a program may find it in
        `sys.modules` from then on. `part` is what they use of it.
        """
        if (name, part) in self.loaded:
            return
        if name in self.names:
            getattr(getattr(self.module, name), part, None)  # One that is imported lazily is loaded by this.
        elif any(name in code.co_names for code in self.codes_of(*functions)):
            __import__(self.module.__name__ + "." + name if name[0] == "_" else name)
        self.loaded.add((name, part))

    def load_parser(self) -> None:
        """Load what parses METADATA."""
        if self.is_parser_loaded and "email.parser" in sys.modules:
            return
        self.is_parser_loaded = True
        parts = [getattr(each, "__func__", each) for each in vars(self.names["Distribution"]).values()]
        functions = [each for each in (*parts, self.getters["metadata"].fget) if type(each) is FUNCTION]
        self.load("_adapters", "Message", *functions)
        if sys.version_info >= (3, 15):
            # A lazy import is done when its name is met, before the call's argument.
            self.load("Message", "__init__")
        if "email.parser" not in sys.modules:
            __import__("email.parser")
        self.load("Message", "__init__")

    def content_of(self, own: "Any", name: str) -> "Any":
        """What one of the files of a distribution says, or None."""
        try:
            known = self.known_of(own)
            if known is None or not is_same(self.stock_contents):
                return None
            if name == "metadata" and not self.is_contents_open and known.root.check == STAT:
                self.parsed += 1
                if self.parsed <= PARSED_FIRST:
                    return None
            contents = self.opened_contents()
            answer = None if contents is None else getattr(contents, CONTENTS_OF[name])(known, own)
            self.counts.metadata += answer is not None
            return answer
        except (OSError, UnicodeError):
            return None  # A listed file that cannot be asked for.
        except (ValueError, IndexError):
            self.contents = None
            self.counts.errors += 1
            self.want("contents: damaged")
            return None
        except Exception:
            self.counts.errors += 1
            return None

    def opened_contents(self) -> "Contents | None":
        """What answers for the contents of distributions; opened at first use."""
        if not self.is_contents_open:
            self.is_contents_open = True
            try:
                self.contents = self.contents_of(self)
            except FileNotFoundError:
                self.want()
            except Exception as error:
                self.want(f"contents: {error if type(error) is Unusable else type(error).__name__}")
        return self.contents

    def entry_points_of(self, own: "Any", name: str) -> "Any":
        """The entry points of a distribution, or None."""
        try:
            known = self.known_of(own)
            if known is None or not self.is_fresh(known.root, known.source(), known.beside):
                return None
            self.counts.metadata += 1
            return self.names["EntryPoints"](self.made(known, own, None))
        except Exception:
            self.counts.errors += 1
            return None

    def made(self, known: Known, own: "Any", only: "str | None") -> "list[Any]":
        """The entry points of one distribution; `only` those of one group, if it is given."""
        make = self.names["EntryPoint"]
        points = iter(known.points)
        made = []
        for group, name, value in zip(points, points, points):  # noqa: B905 # three by three
            if only is not None and group != only:
                continue
            if self.is_plain:
                point = object.__new__(make)
                vars(point).update(name=name, value=value, group=group, dist=own)
            else:
                point = make(name, value, group)._for(own)
            made.append(point)
        return made

    def fill(self, own: "Any", path: "Any") -> bool:
        """Make the table of a folder, as `Lookup` does, of what is known; whether that could be done."""
        try:
            if type(path) is not self.names["FastPath"] or type(path.root) is not str or not self.is_stock():
                return False
            found = self.known_in(path.root)
            if found is None:
                return False
            table = self.names["FreezableDefaultDict"]
            infos, eggs = table(list), table(list)
            if isinstance(found, Root):
                for name, child in zip(found.normalized, found.children):  # noqa: B905 # of one length
                    infos[name].append(path.joinpath(child))
            infos.freeze()
            eggs.freeze()
            own.infos, own.eggs = infos, eggs
            self.counts.metadata += 1
            return True
        except Exception:
            self.counts.errors += 1
            return False

    def everything(self, frame: "FrameType", iterable: "Any") -> "list[Everything] | None":
        """The entry points of everything on `sys.path`, or None where one of them has to be read."""
        try:
            if (
                frame.f_code is not self.entry_points_code
                or type(iterable) is not self.names["itertools"].chain
                or not self.is_stock()
                or not self.is_only_finder()
            ):
                return None
            # Select leaves the others out; they need not be made.
            group = frame.f_locals.get("params", {}).get("group")
            return self.collected(group if type(group) is str else None)
        except Exception:
            self.counts.errors += 1
            return None

    def collected(self, group: "str | None") -> "list[Everything] | None":
        """The entry points of the first distribution of each name; those that Python has to look for, too."""
        names = self.names
        make, folder_of = names["PathDistribution"], names["FastPath"]
        first: dict[str, tuple[Any, Known | None]] = {}
        asked = []
        is_known = False
        for entry in list(sys.path):
            found = self.known_in(entry) if type(entry) is str else None
            if found is None:
                try:
                    for path in folder_of(entry).search(names["Prepared"](None)):
                        own = make(path)
                        if self.prefers_valid or not own._name_from_stem(str(path).rpartition("/")[2]):
                            return None  # It would be read here, and warn twice if we fail later.
                        first.setdefault(own._normalized_name, (own, None))
                except Exception:
                    return None  # Python shall fail itself.
            elif isinstance(found, Root):
                is_known = True
                is_asked = found.check == STAT or not found.is_current(self.mapping)
                for index, name in enumerate(found.normalized):
                    if name not in first:
                        known = found.known(index)
                        if self.prefers_valid and not known.metadata[3]:
                            return None
                        first[name] = entry, known
                        if is_asked:
                            asked.append(known)
        if not is_known:
            return None
        is_unchanged = self.mapping.is_unchanged
        sources = [(known.source(), known.beside) for known in asked]
        if self.prefers_valid:
            sources += [(known.path() + "/METADATA", known.metadata) for known in asked]
        for source, (mtime, ctime, ino, size) in sources:
            if is_unchanged(source, size, mtime, ctime, ino) is not True:
                self.want("file changed")
                return None
        points: list[Any] = []
        for place, learned in first.values():
            if learned is None:
                try:
                    points += place.entry_points
                except Exception:
                    return None
            elif learned.points and (group is None or group in learned.points[::3]):
                path = folder_of(place).joinpath(learned.child)
                if self.is_plain:
                    own = object.__new__(make)
                    own._path = path
                else:
                    own = make(path)
                points += self.made(learned, own, group)
        self.counts.metadata += 1
        return [Everything(points)]


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
    load: "Callable[[str], Any]",
) -> None:
    """Have a module that was just loaded ask us first.

    Args:
        path: where the table is.
        identity: the interpreter's (FORMAT.md, section 2).
        check: STAT, ROOT_ONLY or NEVER for every root, or None for what was learned.
        load: gives the namespace of another module of the hook by its short name.
    """
    identity += b"\0" + sys.version.encode()

    def open_contents(answers: "Answers") -> "Contents":
        place = path.rpartition("/")[0] + "/contents.table"
        mapped = mapped_table(place, START_OF_CONTENTS, identity, mapping, ENTRY_SIZE)
        contents: Contents = load("contents")["Contents"](answers, mapped)
        return contents

    try:
        Answers(module, lambda: Table(path, identity, mapping, check), open_contents, counts, mapping)
    except (Unusable, KeyError, AttributeError):
        counts.reasons["metadata: another version"] = 1

# SPDX-License-Identifier: Apache-2.0
"""`importlib.metadata` answered from what was learned: which distributions there are, their versions and
entry points.

Loaded only in programs that import it (or its backport `importlib_metadata`), after its body has run. What it
hands out is its own: its classes, made by its own code; we spare it the listing, reading and parsing of files
that are what they were, and leave it alone where anybody has replaced a part of it, audits, or put another
finder of distributions in place. The surprise: `entry_points` itself is not touched. It asks `_unique` for
the distributions, and gets one object that has the entry points of all of them.
"""

import sys
from _frozen_importlib_external import PathFinder
from _imp import source_hash
from os import fsencode
from posix import geteuid, listdir, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    from velo_import.hook.counts import Counts

HASH_KEY = 0x56454C4F
# FORMAT.md, section 12: magic, version 1, no features.
START = b"VELOMETA\x01\x00\x00\x00\x00\x00\x00\x00"
HEADER_SIZE = 64
MOST_ROOTS = 256
ROOT_WORDS, RECORD_WORDS = 7, 9
LEFT = 1 << 40
STAT, ROOT_ONLY, NEVER = 0, 1, 2
INFOS = (".dist-info", ".egg-info")
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
    "distributions",
)
PARTS = {
    "Distribution": (
        "__new__",
        "_normalized_name",
        "discover",
        "_discover_resolvers",
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


class Unusable(Exception):
    """Why a table is not used; the text is the reason that is counted. Never leaves the hook."""


class Known:
    """One distribution as it was learned: stamp of its METADATA, and of what tells its entry points."""

    __slots__ = ("beside", "child", "metadata", "name", "normalized", "points", "root", "version")

    def __init__(
        self, root: "Root", words: "tuple[str, ...]", stamps: "list[int]", points: "list[str]"
    ) -> None:
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
    """One folder as it was learned."""

    __slots__ = ("check", "children", "ctime", "ino", "is_left", "known", "mtime", "path", "prefix")

    def __init__(self, words: memoryview, texts: "list[str]", check: "int | None") -> None:
        count, head = words[2:4]
        # As signed numbers: times before 1970, and -1 for any size.
        numbers = words.cast("B").cast("q").tolist()
        self.path = texts[0]
        self.prefix = self.path.rstrip("/") + "/"
        self.check = head >> 32 & 0xFF if check is None else check
        self.is_left = bool(head & LEFT)
        self.mtime, self.ctime, self.ino = numbers[4:ROOT_WORDS]
        self.known: list[Known] = []
        columns = [texts[1 + column * count : 1 + (column + 1) * count] for column in range(4)]
        at = 1 + 4 * count
        place = ROOT_WORDS
        for fields in zip(*columns):  # noqa: B905 # a wrong length is seen at the end
            end = at + 3 * numbers[place + 8]
            self.known.append(Known(self, fields, numbers[place : place + 8], texts[at:end]))
            at = end
            place += RECORD_WORDS
        if len(self.known) != count or len(texts) != at + 1:
            raise Unusable("damaged")
        self.children = {known.child: known for known in self.known}

    def is_current(self, mapping: "Any") -> bool:
        """Whether the folder is as it was; asked of a network's disk, its inode does not count."""
        if self.check == NEVER:
            return True
        if self.check == ROOT_ONLY:
            status = stat(self.path)
            return (status.st_mtime_ns, status.st_ctime_ns) == (self.mtime, self.ctime)
        return mapping.is_unchanged(self.path, -1, self.mtime, self.ctime, self.ino) is True


class Table:
    """The mapped table, checked once; each root when it is first asked for.

    Raises:
        Unusable, OSError, ValueError, IndexError: for the constructor only; it is not there or no such.
    """

    def __init__(self, path: str, identity: bytes, mapping: "Any", check: "int | None") -> None:
        mapped, (uid, mode, *_) = mapping.map_file(fsencode(path))
        if uid not in (0, geteuid()) or mode & 0o022:
            raise Unusable("owner")
        self.check = check
        self.bytes = memoryview(mapped)
        size = len(self.bytes)
        if size < HEADER_SIZE or size % 8 or self.bytes[:16] != START:
            raise Unusable("not a table")
        self.words = words = self.bytes.cast("Q")
        at = (HEADER_SIZE + words[4] + 7) // 8 * 8
        if words[2] != size or at > size or words[5] > MOST_ROOTS:
            raise Unusable("damaged")
        if int.from_bytes(source_hash(HASH_KEY, self.bytes[32:at]), "little") != words[3]:
            raise Unusable("damaged")
        if self.bytes[HEADER_SIZE : HEADER_SIZE + words[4]] != identity:
            raise Unusable("build")
        self.places: list[tuple[int, int]] = []
        for _ in range(words[5]):
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


class Everything:
    """Stands for all distributions where `entry_points` asks each of them for its own."""

    __slots__ = ("entry_points",)

    def __init__(self, entry_points: "list[Any]") -> None:
        self.entry_points = entry_points


class Answers:
    """What we answer in the place of one module: `importlib.metadata` or its backport."""

    def __init__(
        self, module: "Any", open_table: "Callable[[], Table]", counts: "Counts", mapping: "Any"
    ) -> None:
        self.table_of = open_table
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
        self.stock = [(look_up, name, look_up(name)) for look_up, name in self.watched()]
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
        getters = {name: vars(distribution)[name] for name in ("entry_points", "name", "version")}
        self.entry_points_code = names["entry_points"].__code__
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
            answer = answers.entry_points_of if name == "entry_points" else answers.field_of

            def get(self: "Any") -> "Any":
                known = answer(self, name)
                return stock(self) if known is None else known

            disguise(get, stock)
            return property(get, doc=getters[name].__doc__)

        disguise(unique_everseen, everseen)
        disguise(__init__, read_folder)
        for name in getters:
            setattr(distribution, name, getter(name))
        lookup.__init__ = __init__
        names["_unique"] = type(unique)(unique_everseen, *unique.args, **unique.keywords)

    def watched(self) -> "list[tuple[Any, str]]":
        """Where every part of the module is that our answers stand for: how to look it up, and its name."""
        found = [(self.names.get, name) for name in NAMES]
        for name, members in PARTS.items():
            found += [(vars(self.names[name]).get, member) for member in members]
        return found

    def is_stock(self) -> bool:
        """Whether nobody has replaced anything, and nobody audits what is read."""
        is_same = all(look_up(name) is stock for look_up, name, stock in self.stock)
        return is_same and not self.mapping.is_audited()

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
        return None if root is None or root.is_left else root.children.get(child)

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
            self.counts.metadata += 1
            return known.version if name == "version" else known.name
        except Exception:
            self.counts.errors += 1
            return None

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
            for known in found.known if isinstance(found, Root) else ():
                infos[known.normalized].append(path.joinpath(known.child))
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
                        first.setdefault(own._normalized_name, (own, None))
                except Exception:
                    return None  # Python shall fail itself.
            elif isinstance(found, Root):
                is_known = True
                is_asked = found.check == STAT or not found.is_current(self.mapping)
                for known in found.known:
                    if known.normalized not in first:
                        first[known.normalized] = entry, known
                        if is_asked:
                            asked.append(known)
        if not is_known:
            return None
        is_unchanged = self.mapping.is_unchanged
        for known in asked:
            mtime, ctime, ino, size = known.beside
            if is_unchanged(known.source(), size, mtime, ctime, ino) is not True:
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


def accelerate(
    module: "Any",
    path: str,
    identity: bytes,
    counts: "Counts",
    mapping: "Any",
    check: "int | None",
) -> None:
    """Have a module that was just loaded ask us first.

    Args:
        path: where the table is.
        identity: the interpreter's (FORMAT.md, section 2).
        check: STAT, ROOT_ONLY or NEVER for every root, or None for what was learned.
    """
    identity += b"\0" + sys.version.encode()
    try:
        Answers(module, lambda: Table(path, identity, mapping, check), counts, mapping)
    except (Unusable, KeyError, AttributeError):
        counts.reasons["metadata: another version"] = 1

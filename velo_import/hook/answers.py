# SPDX-License-Identifier: Apache-2.0
"""What `importlib.metadata` is told, out of what was learned: which distributions there are, their versions
and entry points.

Loaded by metadata.py at the first question. What is handed out is Python's own: its classes, made by its own
code; we spare it the listing, reading and parsing of files that are what they were, and leave it alone where
anybody has replaced a part of it, audits, or put another finder of distributions in place. What single files
say is known to contents.py.
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
    from velo_import.hook.metadata import Place

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
    """What is answered in the place of one module."""

    def __init__(
        self,
        place: "Place",
        open_table: "Callable[[], Table]",
        open_contents: "Callable[[Answers], Contents]",
        mapping: "Any",
    ) -> None:
        self.module, self.names, self.counts = place.module, place.names, place.counts
        self.getters, self.stock_functions = place.getters, place.stock_functions
        self.stock, self.stock_contents = place.stock, place.stock_contents
        self.find_distributions, self.path_type = place.find_distributions, place.path_type
        self.entry_points_code, self.prefers_valid = place.entry_points_code, place.prefers_valid
        self.is_plain = place.is_plain
        self.is_backport = place.module.__name__ != "importlib.metadata"
        self.mapping = mapping
        self.table_of = open_table
        self.contents_of = open_contents
        self.contents: Contents | None = None
        self.is_contents_open = False
        self.parsed = 0
        self.is_parser_loaded = False
        self.loaded: set[tuple[str, str]] = set()
        self.table: Table | None = None
        self.is_open = False

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

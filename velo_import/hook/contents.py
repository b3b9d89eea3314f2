# SPDX-License-Identifier: Apache-2.0
"""What the files of a distribution say, answered from what was learned: its `metadata`, its `files`, and
which modules it brings.

Loaded by answers.py in programs that ask for one of these. Objects are made by Python's own classes out of
what its own parsers said; each file behind an answer is asked for first, and so is each file that is listed.
The surprise: nothing is known of what a version of `importlib.metadata` does beyond the names that its code
uses. A version whose code uses another name is left alone.
"""

import sys
from _imp import source_hash
from posix import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from velo_import.hook.answers import Answers, Known, Mapped

HASH_KEY = 0x56454C4F
# FORMAT.md, section 12.1.
ENTRY_WORDS, PAGE_WORDS = 3, 10
STAT = 0
# As in ingest/metadata_worker.py.
BY_SUFFIX = sys.version_info < (3, 12)

# What may stand in the code of those who read for themselves what we answer.
PARSES = frozenset(("_adapters", "Message", "email", "message_from_string"))
READS = frozenset(
    ("", "_assemble_message", "_ensure_metadata_present", "_metadata_text", "cast", "read_text", "str")
)
LISTS = frozenset(
    (
        "FileHash",
        "PackagePath",
        "_read_files_distinfo",
        "_read_files_egginfo",
        "_read_files_egginfo_installed",
        "_read_files_egginfo_sources",
        "csv",
        "dist",
        "exists",
        "filter",
        "hash",
        "int",
        "list",
        "locate",
        "pass_none",
        "reader",
        "size",
        "starmap",
    )
)


class Page:
    """What was learned of one file of a distribution."""

    __slots__ = ("first", "second", "texts")

    def __init__(self, stamps: "list[int]", texts: "list[str]") -> None:
        self.first, self.second = stamps[:4], stamps[4:]
        self.texts = texts


class Listed:
    """Stands for a distribution where Python asks one for nothing but its files."""

    __slots__ = ("files",)

    def __init__(self, files: "list[Any]") -> None:
        self.files = files


class Contents:
    """The mapped table, and the answers that are made of it."""

    def __init__(self, answers: "Answers", mapped: "Mapped") -> None:
        self.answers = answers
        self.bytes, self.words, self.index, self.count = mapped
        self.pages_at = self.index + self.count * ENTRY_WORDS * 8
        if self.pages_at > len(self.bytes):
            raise ValueError("damaged")
        self.parses = does_parse(answers)
        self.lists, self.drops_missing = does_list(answers)
        self.infers = self.lists and does_infer(answers)

    def page(self, kind: str, path: str) -> "Page | None":
        """What was learned of one file of the distribution in that folder.

        Raises:
            ValueError, IndexError: the table is damaged.
        """
        title = kind + path
        key = siphash(title.encode("utf-8", "surrogateescape"))
        words, first = self.words, self.index >> 3
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if words[first + middle * ENTRY_WORDS] < key:
                low = middle + 1
            else:
                high = middle
        while low < self.count and words[first + low * ENTRY_WORDS] == key:
            found, texts = self.read(*words[first + low * ENTRY_WORDS + 1 : first + (low + 1) * ENTRY_WORDS])
            if texts[0] == title:
                del texts[0], texts[-1]
                return Page(found, texts)
            low += 1
        return None

    def read(self, at: int, length: int) -> "tuple[list[int], list[str]]":
        """The stamps of one page, and its texts with an empty one behind them."""
        if at % 8 or length < PAGE_WORDS * 8 or not self.pages_at <= at <= len(self.bytes) - length:
            raise ValueError("damaged")
        page = self.bytes[at : at + length]
        size = self.words[(at >> 3) + PAGE_WORDS - 1]
        if siphash(page[8:]) != self.words[at >> 3] or size > length - PAGE_WORDS * 8:
            raise ValueError("damaged")
        # As signed numbers: times before 1970, and -1 for any size.
        stamps = page[8 : PAGE_WORDS * 8 - 8].cast("q").tolist()
        text = str(page[PAGE_WORDS * 8 : PAGE_WORDS * 8 + size], "utf-8", "surrogateescape")
        return stamps, text.split("\0")

    # -- answers -----------------------------------------------------------------------------------

    def metadata_of(self, known: "Known", own: "Any") -> "Any":
        """The parsed METADATA, or None."""
        if not self.parses:
            return None
        page = self.page("M", known.path())
        if page is None or not self.is_fresh(known, page.first, "/METADATA"):
            return None
        if any(page.second) and not self.is_fresh(known, page.second, "/PKG-INFO"):
            return None
        self.answers.load_parser()
        message = imported("email.message").Message()
        texts = iter(page.texts)
        message._payload = next(texts)
        message._headers = list(zip(texts, texts))  # noqa: B905 # two by two
        module = self.answers.module
        if "_adapters" not in self.parses:
            return module.Message(message)
        return module._adapters.Message(message)

    def files_of(self, known: "Known", own: "Any") -> "list[Any] | None":
        """The files in RECORD that are there, or None."""
        if not self.lists:
            return None
        page = self.page("F", known.path())
        if page is None or not self.is_fresh(known, page.first, "/RECORD"):
            return None
        self.load_csv()
        names = self.answers.names
        make, make_hash = names["PackagePath"], names["FileHash"]
        is_asked = self.drops_missing and self.is_asked(known)
        files = []
        texts = iter(page.texts)
        for marked, spec, size in zip(texts, texts, texts):  # noqa: B905 # three by three
            if self.drops_missing and not (is_there(known, marked) if is_asked else marked[0] == "+"):
                continue
            file = make(marked[1:])
            file.hash = make_hash(spec) if spec else None
            file.size = int(size) if size else None
            file.dist = own
            files.append(file)
        return files

    def declared_by(self, known: "Known", own: "Any") -> "list[str] | None":
        """The names in top_level.txt, or None."""
        page = self.tops(known)
        return None if page is None else [text[1:] for text in page.texts if text[0] == "="]

    def inferred_from(self, known: "Known", own: "Any") -> "Any":
        """What the files that decide tell about the names that can be imported, or None."""
        page = self.tops(known) if self.infers else None
        answers = self.answers
        if page is None or not any(page.second) or not self.is_fresh(known, page.second, "/RECORD"):
            return None
        if self.drops_missing and self.is_asked(known):
            for marked in page.texts:
                if is_there(known, marked) is not (marked[0] == "+"):
                    answers.want("file changed")
                    return None
        self.load_csv()
        make = answers.names["PackagePath"]
        drops = self.drops_missing
        files = [make(marked[1:]) for marked in page.texts if not drops or marked[0] == "+"]
        return answers.stock_functions["_top_level_inferred"](Listed(files))

    def tops(self, known: "Known") -> "Page | None":
        """What tells which modules a distribution brings, if its top_level.txt is what it was."""
        page = self.page("T", known.path())
        return page if page is not None and self.is_fresh(known, page.first, "/top_level.txt") else None

    def is_fresh(self, known: "Known", stamp: "list[int]", name: str) -> bool:
        """Whether the file is what it was, or, where there was none, the folder."""
        source = known.path() if stamp[3] == -1 else known.path() + name
        return self.answers.is_fresh(known.root, source, stamp)

    def load_csv(self) -> None:
        """Load what reads RECORD."""
        self.answers.load("csv", "reader", self.answers.getters["files"].fget)

    def is_asked(self, known: "Known") -> bool:
        """Whether each file is to be asked for."""
        return known.root.check == STAT or not known.root.is_current(self.answers.mapping)


def siphash(data: "bytes | memoryview") -> int:
    return int.from_bytes(source_hash(HASH_KEY, data), "little")


def imported(name: str) -> "Any":
    """A module that Python would import now to answer the same."""
    if name not in sys.modules:
        __import__(name)
    return sys.modules[name]


def is_there(known: "Known", marked: str) -> bool:
    """Whether there is such a file now, as `Path.exists` says.

    Raises:
        OSError, ValueError: what `Path.exists` answers differently from version to version.
    """
    name = marked[1:]
    try:
        stat(name if name[0] == "/" else known.root.prefix + name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


# -- what a version of importlib.metadata does ----------------------------------------------------------


def names_in(answers: "Answers", *functions: "Any") -> "set[str]":
    return {name for code in answers.codes_of(*functions) for name in code.co_names}


def does_parse(answers: "Answers") -> "set[str]":
    """By which names `metadata` parses, if that is all that it does after it has read."""
    parts = vars(answers.names["Distribution"])
    functions = [answers.getters["metadata"].fget]
    for name in ("_assemble_message", "_ensure_metadata_present", "_metadata_text"):
        if name in parts:
            functions.append(getattr(parts[name], "__func__", parts[name]))
    # The last one is what is raised where there is nothing to parse.
    names = names_in(answers, *functions) - READS - {"MetadataNotFound"}
    is_known = names <= PARSES and "message_from_string" in names
    return names if is_known else set()


def does_list(answers: "Answers") -> "tuple[bool, bool]":
    """Whether `files` does what we know, and whether it drops those that are not there."""
    stock = answers.getters["files"].fget
    if "__wrapped__" in vars(stock):
        if stock.__code__.co_freevars != ("f1", "f2"):
            return False, False
        # The backport's, which changes only the files of the other module's distributions.
        stock = stock.__wrapped__
    return names_in(answers, stock) <= LISTS, "exists" in names_in(answers, stock)


def does_infer(answers: "Answers") -> bool:
    """Whether the rows that decide were chosen as this version would: the suffix counts for 3.11 only."""
    function = answers.stock_functions.get("_top_level_inferred")
    if function is None:
        return False
    return BY_SUFFIX or not any(".py" in code.co_consts for code in answers.codes_of(function))

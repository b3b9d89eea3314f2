# SPDX-License-Identifier: Apache-2.0
"""What Node programs need to start: indexes and units, encoded and decoded (FORMAT.md, section 14). Pure.

Knows the bytes; what has to be in an index is learned in ingest/node/learning.py, and node_accel reads it in
programs. The surprise: decoding is for those who look after the store, so it is strict and slow; a program
takes what it needs by offset.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from struct import Struct
from struct import error as StructError
from typing import NamedTuple
from zlib import crc32

from ..errors import StoreCorrupt
from .manifest import PackRecord

MAGIC, VERSION = b"VELONODE", 2
WIDE = 1  # A mandatory feature: text is UTF-16LE.
MOST_BYTES = 256 << 20
SECTIONS = (
    "stamps",
    "trees",
    "packs",
    "facts",
    "folders",
    "resolutions",
    "files",
    "lists",
    "offsets",
    "text",
)
START, TREE = "start", "tree"  # Kinds of an index: learned from programs, ingested.
SUFFIX = ".index"

# The header of an index, 200 bytes with its table of sections.
HEADER = Struct("<8sIIIIII")
SECTION = Struct("<II")
ABOUT = Struct("<IIII18I")
HEADER_SIZE = HEADER.size + len(SECTIONS) * SECTION.size + ABOUT.size
assert (HEADER.size, HEADER_SIZE) == (32, 200)

STAMP = Struct("<qqqq")  # mtime, ctime, inode, size
_TREE, _PACK, _FACT, _FOLDER, _RESOLUTION, _FILE = (Struct(f"<{count}I") for count in (4, 2, 4, 5, 4, 8))
_PAIR = Struct("<II")
_WORD = Struct("<I")
CRC = 0x43524333  # In place of the second sum: the first word is a CRC-32.

# Kinds of facts, of units, and flags of units.
ABSENT, SAME, UNCHANGED = range(3)
SCRIPT, TEXT, EXPLICIT = 1, 2, 3
CAPTURED, NEVER = 1, 2
UNIT = Struct("<8I")
UNIT_STEP = 16


class Stamp(NamedTuple):
    """What the kernel says about a path, as an index has it."""

    mtime_ns: int
    ctime_ns: int
    ino: int
    size: int


NO_STAMP = Stamp(0, 0, 0, 0)


class Fact(NamedTuple):
    """Something that has to be so still; and so has `above`, the index of a fact before this one, or -1."""

    path: str
    kind: int
    type: int = 0
    tree: int = 0
    stamp: Stamp = NO_STAMP
    above: int = -1


class Tree(NamedTuple):
    """A folder whose paths are checked in one way; `facts` are what check `root` asks, once."""

    path: str
    check: int
    facts: tuple[int, ...] = ()


class File(NamedTuple):
    """A module's file, and where its unit is."""

    path: str
    kind: int
    tree: int
    stamp: Stamp
    facts: tuple[int, ...]
    pack: int
    offset: int
    length: int


class Resolution(NamedTuple):
    """Where a request from a folder leads; `file` is its index, or -1: Node loads it."""

    folder: str
    request: str
    path: str
    file: int
    facts: tuple[int, ...]


class Frame(NamedTuple):
    """A call within Node's own loader, as a traceback shows it."""

    script: str
    line: int
    column: int


FRAMES = 6


class Index(NamedTuple):
    """All of one index. Files and resolutions are in the order in which they are written: by folder."""

    identity: str
    subject: str
    executable: str
    executable_stamp: Stamp
    is_crc: bool  # The kind of its checksum.
    frames: tuple[Frame, ...]
    trees: tuple[Tree, ...] = ()
    packs: tuple[PackRecord, ...] = ()
    facts: tuple[Fact, ...] = ()
    resolutions: tuple[Resolution, ...] = ()
    files: tuple[File, ...] = ()

    @property
    def build(self) -> str:
        """Its Node, for people."""
        name, version, architecture = (*self.identity.split("\n"), "", "", "")[:3]
        return f"{name}-{version.removeprefix('v')}-{architecture}"


def fold(data: bytes) -> tuple[int, int]:
    """The hash in names (section 14); both halves."""
    a, b = 0x56454C4F, 0x4E4F4445
    for first, second in _PAIR.iter_unpack(data + bytes(-len(data) % 8)):
        a = (((a << 5 | a >> 27) ^ first) * 0x9E3779B1) & 0xFFFFFFFF
        b = (((b << 5 | b >> 27) ^ second) * 0x85EBCA6B) & 0xFFFFFFFF
    b = ((b ^ a >> 15) * 0x9E3779B1) & 0xFFFFFFFF
    a = ((a ^ b >> 13) * 0x85EBCA6B) & 0xFFFFFFFF
    return a, b


def checksum(data: bytes, *, is_crc: bool) -> tuple[int, int]:
    """The checksum of indexes and units (section 14): of the kind that their Node computes."""
    if is_crc:
        return crc32(data), CRC
    words = [word for pair in _PAIR.iter_unpack(data + bytes(-len(data) % 8)) for word in pair]
    first = sum(words, 0x56454C4F)
    second = sum(accumulate(words, initial=0x56454C4F), 0x4E4F4445 - 0x56454C4F)
    return first & 0xFFFFFFFF, second & 0xFFFFFFFF


def has_checksum(data: bytes, first: int, second: int) -> bool:
    """Whether data has that checksum, of whichever kind."""
    return (first, second) == checksum(data, is_crc=second == CRC)


def fold_name(text: str) -> str:
    """A fold as it stands in names."""
    return "{:08x}{:08x}".format(*fold(text.encode()))


def index_name(kind: str, identity: str, subject: str) -> str:
    """The name of an index, without its suffix."""
    return f"{kind}-{fold_name(identity + chr(0) + subject)}"


def is_index_name(name: str) -> bool:
    """Whether a key in the store is that of a Node index; those of Python's environments never are."""
    kind, _, digits = name.partition("-")
    return kind in (START, TREE) and len(digits) == 16 and set(digits) <= set("0123456789abcdef")


def build_tag(version: str, architecture: str, flags: str, size: int, mtime_ns: int) -> str:
    """What names the bytecode of one Node."""
    build, _ = fold(f"{size} {mtime_ns}".encode())
    return f"node-{version.removeprefix('v')}-{architecture}-{flags}-{build:08x}"


# -- writing ---------------------------------------------------------------------------------------


class _Table:
    """Things that are written once and named by number."""

    def __init__(self) -> None:
        self.numbers: dict[object, int] = {}

    def number(self, thing: object) -> int:
        return self.numbers.setdefault(thing, len(self.numbers))


def encode(index: Index) -> bytes:
    """The bytes of an index.

    Raises:
        ValueError: it would be too large.
    """
    strings, stamps, lists = _Table(), _Table(), _Lists()
    folders = dict.fromkeys(each.folder for each in index.resolutions)
    folders |= dict.fromkeys(os.path.dirname(each.path) for each in index.files)
    numbers = {path: number for number, path in enumerate(sorted(folders))}
    owners = [numbers[os.path.dirname(file.path)] for file in index.files]
    files = sorted(range(len(owners)), key=owners.__getitem__)
    places = {number: place for place, number in enumerate(files)}
    resolutions = sorted(index.resolutions, key=lambda each: numbers[each.folder])
    text = strings.number
    about = ABOUT.pack(
        *map(text, (index.identity, index.subject, index.executable)),
        stamps.number(index.executable_stamp),
        *(word for frame in index.frames for word in (text(frame.script), frame.line, frame.column)),
    )
    rows: dict[str, list[bytes]] = {name: [] for name in SECTIONS}
    for tree in index.trees:
        rows["trees"].append(_TREE.pack(text(tree.path), tree.check, lists.number(tree.facts), 0))
    for pack in index.packs:
        stamp = Stamp(pack.mtime_ns, pack.ctime_ns, pack.ino, pack.size)
        rows["packs"].append(_PACK.pack(text(pack.name), stamps.number(stamp)))
    for fact in index.facts:
        bits = fact.kind | fact.type << 4 | fact.tree << 8
        rows["facts"].append(_FACT.pack(text(fact.path), fact.above + 1, bits, stamps.number(fact.stamp)))
    for each in resolutions:
        file = places[each.file] + 1 if each.file >= 0 else 0
        rows["resolutions"].append(
            # A file's path is that of its folder and its name.
            _RESOLUTION.pack(
                text(each.request), 0 if file else text(each.path), file, lists.number(each.facts)
            )
        )
    for number in files:
        found = index.files[number]
        folder, name = os.path.split(found.path)
        rows["files"].append(
            _FILE.pack(
                text(name),
                numbers[folder],
                found.kind | found.tree << 8,
                stamps.number(found.stamp),
                lists.number(found.facts),
                found.pack,
                found.offset // UNIT_STEP,
                found.length,
            )
        )
    first_resolution = _firsts((numbers[each.folder] for each in resolutions), len(numbers))
    first_file = _firsts(owners, len(numbers))
    for path, number in numbers.items():
        rows["folders"].append(_FOLDER.pack(text(path), *first_resolution[number], *first_file[number]))
    rows["stamps"] = [STAMP.pack(*stamp) for stamp in stamps.numbers]  # type: ignore[misc]
    rows["lists"] = [lists.encoded()]
    texts = [str(each) for each in strings.numbers]
    is_wide = not all(map(_is_narrow, texts))
    encoding, width = ("utf-16-le", 2) if is_wide else ("latin-1", 1)
    encoded = [each.encode(encoding) for each in texts]
    ends = accumulate((len(each) // width for each in encoded), initial=0)
    rows["offsets"] = [b"".join(end.to_bytes(4, "little") for end in ends)]
    rows["text"] = encoded
    return _assembled(
        [b"".join(rows[name]) for name in SECTIONS], about, WIDE if is_wide else 0, index.is_crc
    )


def _assembled(sections: Sequence[bytes], about: bytes, features: int, is_crc: bool) -> bytes:
    table: list[bytes] = []
    body: list[bytes] = []
    at = HEADER_SIZE
    for data in sections:
        table.append(SECTION.pack(at, len(data)))
        padding = bytes(-len(data) % 8)
        body += (data, padding)
        at += len(data) + len(padding)
    if at > MOST_BYTES:
        raise ValueError(f"an index of {at} bytes is too large")
    rest = b"".join((*table, about, *body))
    return HEADER.pack(MAGIC, VERSION, features, at, len(SECTIONS), *checksum(rest, is_crc=is_crc)) + rest


class _Lists(_Table):
    """Lists of facts, by their place in words; equal ones are written once."""

    def __init__(self) -> None:
        super().__init__()
        self._words = [0]
        self.numbers[()] = 0

    def number(self, thing: object) -> int:
        if thing not in self.numbers:
            assert isinstance(thing, tuple)
            self.numbers[thing] = len(self._words)
            self._words += (len(thing), *thing)
        return self.numbers[thing]

    def encoded(self) -> bytes:
        return b"".join(word.to_bytes(4, "little") for word in self._words)


def _firsts(owners: Iterable[int], count: int) -> list[tuple[int, int]]:
    """For each owner, the first of its rows and their number."""
    counts = [0] * count
    for owner in owners:
        counts[owner] += 1
    return list(zip(accumulate(counts, initial=0), counts, strict=False))


def _is_narrow(text: str) -> bool:
    return text.isascii() or max(map(ord, text)) < 256


# -- reading ---------------------------------------------------------------------------------------


def decode_index(data: bytes) -> Index:
    """What an index says.

    Raises:
        StoreCorrupt: the bytes are no index of this version, or contradict themselves.
    """
    try:
        return _Decoding(data).index()
    except (StructError, IndexError, ValueError, OverflowError) as error:
        raise StoreCorrupt(
            f"index is damaged: {error}", hint="run the program again with `velo run`"
        ) from error


def pack_names(data: bytes) -> tuple[str, list[str]]:
    """The subject of an index, and the names of its packs: what it needs of the store.

    Raises:
        StoreCorrupt: as `decode_index`.
    """
    index = decode_index(data)
    return index.subject, [pack.name for pack in index.packs]


class _Decoding:
    def __init__(self, data: bytes) -> None:
        magic, version, features, size, count, *check = HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or features & ~WIDE or count != len(SECTIONS):
            raise ValueError("not an index of this version")
        if size != len(data) or size % 8 or size > MOST_BYTES:
            raise ValueError(f"says {size} bytes, has {len(data)}")
        if not has_checksum(data[HEADER.size :], *check):
            raise ValueError("checksum differs")
        self.is_crc = check[1] == CRC
        self.sections = {}
        for number, name in enumerate(SECTIONS):
            at, length = SECTION.unpack_from(data, HEADER.size + number * SECTION.size)
            if at < HEADER_SIZE or at % 8 or at + length > size:
                raise ValueError(f"section {name} lies outside the file")
            self.sections[name] = data[at : at + length]
        self.about = ABOUT.unpack_from(data, HEADER_SIZE - ABOUT.size)
        self.strings = self._strings(bool(features & WIDE))
        self.stamps = [Stamp(*row) for row in STAMP.iter_unpack(self.sections["stamps"])]
        self.words = [word for (word,) in _WORD.iter_unpack(self.sections["lists"])]
        self.fact_count = len(self.sections["facts"]) // _FACT.size

    def index(self) -> Index:
        identity, subject, executable, stamp, *calls = self.about
        text = self.strings.__getitem__
        packs = []
        for name, its_stamp in _PACK.iter_unpack(self.sections["packs"]):
            mtime, ctime, ino, size = self.stamps[its_stamp]
            packs.append(PackRecord(text(name), "", size, mtime, ctime, ino))
        trees = tuple(
            Tree(text(path), check, self._list(facts))
            for path, check, facts, _ in _TREE.iter_unpack(self.sections["trees"])
        )
        files, resolutions = self._contents(len(packs), len(trees))
        return Index(
            text(identity),
            text(subject),
            text(executable),
            self.stamps[stamp],
            self.is_crc,
            tuple(Frame(text(calls[at]), *calls[at + 1 : at + 3]) for at in range(0, 3 * FRAMES, 3)),
            trees,
            tuple(packs),
            tuple(self._facts(len(trees))),
            tuple(resolutions),
            tuple(files),
        )

    def _facts(self, trees: int) -> Iterable[Fact]:
        for number, (path, above, bits, stamp) in enumerate(_FACT.iter_unpack(self.sections["facts"])):
            if above > number or (bits >> 8) >= trees:
                raise ValueError(f"fact {number} names what is not there")
            yield Fact(
                self.strings[path], bits & 15, bits >> 4 & 15, bits >> 8, self.stamps[stamp], above - 1
            )

    def _contents(self, packs: int, trees: int) -> tuple[list[File], list[Resolution]]:
        rows = list(_FILE.iter_unpack(self.sections["files"]))
        asked = list(_RESOLUTION.iter_unpack(self.sections["resolutions"]))
        files: list[File] = []
        resolutions: list[Resolution] = []
        known: set[str] = set()
        text = self.strings
        folder_rows = list(_FOLDER.iter_unpack(self.sections["folders"]))
        places = [os.path.join(text[folder_rows[row[1]][0]], text[row[0]]) for row in rows]
        folders = enumerate(folder_rows)
        for number, (path, first_resolution, resolution_count, first_file, file_count) in folders:
            if first_file != len(files) or first_resolution != len(resolutions):
                raise ValueError("folders leave a gap")
            folder = text[path]
            if folder in known:
                raise ValueError("a folder is there twice")
            known.add(folder)
            for row in rows[first_file : first_file + file_count]:
                _, owner, bits, stamp, facts, pack, offset, length = row
                if owner != number or pack >= packs or (bits >> 8) >= trees:
                    raise ValueError("a file names what is not there")
                if os.path.split(places[len(files)]) != (folder, text[row[0]]):
                    raise ValueError("a file has a name that is none")
                files.append(
                    File(
                        places[len(files)],
                        bits & 0xFF,
                        bits >> 8,
                        self.stamps[stamp],
                        self._list(facts),
                        pack,
                        offset * UNIT_STEP,
                        length,
                    )
                )
            for request, target, file, facts in asked[first_resolution : first_resolution + resolution_count]:
                if file > len(rows):
                    raise ValueError("a resolution names a file that is not there")
                path = places[file - 1] if file else text[target]
                resolutions.append(Resolution(folder, text[request], path, file - 1, self._list(facts)))
        if (len(files), len(resolutions)) != (len(rows), len(asked)):
            raise ValueError("some rows are in no folder")
        return files, resolutions

    def _list(self, at: int) -> tuple[int, ...]:
        count = self.words[at]
        found = tuple(self.words[at + 1 : at + 1 + count])
        if len(found) != count or any(each >= self.fact_count for each in found):
            raise ValueError("a list lies outside its table")
        return found

    def _strings(self, is_wide: bool) -> list[str]:
        data = self.sections["text"]
        width, encoding = (2, "utf-16-le") if is_wide else (1, "latin-1")
        ends = [width * offset for (offset,) in _WORD.iter_unpack(self.sections["offsets"])]
        if not ends or ends[-1] > len(data) or any(start > end for start, end in pairwise(ends)):
            raise ValueError("strings lie outside their table")
        # Piece by piece: offsets count halves of what lies beyond U+FFFF.
        return [data[start:end].decode(encoding) for start, end in pairwise(ends)]

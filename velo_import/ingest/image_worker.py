# SPDX-License-Identifier: Apache-2.0
"""Makes images of code objects, and proves them; run as a script by the interpreter whose objects they are.

`image_worker.py make` reads marshalled code from stdin (each behind a u32 length) and writes to stdout
`sys.version`, four numbers of the layout, and an image for each (FORMAT.md, section 13), or nothing for one
that cannot have any. `image_worker.py prove LIBRARY FILE IDENTITY` reads a u64 pair of checks before each
code, has the native module load each from that file, and writes 1 for each that equals what unmarshalling
makes, or 0.

Knows how CPython lays out three kinds of objects; every other object is referred to, and made anew by whoever
loads the image. The surprise: what is copied are the bytes of objects, unmarshalled twice a moment before.
What differs between the two must be a pointer we know, or a place that CPython never reads before it writes.
"""

import marshal
import sys
from operator import attrgetter
from struct import Struct

try:
    import ctypes
    from array import array

    can_look = True
except ImportError:  # Built without libffi.
    can_look = False

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType
    from typing import Any

SIZE, CHECKS = Struct("<I"), Struct("<QQ")
CODE: "type[CodeType]" = type((lambda: None).__code__)
WORD = Struct("<Q")
# Begins so high that no program gets it down to 0, and below the bit that says "immortal" from 3.12 on.
REFERENCES = WORD.pack(1 << 29)
KIND = 1  # The word of an object that points to its type.
HASH = slice(24, 32)  # Where bytes, and tuples from 3.14 on, keep their hash.
UNKNOWN_HASH = b"\xff" * 8  # Until somebody asks.
INTERNED = b"tAZ"  # How marshal marks interned strings.
# What a code object points to, in CPython 3.11 to 3.15, Include/cpython/code.h: consts, names,
# exceptiontable; localsplusnames, localspluskinds, filename, name, qualname, linetable.
POINTERS = Struct("<24x3Q48x6Q")
POINTER_BYTES = (slice(24, 48), slice(96, 144))
POINTER_WORDS = (3, 4, 5, 12, 13, 14, 15, 16, 17)
# What is set to 0: from 3.12 on the version by which specialised calls know a function; and what is never
# read before it is written: padding, and from 3.14 on the id that only free-threaded builds use.
ONES_OWN = {
    (3, 11): (slice(172, 176),),
    (3, 12): (slice(92, 96), slice(180, 184)),
    (3, 13): (slice(92, 96), slice(188, 192)),
    (3, 14): (slice(92, 96), slice(184, 192), slice(196, 200)),
    (3, 15): (slice(92, 96), slice(184, 192), slice(196, 200)),
}
# Up to 3.12 a function without a version gets one when its first call is specialised. From 3.13 on it never
# does: who loads an image gives each code object one, here.
VERSION_PLACE = 92 if sys.version_info >= (3, 13) else 0
# Strings are not among them: those that a program interns are freed when an interpreter of 3.14 or later
# ends, whatever their reference counts.
FIXED = (CODE, tuple, bytes)
# A module without functions gains nothing by an image but that its pack need not be opened for it alone.
SMALL = 1 << 14
NOTHING = bytes(16)  # The data of its image: no data would say that there is none.
OPTIMIZED = 1  # A flag of functions, which module and class bodies do not have.
# Added to the index of what an image refers to, in the making: so it is told from the place of what is in it.
# Names stand behind the others, and get their index when it is known how many others there are.
OTHERS, NAMES = 1 << 60, 1 << 61
FILE_NAME = OTHERS + len(FIXED)


class Unfit(Exception):
    """This module, or this interpreter, gets no images."""


def bytes_at(address: int, size: int) -> bytearray:
    return bytearray(ctypes.string_at(address, size))


def word_at(address: int) -> int:
    return int.from_bytes(ctypes.string_at(address, 8), "little")


def object_at(address: int) -> "Any":
    """The object that is there, a tuple or bytes, which is looked at first."""
    if word_at(address + 8) not in map(id, (tuple, bytes)):
        raise Unfit("layout")
    return ctypes.cast(address, ctypes.py_object).value


def parts_of(code: "CodeType", content: bytearray) -> "tuple[Any, ...]":
    """What a code object points to, in the order of POINTERS; only if it is where we think it is."""
    places = POINTERS.unpack_from(content)
    parts = (
        code.co_consts,
        code.co_names,
        code.co_exceptiontable,
        object_at(places[3]),  # Two that no attribute gives.
        object_at(places[4]),
        code.co_filename,
        code.co_name,
        code.co_qualname,
        code.co_linetable,
    )
    if places != tuple(map(id, parts)):
        raise Unfit("layout")
    return parts


def is_interned(text: str) -> bool:
    return marshal.dumps(text)[0] & 0x7F in INTERNED


def pairs(code: "CodeType", twin: "CodeType") -> "Iterator[tuple[CodeType, CodeType]]":
    """All code objects of a module, each with its twin."""
    yield code, twin
    for one, other in zip(code.co_consts, twin.co_consts, strict=True):
        if type(one) is CODE:
            yield from pairs(one, other)


class Imaging:
    """One image in the making; `code` and `twin` come from the same bytes, and nobody has touched them."""

    def __init__(self, code: "CodeType", twin: "CodeType") -> None:
        self.words = array("Q")  # Every object takes an even number of them.
        self.pointers: list[int] = []  # Indexes of words.
        self.targets = {id(kind): OTHERS + index for index, kind in enumerate(FIXED)}
        self.others: list[Any] = []
        self.names: list[str] = []
        self.code = code
        self.file_name = code.co_filename
        self.bodies: list[int] = []
        self.holes: list[int] = []
        # An id means something only as long as its object is alive.
        self.twins = {id(one): (one, other) for one, other in pairs(code, twin)}
        self.cut(code, 0)

    def cut(self, code: "CodeType", body: int) -> None:
        """Copy the functions of a module or class body, and leave holes where they were. Bodies run once."""
        for index, value in enumerate(code.co_consts):
            if type(value) is not CODE:
                continue
            if value.co_flags & OPTIMIZED:
                self.holes += (body, index, self.target(value))
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(None))
                slot = id(code.co_consts) + tuple.__basicsize__ + 8 * index
                ctypes.memmove(slot, WORD.pack(id(None)), 8)
            else:
                self.bodies += (body, index)
                self.cut(value, len(self.bodies) // 2)

    def target(self, value: "Any") -> int:
        """What a pointer to this object becomes: the place of its copy, or an index if it gets none."""
        found = self.targets.get(id(value))
        if found is None:
            kind = type(value)
            if kind is CODE:
                found = self.add_code(value)
            elif kind is tuple and value:
                found = self.add_tuple(value)
            # Single characters and what is empty are CPython's own.
            elif kind is bytes and len(value) > 1:
                found = self.add(kind, bytes_at(id(value), bytes.__basicsize__ + len(value)))
            elif kind is str and is_interned(value) and is_encodable(value):
                found = NAMES + len(self.names)
                self.names.append(value)
            else:
                found = FILE_NAME + 1 + len(self.others)
                self.others.append(value)
            self.targets[id(value)] = found
        return found

    def add(self, kind: "type[Any]", content: bytearray) -> int:
        """Add an object that nobody refers to yet, and whose hash nobody knows; where it begins."""
        content[:8] = REFERENCES
        if kind is not CODE and (kind is not tuple or tuple.__basicsize__ > HASH.start):
            content[HASH] = UNKNOWN_HASH
        content.extend(bytes(-len(content) % 16))
        start = len(self.words)
        self.words.frombytes(content)
        self.words[start + KIND] = self.targets[id(kind)]
        self.pointers.append(start + KIND)
        return 8 * start

    def add_tuple(self, value: "tuple[Any, ...]") -> int:
        targets = array("Q", map(self.target, value))
        # What the collector keeps before each object that it may list; zeros: it does not list this one.
        self.words.extend((0, 0))
        place = self.add(tuple, bytes_at(id(value), tuple.__basicsize__ + 8 * len(value)))
        items = (place + tuple.__basicsize__) // 8
        self.words[items : items + len(value)] = targets
        self.pointers.extend(range(items, items + len(value)))
        return place

    def add_code(self, value: "CodeType") -> int:
        content, other = (
            bytes_at(id(one), CODE.__basicsize__ + 2 * word_at(id(one) + 16)) for one in self.twins[id(value)]
        )
        if value.co_filename == self.file_name:
            self.targets[id(value.co_filename)] = FILE_NAME
        targets = [self.target(part) for part in parts_of(value, content)]
        # Compare what is no pointer; what says nothing, or is each process's own, becomes zero.
        for one in (content, other):
            for piece in (*ONES_OWN[sys.version_info[:2]], *POINTER_BYTES):
                one[piece] = bytes(piece.stop - piece.start)
        if content[8:] != other[8:]:
            raise Unfit("not the same twice")
        place = self.add(CODE, content)
        for word, target in zip(POINTER_WORDS, targets, strict=True):
            self.words[place // 8 + word] = target
            self.pointers.append(place // 8 + word)
        return place

    def parts(self) -> "Iterator[bytes]":
        """What FORMAT.md says an image consists of."""
        words = self.words
        internal = [8 * index for index in self.pointers if words[index] < OTHERS]
        external = [index for index in self.pointers if words[index] >= OTHERS]
        first_name = len(FIXED) + 1 + len(self.others)
        for index in external:
            target = words[index]
            words[index] = target - NAMES + first_name if target >= NAMES else target - OTHERS
        yield words.tobytes() or NOTHING
        yield from map(numbers, (internal, [8 * index for index in external], self.bodies, self.holes))
        yield SIZE.pack(len(self.others))
        yield marshal.dumps((self.code, *self.others))
        yield from (name.encode() for name in self.names)


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # A lone surrogate.
        return False
    return True


def numbers(values: "list[int]") -> bytes:
    return Struct(f"<{len(values)}I").pack(*values)


def check_layout() -> None:
    """Raise unless code objects look as POINTERS says, as far as it can be seen."""
    flags = getattr(sys, "abiflags", "")
    if (
        not can_look
        or sys.version_info[:2] not in ONES_OWN
        or sys.byteorder != "little"
        or ctypes.sizeof(ctypes.c_void_p) != 8
        or "t" in flags
        or "d" in flags
        or hasattr(sys, "getobjects")  # Built to trace references: objects begin with two more pointers.
    ):
        raise Unfit("layout")
    data = marshal.dumps(check_layout.__code__)
    one, other = marshal.loads(data), marshal.loads(data)
    parts_of(one, bytes_at(id(one), CODE.__basicsize__))
    if VERSION_PLACE and not 0 < version_of(one) < version_of(other):
        raise Unfit("layout")


def version_of(code: "CodeType") -> int:
    return int.from_bytes(ctypes.string_at(id(code) + VERSION_PLACE, 4), "little")


def image_of(data: bytes) -> bytes:
    """The parts of one image, each behind its length; empty if there can be none, or none would gain."""
    try:
        imaging = Imaging(marshal.loads(data), marshal.loads(data))
        return joined(imaging.parts()) if imaging.holes or len(data) <= SMALL else b""
    except (Unfit, ValueError, RecursionError):  # ValueError: an object that marshal does not know
        return b""


def joined(parts: "Iterator[bytes]") -> bytes:
    return b"".join(SIZE.pack(len(part)) + part for part in parts)


# Lines and positions are read from co_linetable, which is compared; co_lnotab would warn.
UNSEEN = frozenset(("co_filename", "co_lnotab", "co_lines", "co_positions", "co_branches"))
seen_of = attrgetter(*(name for name in dir(CODE) if name.startswith(("co_", "_co_")) and name not in UNSEEN))


def is_same(one: "Any", other: "Any") -> bool:
    """Whether two objects equal each other in all that can be seen, but for the file name of code.

    Raises:
        ValueError: marshal does not know such an object.
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if type(one) is tuple:
        return len(one) == len(other) and all(map(is_same, one, other))
    if type(one) is CODE:
        return hash(one) == hash(other) and is_same(seen_of(one), seen_of(other))
    if type(one) is slice:
        return is_same((one.start, one.stop, one.step), (other.start, other.stop, other.step))
    # As marshal wrote it before it knew references; it tells interned strings, and orders sets.
    return marshal.dumps(one, 2) == marshal.dumps(other, 2)


def prove(library: str, path: str, identity: bytes, data: bytes) -> "Iterator[bytes]":
    """For each image of the file: 1 if it is what unmarshalling makes of its bytecode, or 0."""
    from importlib.machinery import ExtensionFileLoader, ModuleSpec

    name = "velo_import._native.core"
    loader = ExtensionFileLoader(name, library)
    native: Any = loader.create_module(ModuleSpec(name, loader, origin=library))
    loader.exec_module(native)
    images = native.Images(path, 0, identity + sys.version.encode(), CODE)
    at = 0
    while at < len(data):
        checks = CHECKS.unpack_from(data, at)
        (size,) = SIZE.unpack_from(data, at + CHECKS.size)
        at += CHECKS.size + SIZE.size
        found = images.take(*checks, "file name")
        is_proved = found is not None and found.co_filename == "file name"
        yield b"1" if is_proved and is_same(marshal.loads(data[at : at + size]), found) else b"0"
        at += size


def make(data: bytes) -> "Iterator[bytes]":
    """Who we are, and an image for each code object."""
    yield sys.version.encode()
    yield numbers([kind.__basicsize__ for kind in FIXED] + [VERSION_PLACE])
    try:
        check_layout()
        is_fit = True
    except Unfit:
        is_fit = False
    at = 0
    while at < len(data):
        (size,) = SIZE.unpack_from(data, at)
        at += SIZE.size
        yield image_of(data[at : at + size]) if is_fit else b""
        at += size


if __name__ == "__main__":
    if sys.argv[1] == "make":
        sys.stdout.buffer.write(joined(make(sys.stdin.buffer.read())))
    else:
        library, path, identity = sys.argv[2:]
        answers = prove(library, path, bytes.fromhex(identity), sys.stdin.buffer.read())
        sys.stdout.buffer.write(b"".join(answers))

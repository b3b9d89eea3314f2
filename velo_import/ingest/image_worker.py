# SPDX-License-Identifier: Apache-2.0
"""Makes images of code objects, and proves them; run as a script by the interpreter whose objects they are.

`image_worker.py make` reads marshalled code from stdin (each behind a u32 length) and writes to stdout
`sys.version`, four basic sizes, and an image for each (FORMAT.md, section 13), or nothing for one that cannot
have any. `image_worker.py prove LIBRARY FILE IDENTITY` reads a u64 pair of checks before each code, has the
native module load each from that file, and writes 1 for each that equals what unmarshalling makes, or 0.

Knows how CPython lays out four kinds of objects; every other object is referred to, and made anew by whoever
loads the image. The surprise: what is copied are the bytes of objects, unmarshalled twice a moment before.
What differs between the two must be a pointer we know, or a place that CPython never reads before it writes.
"""

import marshal
import sys
from struct import Struct

try:
    import ctypes

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
REFERENCES = 1 << 29
GC_HEADER = 16  # Before objects that the collector may list; zeros: it does not list them.
HASH = 24  # Where bytes and strings keep their hash: -1 until somebody asks.
INTERNED = b"tAZ"  # How marshal marks interned strings.
# CPython 3.11 to 3.15, Include/cpython/code.h: consts, names, exceptiontable, localsplusnames,
# localspluskinds, filename, name, qualname, linetable.
POINTERS = (24, 32, 40, 96, 104, 112, 120, 128, 136)
FILE_NAME = 112
VISIBLE = {24: "co_consts", 32: "co_names", 40: "co_exceptiontable", FILE_NAME: "co_filename"}
VISIBLE |= {120: "co_name", 128: "co_qualname", 136: "co_linetable"}
# What is set to 0: from 3.12 on the version by which specialised calls know a function, which then gets one
# when its first call is specialised; and what is never read before it is written: padding, and from 3.14 on
# the id that only free-threaded builds use.
ONES_OWN = {
    (3, 11): ((172, 176),),
    (3, 12): ((92, 96), (180, 184)),
    (3, 13): ((92, 96), (188, 192)),
    (3, 14): ((92, 96), (184, 192), (196, 200)),
    (3, 15): ((92, 96), (184, 192), (196, 200)),
}
FIXED = (CODE, tuple, bytes, str)
OPTIMIZED = 1  # A flag of functions, which module and class bodies do not have.
NAMES = 1 << 40  # Added to the index of a name until it is known how many others there are.


class Unfit(Exception):
    """This module, or this interpreter, gets no images."""


def raw(value: "Any", size: int) -> bytearray:
    return bytearray(ctypes.string_at(id(value), size))


def word_at(value: "Any", offset: int) -> int:
    return int.from_bytes(ctypes.string_at(id(value) + offset, 8), "little")


def pointed(code: "CodeType", offset: int) -> "Any":
    """The object that a code object points to; looked at only once its type is known to be one of ours."""
    address = word_at(code, offset)
    kind = int.from_bytes(ctypes.string_at(address + 8, 8), "little")
    if kind not in map(id, (tuple, bytes, str)):
        raise Unfit("layout")
    return ctypes.cast(address, ctypes.py_object).value


def is_interned(text: str) -> bool:
    return marshal.dumps(text)[0] & 0x7F in INTERNED


def size_of(value: "Any") -> int:
    """Bytes of an object that is copied."""
    if type(value) is CODE:
        return CODE.__basicsize__ + 2 * word_at(value, 16)
    if type(value) is tuple:
        return tuple.__basicsize__ + 8 * len(value)
    # bytes are counted with the NUL at their end; so are those strings that are copied.
    return bytes.__basicsize__ + len(value) if type(value) is bytes else sys.getsizeof(value)


def is_copied(value: "Any") -> bool:
    """Whether an object lies in the image. Single characters and empty ones are CPython's own."""
    kind = type(value)
    if kind is str:
        return len(value) > 1 and value.isascii() and not is_interned(value)
    return kind is CODE or (kind is tuple and len(value) > 0) or (kind is bytes and len(value) > 1)


class Imaging:
    """One image in the making; `code` and `twin` come from the same bytes, and nobody has touched them."""

    def __init__(self, code: "CodeType", twin: "CodeType") -> None:
        self.data = bytearray()
        self.internal: list[int] = []
        self.external: list[int] = []
        self.places: dict[int, int] = {}
        self.known = {id(kind): index for index, kind in enumerate(FIXED)}
        self.others: list[Any] = []
        self.names: list[str] = []
        self.kept: list[Any] = [code, twin]  # An id means something only as long as its object is alive.
        self.file_name = code.co_filename
        self.bodies: list[int] = []
        self.holes: list[int] = []
        self.cut(code, twin, 0)
        self.data.extend(bytes(-len(self.data) % 16))
        self.code = code

    def cut(self, code: "CodeType", twin: "CodeType", body: int) -> None:
        """Copy the functions of a module or class body, and leave holes where they were. Bodies run once."""
        self.kept += (code.co_consts, twin.co_consts)
        for index, (value, other) in enumerate(zip(code.co_consts, twin.co_consts, strict=True)):
            if type(value) is not CODE or type(other) is not CODE:
                continue
            if value.co_flags & OPTIMIZED:
                self.holes += (body, index, self.add(value, other))
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(None))
                slot = id(code.co_consts) + tuple.__basicsize__ + 8 * index
                ctypes.memmove(slot, WORD.pack(id(None)), 8)
            else:
                self.bodies += (body, index)
                self.cut(value, other, len(self.bodies) // 2)

    def add(self, value: "Any", twin: "Any") -> int:
        """Copy an object with all it consists of; where it begins."""
        place = self.places.get(id(value))
        if place is not None:
            return place
        kind = type(value)
        if type(twin) is not kind or size_of(twin) != size_of(value):
            raise Unfit("not the same twice")
        self.kept += (value, twin)
        place = -(-(len(self.data) + (GC_HEADER if kind is tuple else 0)) // 16) * 16
        self.places[id(value)] = place
        content = raw(value, size_of(value))
        if kind is CODE:
            self.check(content, raw(twin, len(content)))
        elif kind is not tuple and value != twin:
            raise Unfit("not the same twice")
        elif kind is not tuple or tuple.__basicsize__ > HASH:
            content[HASH : HASH + 8] = b"\xff" * 8
        content[:8] = WORD.pack(REFERENCES)
        self.data += bytes(place - len(self.data)) + content
        self.point(place + 8, kind, kind)
        if kind is tuple:
            for index, (item, other) in enumerate(zip(value, twin, strict=True)):
                self.point(place + tuple.__basicsize__ + 8 * index, item, other)
        elif kind is CODE:
            for offset in POINTERS:
                if offset == FILE_NAME and value.co_filename == self.file_name:
                    self.external.append(place + offset)
                    WORD.pack_into(self.data, place + offset, len(FIXED))
                else:
                    self.point(place + offset, pointed(value, offset), pointed(twin, offset))
        return place

    def check(self, content: bytearray, twin: bytearray) -> None:
        """Compare what is no pointer; what says nothing, or is each process's own, becomes zero."""
        for one in (content, twin):
            for start, end in ONES_OWN[sys.version_info[:2]]:
                one[start:end] = bytes(end - start)
            for offset in POINTERS:
                one[offset : offset + 8] = bytes(8)
        if content[8:] != twin[8:]:
            raise Unfit("not the same twice")

    def point(self, place: int, value: "Any", twin: "Any") -> None:
        """Note that a pointer to this object belongs here."""
        target = self.places.get(id(value))
        if target is None and id(value) not in self.known and is_copied(value):
            target = self.add(value, twin)
        if target is None:
            if value is not twin and difference(value, twin):
                raise Unfit("not the same twice")
            target = self.known.get(id(value))
            if target is None:
                target = self.refer(value)
            self.external.append(place)
        else:
            self.internal.append(place)
        WORD.pack_into(self.data, place, target)

    def refer(self, value: "Any") -> int:
        """The index of an object that is not copied. Names stand behind the others, which may grow."""
        self.kept.append(value)
        if type(value) is str and is_interned(value) and is_encodable(value):
            index = len(FIXED) + 1 + len(self.names) + NAMES
            self.names.append(value)
        else:
            index = len(FIXED) + 1 + len(self.others)
            self.others.append(value)
        self.known[id(value)] = index
        return index

    def parts(self) -> "Iterator[bytes]":
        for place in self.external:
            (target,) = WORD.unpack_from(self.data, place)
            if target >= NAMES:
                WORD.pack_into(self.data, place, target - NAMES + len(self.others))
        yield bytes(self.data)
        yield from map(numbers, (self.internal, self.external, self.bodies, self.holes))
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
    one = marshal.loads(marshal.dumps(check_layout.__code__))
    for offset, name in VISIBLE.items():
        if word_at(one, offset) != id(getattr(one, name)):
            raise Unfit("layout")
    for offset in POINTERS:
        pointed(one, offset)


def image_of(data: bytes) -> bytes:
    """The parts of one image, each behind its length; empty if there can be none, or nothing is in it."""
    try:
        imaging = Imaging(marshal.loads(data), marshal.loads(data))
        return joined(imaging.parts()) if imaging.holes else b""
    except (Unfit, ValueError, RecursionError):  # ValueError: an object that marshal does not know
        return b""


def joined(parts: "Iterator[bytes]") -> bytes:
    return b"".join(SIZE.pack(len(part)) + part for part in parts)


# Lines and positions are read from co_linetable, which is compared.
UNSEEN = frozenset(("co_filename", "co_lnotab", "co_lines", "co_positions", "co_branches"))


def difference(one: "Any", other: "Any") -> bool:
    """Whether two objects differ in anything that can be seen, but for the file name of code."""
    if type(one) is not type(other):
        return True
    if type(one) is tuple:
        return len(one) != len(other) or any(map(difference, one, other))
    if type(one) is frozenset:  # Equal sets may list their members in another order.
        return one != other or sorted(map(repr, one)) != sorted(map(repr, other))
    if type(one) is not CODE:
        same_kind = type(one) is not str or is_interned(one) == is_interned(other)
        return not same_kind or repr(one) != repr(other)
    names = [name for name in dir(one) if name.startswith(("co_", "_co_")) and name not in UNSEEN]
    return hash(one) != hash(other) or any(
        difference(getattr(one, name), getattr(other, name)) for name in names
    )


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
        is_same = found is not None and found.co_filename == "file name"
        yield b"1" if is_same and not difference(marshal.loads(data[at : at + size]), found) else b"0"
        at += size


def make(data: bytes) -> "Iterator[bytes]":
    """Who we are, and an image for each code object."""
    yield sys.version.encode()
    yield numbers([kind.__basicsize__ for kind in (CODE, tuple, bytes, str)])
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

# SPDX-License-Identifier: Apache-2.0
"""Pure work of module bodies, done once: patterns and source text compiled; looked up by the exact input.

Three modules of the standard library are served with one expression changed: before `re._compiler.compile`
compiles a pattern, and before `dataclasses` and `collections.namedtuple` execute the text they made, they ask
`__spec__.loader._recall`. Without an answer they do the work as always. So there is no other function, no
other name in any module, no wrapper around anything, and the caches of `re` are filled by `re` itself. The
changed code comes in the one piece of bytecode that is loaded anyway, because loading another, or making one
by `code.replace`, is an event that auditors see. What a program can see is that the bytecode of these three
functions is not what their source compiles to.

The surprise: where somebody audits, source text is compiled as always, so that every event is raised: one for
the text, and none for unmarshalling what was remembered.
"""

import builtins
import sys
from _imp import get_frozen_object, source_hash
from sys import getprofile, gettrace

import velo_import.hook.mapping as mapping
from velo_import.hook.mapping import Unusable, map_private
from velo_import.hook.tables import first_usable, has_columns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Any

    from velo_import.hook.counts import Counts

# FORMAT.md, section 10.
START = b"VELOREMB\x02\x00\x00\x00\x00\x00\x00\x00"
HASH_KEY = 0x56454C4F
HEADER_SIZE, RECORD_HEADER = 64, 24
SLOTS, RECORDS = 5, 6  # Positions in the header, in words.
MODULE, BASIS, PATTERN, SOURCE = b"M", b"B", b"P", b"S"
KINDS = "patterns", "sources"
MODULES = {"re._compiler": "patterns", "dataclasses": "sources", "collections": "sources"}
BASES = "re._parser", "re._constants", "re._casefix"
IMPORTLIB = "<frozen importlib._bootstrap>"
# A result under one of these depends on the locale, or is printed: DEBUG, LOCALE, and TEMPLATE of old.
NEVER = 0x80 | 0x04 | 0x01
MOST_INPUTS, MOST_BYTES, LONGEST = 1024, 1 << 20, 1 << 15  # noted by one program; the bytes of one input
# What the compiled pattern depends on: where one of these was replaced, nothing is answered.
COMPILER = (
    *("_parser", "_sre", "isstring", "_code", "_compile", "_compile_charset", "_optimize_charset"),
    *("_compile_info", "_simple", "_generate_overlap_table", "_get_literal_prefix", "_get_charset_prefix"),
    *("_get_iscased", "_combine_flags", "_bytes_to_codes"),
)
PARSER = (
    *("parse", "fix_flags", "_parse", "_parse_sub", "_parse_flags", "_escape", "_class_escape"),
    *("Tokenizer", "SubPattern", "State"),
)

BUILTINS = vars(builtins)
TEXT_RUNNERS = {"exec": exec, "eval": eval}  # those that were there first: the hook has builtins of its own
BUILTIN: "Any" = type(len)
FUNCTION: "Any" = type(lambda: None)
NEIGHBOURHOOD = 1 << 15  # Bytes. The kernel maps up to twice that around whatever is read.


def open_memory(
    folders: "list[tuple[str, int]]", key: str, identity: bytes, kinds: "frozenset[str]", counts: "Counts"
) -> "Memory":
    """What is remembered for this environment: in our store, or else in the one below it.

    Args:
        folders: the stores, and whose files are believed in each.
        kinds: what may be answered: `patterns`, `sources`.
    """
    if not has_columns():
        kinds -= {"sources"}
    identity += b"\0" + sys.version.encode()

    def make(path: str, owner: int) -> "Memory":
        return Memory(map_private(path, owner)[0], identity, kinds, counts)

    made: Memory | None = first_usable(folders, key, "remembered", make, counts)
    return Memory(None, identity, kinds, counts) if made is None else made


class Memory:
    """One mapped table, or none. `served` are the modules whose code came from a checked pack, with the hash
    of their source.

    Raises:
        Unusable: with the reason, for the constructor only.
    """

    __slots__ = (
        "bytes",
        "counts",
        "kinds",
        "mapped",
        "noted",
        "served",
        "slots",
        "stock",
        "table",
        "words",
    )

    def __init__(self, mapped: "Any", identity: bytes, kinds: "frozenset[str]", counts: "Counts") -> None:
        self.mapped = mapped
        self.kinds = kinds
        self.counts = counts
        self.noted = 0
        self.served: dict[str, int] = {}
        self.stock: Any = None
        self.slots = self.table = 0
        self.words: memoryview = memoryview(b"")
        self.bytes: memoryview = memoryview(b"")
        if mapped is None:
            return
        self.bytes = memoryview(mapped)
        size = len(self.bytes)
        if size < HEADER_SIZE or size % 8 or self.bytes[:16] != START:
            raise Unusable("not a table")
        self.words = words = self.bytes.cast("Q")
        slots, records = words[SLOTS], words[RECORDS]
        count = (records - slots) // 8
        if (
            words[2] != size
            or not HEADER_SIZE <= slots < records <= size
            or slots % 8
            or records % 8
            or count & (count - 1)
            or words[3] != int.from_bytes(source_hash(HASH_KEY, self.bytes[32:slots]), "little")
        ):
            raise Unusable("damaged")
        if self.bytes[HEADER_SIZE : HEADER_SIZE + words[4]] != identity:
            raise Unusable("build")
        self.table = slots // 8
        self.slots = count

    def find(self, key: bytes) -> "memoryview | None":
        """The value stored under exactly this key, checked. An empty one says: known, but never answered."""
        start, size = self._place(key)
        return self.bytes[start : start + size] if start else None

    def _place(self, key: bytes) -> "tuple[int, int]":
        """Offset and size of that value; offset 0 if there is none."""
        if not self.slots:
            return 0, 0
        mapping.note_read(self.mapped, NEIGHBOURHOOD)
        words = self.words
        slot = int.from_bytes(source_hash(HASH_KEY, key), "little")
        for _ in range(self.slots):
            slot &= self.slots - 1
            at = words[self.table + slot]
            if not at:
                return 0, 0
            check, key_size, value_size = words[at >> 3 : (at >> 3) + 3]
            start = at + RECORD_HEADER
            if self.bytes[start : start + key_size] == key:
                place = start + (key_size + 7 & ~7)
                record = self.bytes[at + 8 : place + value_size]
                if int.from_bytes(source_hash(HASH_KEY, record), "little") != check:
                    self.counts.reasons["remembered: damaged"] = 1
                    self.counts.wanted["remembered"] = ""
                    return 0, 0
                return place, value_size
            slot += 1
        return 0, 0

    # -- modules -----------------------------------------------------------------------------------

    def adapted(
        self, loader: "Any", pack: "Any", records: memoryview, at: int
    ) -> "tuple[Any, memoryview, int]":
        """Where the code of a module is that asks us, or where it was said to be.

        Only for a module that is being imported by this loader: who asks for its code without is shown the
        code that its source compiles to.
        """
        name = loader.name
        kind = MODULES.get(name)
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if kind not in self.kinds or getattr(spec, "loader", None) is not loader or not spec._initializing:  # type: ignore[union-attr]
            return pack, records, at
        place, size = self._place(MODULE + name.encode())
        if not place or int.from_bytes(self.bytes[place : place + 8], "little") != records[at + 7]:
            # Another source than the one that was learned from.
            self.counts.wanted["remembered"] = ""
            return pack, records, at
        if size <= 8:  # There is no such expression in this version of the module.
            return pack, records, at
        words = list(records[at : at + 10])
        words[1], words[2] = place + 8, size - 8
        joined = b"".join(word.to_bytes(8, "little") for word in words)
        return self.mapped, memoryview(joined).cast("Q"), 0

    def recall_for(self, loader: "Any", check: int) -> "Callable[..., Any] | None":
        """What a module that was just served asks, as it is loaded with this hash of its source."""
        name = loader.name
        self.served[name] = check
        kind = MODULES.get(name)
        if kind == "patterns":
            return self.patterns
        if kind == "sources":
            table = vars(sys.modules[name])
            return lambda text, runner: self.code_of(text, runner, table)
        return None

    # -- patterns ----------------------------------------------------------------------------------

    def patterns(self, pattern: "Any", flags: "Any") -> "tuple[Any, ...]":
        """The compiled pattern, or nothing if it is not known or not to be answered here.

        Nothing is raised, not even between functions: debuggers stop at that.
        """
        kind = type(pattern)
        if (
            type(flags) is not int
            or flags & NEVER
            or gettrace() is not None
            or getprofile() is not None
            or not self._is_stock()
        ):
            return ()
        if kind is str:
            key = b"Ps" + flags.to_bytes(4, "little") + pattern.encode("utf-8", "surrogatepass")
        elif kind is bytes:
            key = b"Pb" + flags.to_bytes(4, "little") + pattern
        else:
            return ()
        value = self.find(key)
        if not value:
            if value is None:
                self._note(key)
            return ()
        words = value.cast("I")
        result, groups, size, named = words[:4]
        code = words[4 : 4 + size].tolist()
        index: dict[str, int] = {}
        names: list[str | None] = [None] * (groups + 1)
        if named:
            text = str(value[(4 + size + named) * 4 :], "utf-8").rstrip("\0")
            for name, number in zip(text.split("\0"), words[4 + size : 4 + size + named], strict=True):
                index[name] = number
                names[number] = name
        compiled = self.stock[4](pattern, result, code, groups, index, tuple(names))
        self.counts.patterns += 1
        return (compiled,)

    def _is_stock(self) -> bool:
        """Whether `re` is what it was when the patterns were learned, no part of it replaced."""
        if self.stock is None:
            self.stock = self._stock()
        if not self.stock:
            return False
        compiler, parts, parser, its_parts, compile, sre = self.stock
        return bool(
            tuple(map(compiler.get, COMPILER)) == parts
            and tuple(map(parser.get, PARSER)) == its_parts
            and sre["compile"] is compile
        )

    def _stock(self) -> "tuple[Any, ...]":
        """The parts of `re`; nothing unless they are those of the modules that were served."""
        for name in BASES:
            value = self.find(BASIS + name.encode())
            if value is None or int.from_bytes(value, "little") != self.served.get(name):
                self.counts.wanted["remembered"] = ""
                return ()
        compiler = vars(sys.modules["re._compiler"])
        parser = vars(sys.modules["re._parser"])
        sre = vars(sys.modules["_sre"])
        if (
            compiler["_parser"] is not sys.modules["re._parser"]
            or compiler["_sre"] is not sys.modules["_sre"]
            or type(sre["compile"]) is not BUILTIN
            or sre["compile"].__self__ is not compiler["_sre"]
        ):
            return ()
        for table, names in ((compiler, COMPILER), (parser, PARSER)):
            for name in names:
                part: Any = table.get(name)
                # Made by the module that it is found in, under the name that it is found by.
                if type(part) is FUNCTION and (part.__globals__ is not table or part.__name__ != name):
                    return ()
                if type(part) is type and (part.__module__ != table["__name__"] or part.__name__ != name):
                    return ()
                if part is not None and type(part) not in (FUNCTION, type, type(sys)):
                    return ()
        return (
            compiler,
            tuple(map(compiler.get, COMPILER)),
            parser,
            tuple(map(parser.get, PARSER)),
            sre["compile"],
            sre,
        )

    # -- sources -----------------------------------------------------------------------------------

    def code_of(self, text: "Any", runner: str, table: "dict[str, Any]") -> "Any":
        """The code of a text that `exec` or `eval` is about to be given by the module of this table; or the
        text itself.
        """
        if (
            type(text) is not str
            or runner in table
            or BUILTINS[runner] is not TEXT_RUNNERS[runner]
            or table.get("__builtins__") is not BUILTINS
            or gettrace() is not None
            or getprofile() is not None
            or mapping.is_audited()
        ):
            return text
        key = SOURCE + runner.encode() + text.encode()
        value = self.find(key)
        if not value:
            if value is None:
                self._note(key)
            return text
        code: CodeType = get_frozen_object(runner, value)
        self.counts.sources += 1
        return code

    # -- what to remember next time ----------------------------------------------------------------

    def _note(self, key: bytes) -> None:
        """Note an input, if a module body is being run: later ones may be made of anybody's data."""
        inputs = self.counts.inputs
        if len(key) > LONGEST or len(inputs) >= MOST_INPUTS or self.noted + len(key) > MOST_BYTES:
            return
        try:
            raise LookupError
        except LookupError as error:
            frame: Any = error.__traceback__.tb_frame  # type: ignore[union-attr] # sys._getframe is audited
        while frame is not None:
            code = frame.f_code
            if code.co_name == "<module>":
                name = frame.f_globals.get("__name__")
            elif code.co_name == "_call_with_frames_removed" and code.co_filename == IMPORTLIB:
                name = "extension modules"  # Their bodies have no frame.
            else:
                frame = frame.f_back
                continue
            if name != "__main__" and type(name) is str:
                inputs[key] = None
                self.noted += len(key)
                self.counts.wanted[f"inputs of {name}"] = ""
            return

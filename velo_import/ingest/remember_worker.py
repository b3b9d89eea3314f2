# SPDX-License-Identifier: Apache-2.0
"""Does once what module bodies do at each start; run as a script by the interpreter whose results are wanted.

Reads from stdin all inputs (each a u32 length and a key of FORMAT.md, section 10) and writes to stdout first
who it is (`sys.version`), then a value for each input, then key and value for each module of the standard
library that takes part: sizes first, as u32. A value that cannot be remembered is empty. Runs nothing of what
it is given: texts and patterns are compiled only. The surprise: each result is made again from the bytes that
are kept, and compared with what this interpreter makes of the input, before it is believed.
"""

import _imp
import ast
import marshal
import re
import sys
import warnings
from importlib import import_module
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType
    from typing import Any

COMPILER: "Any" = import_module("re._compiler")
PARSER: "Any" = import_module("re._parser")
SRE: "Any" = import_module("_sre")

SIZE = Struct("<I")
HASH_KEY = 0x56454C4F
NEVER = re.DEBUG | re.LOCALE | 1  # 1 was re.TEMPLATE.
FUTURE = 0xFFF << 17  # co_flags of `from __future__` imports, which a text would inherit.
LONG_NUMBER = re.compile(rb"[0-9_]{600}|0[xob][0-9a-fA-F_]{600}")  # Limits of such are each process's own.
LONGEST = 1 << 17
SCRATCH = "<velo>"
MODULES = ("re._compiler", "dataclasses", "collections")
BASES = ("re._parser", "re._constants", "re._casefix")


def pattern_value(text: "Any", flags: int) -> bytes:
    """What `_sre.compile` has to be told to make this pattern; empty if it must not be remembered."""
    if flags & NEVER:
        return b""
    compiled = COMPILER.compile(text, flags)
    if compiled.flags & NEVER:
        return b""
    parsed = PARSER.parse(text, flags)
    code = COMPILER._code(parsed, flags)
    index = parsed.state.groupdict
    head = (flags | parsed.state.flags, parsed.state.groups - 1, len(code), len(index))
    words = b"".join(SIZE.pack(word) for word in (*head, *code, *index.values()))
    value = words + "\0".join(index).encode()
    value += b"\0" * (-len(value) % 4)
    again = pattern_of(text, value)
    for one in (compiled, again):
        facts = (one.pattern, one.flags, one.groups, list(one.groupindex.items()))
        if facts != (text, head[0], head[1], list(index.items())) or one != compiled:
            return b""
    return value


def pattern_of(text: "Any", value: bytes) -> "Any":
    """The pattern that the hook will make of a value."""
    words = memoryview(value).cast("I")
    flags, groups, size, named = words[:4]
    index = {}
    names: list[Any] = [None] * (groups + 1)
    if named:
        listed = value[(4 + size + named) * 4 :].decode().rstrip("\0").split("\0")
        for name, number in zip(listed, words[4 + size : 4 + size + named], strict=True):
            index[name] = number
            names[number] = name
    return SRE.compile(text, flags, words[4 : 4 + size].tolist(), groups, index, tuple(names))


def source_value(text: str, runner: str) -> bytes:
    """The code that `exec` or `eval` would make of this text."""
    if runner == "eval":
        text = text.lstrip(" \t")
    made = compile(text, "<string>", runner, 0, True)
    value = marshal.dumps(made)
    return value if is_same_code(marshal.loads(value), made) else b""


def is_same_code(one: "CodeType", other: "CodeType", but: "frozenset[str]" = frozenset()) -> bool:
    """Whether two code objects are equal in all that can be seen; except for the bytecode of the functions
    named in `but`.
    """
    seen = [
        "co_name",
        "co_qualname",
        "co_filename",
        "co_firstlineno",
        "co_flags",
        "co_argcount",
        "co_posonlyargcount",
    ]
    seen += ["co_kwonlyargcount", "co_varnames", "co_cellvars", "co_freevars", "co_nlocals"]
    if one.co_qualname not in but:
        seen += ["co_code", "co_names", "co_linetable", "co_exceptiontable", "co_stacksize"]
    if any(getattr(one, name) != getattr(other, name) for name in seen):
        return False
    constants = list(one.co_consts)
    if one.co_qualname in but:  # Its own come in the same order, with those of the question in between.
        known = [shown(value) for value in other.co_consts]
        constants = [value for value in constants if shown(value) in known]
    if len(constants) != len(other.co_consts):
        return False
    for first, second in zip(constants, other.co_consts, strict=True):
        if type(first) is not type(second):
            return False
        if isinstance(first, type(one)):
            if not is_same_code(first, second, but):
                return False
        elif first != second or repr(first) != repr(second):
            return False
    return True


def shown(constant: "Any") -> str:
    """A constant without its address."""
    return constant.co_name if hasattr(constant, "co_name") else repr(constant)


class AskFirst(ast.NodeTransformer):
    """Changes the one expression of a module that does the work, so that it asks before.

    Handles `compile(p, flags)` of `re._compiler`, and each `exec(text, ..., scratch)` or
    `eval(text, scratch)` where `scratch` is a dict that the same function has just made. No name and no line
    is added to the function: what was remembered is handed over in that dict, and taken out of it again
    before it is used.
    """

    def __init__(self, name: str) -> None:
        self.is_compiler = name == "re._compiler"
        self.names: list[str] = []
        self.changed: set[str] = set()

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.names.append(node.name)
        self.generic_visit(node)
        if self.is_compiler:
            self._ask_for_pattern(node)
        else:
            node.body = list(self._ask_for_source(node.body))
        self.names[-1:] = []
        return node

    def _qualified(self) -> str:
        return ".".join(self.names)

    def _ask_for_pattern(self, node: ast.FunctionDef) -> None:
        last = node.body[-1]
        if (
            self.names == ["compile"]
            and ast.unparse(node.args) == "p, flags=0"
            and isinstance(last, ast.Return)
            and ast.unparse(last).startswith("return _sre.compile(pattern, flags | p.state.flags, code,")
        ):
            # A loop, so that neither an exception nor another variable says that nothing was found.
            asking = (
                "try:\n    for pattern in __spec__.loader._recall(p, flags):\n        return pattern\n"
                "except Exception:\n    pass"
            )
            node.body.insert(0, at_place_of(node.body[0], asking))
            self.changed.add(self._qualified())

    def _ask_for_source(self, body: "list[ast.stmt]") -> "Iterator[ast.stmt]":
        scratches = set()
        for statement in body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
                scratches |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
            call = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and len(call.args) == {"exec": 3, "eval": 2}.get(call.func.id)
                and not call.keywords
                and isinstance(call.args[0], ast.Name)
                and isinstance(call.args[-1], ast.Name)
                and call.args[-1].id in scratches
            ):
                text, scratch, runner = call.args[0].id, call.args[-1].id, call.func.id
                asking = (
                    f"try:\n    {scratch}[{SCRATCH!r}] = __spec__.loader._recall({text}, {runner!r})\n"
                    "except Exception:\n    pass"
                )
                yield at_place_of(statement, asking)
                taken = at_place_of(call.args[0], f"{scratch}.pop({SCRATCH!r}, {text})")
                assert isinstance(taken, ast.Expr)
                call.args[0] = taken.value
                self.changed.add(self._qualified())
            yield statement


def at_place_of(old: ast.AST, text: str) -> "ast.stmt":
    """A statement that stands where another does, within one line: tracers are told of no other."""
    (new,) = ast.parse(text).body
    first: Any = old
    is_long = first.end_lineno != first.lineno
    nodes: Any = ast.walk(new)
    for node in nodes:
        if hasattr(node, "lineno"):
            node.lineno = node.end_lineno = first.lineno
            node.col_offset = first.col_offset
            node.end_col_offset = first.col_offset + 1 if is_long else first.end_col_offset
    return new


def module_value(name: str, source: bytes) -> bytes:
    """SipHash of the source, and the module's code that asks first; without code where there is nothing to
    ask, or where it would differ in more than that.
    """
    check = _imp.source_hash(HASH_KEY, source)
    tree = ast.parse(source)
    change = AskFirst(name)
    change.visit(tree)
    plain = compile(source, "", "exec", 0, True)
    asking = compile(tree, "", "exec", 0, True)
    if (
        not change.changed
        or plain.co_flags & FUTURE
        or not is_same_code(asking, plain, frozenset(change.changed))
    ):
        return check
    return check + marshal.dumps(asking)


def value_of(key: bytes) -> bytes:
    """The value of one input, empty if it is none or must not be remembered."""
    kind = key[:2]
    if LONG_NUMBER.search(key):
        return b""
    if kind == b"Ps":
        return pattern_value(key[6:].decode("utf-8", "surrogatepass"), SIZE.unpack(key[2:6])[0])
    if kind == b"Pb":
        return pattern_value(key[6:], SIZE.unpack(key[2:6])[0])
    if key[:5] in (b"Sexec", b"Seval"):
        return source_value(key[5:].decode(), key[1:5].decode())
    return b""


def guarded(make: "Callable[..., bytes]", *arguments: "Any") -> bytes:
    """A value, empty where the work fails or warns: whoever asks is to see that for himself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = make(*arguments)
    except Exception:
        return b""
    return value if len(value) <= LONGEST else b""


def source_of(name: str) -> bytes:
    """The source file of a module, without importing it."""
    folder = re.__file__.rpartition("/re/")[0]
    path = folder + "/" + name.replace(".", "/")
    for candidate in (path + ".py", path + "/__init__.py"):
        try:
            with open(candidate, "rb") as file:
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            pass
    return b""


def main() -> None:
    """Answer everything at once."""
    data = sys.stdin.buffer.read()
    answers = [sys.version.encode()]
    at = 0
    while at < len(data):
        (size,) = SIZE.unpack_from(data, at)
        answers.append(guarded(value_of, data[at + SIZE.size : at + SIZE.size + size]))
        at += SIZE.size + size
    for name in MODULES:
        source = source_of(name)
        # A syntax that warns or a source that is not there: nothing is changed.
        try:
            value = module_value(name, source)
        except (SyntaxError, ValueError):
            value = _imp.source_hash(HASH_KEY, source)
        answers += [b"M" + name.encode(), value]
    for name in BASES:
        answers += [b"B" + name.encode(), _imp.source_hash(HASH_KEY, source_of(name))]
    sys.stdout.buffer.write(b"".join(SIZE.pack(len(answer)) + answer for answer in answers))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Patterns and generated source are compiled once, and nobody can tell."""

from __future__ import annotations

import random
import time
from pathlib import Path
from struct import Struct

import pytest

from tests.support.interpreters import Interpreter
from tests.support.running import Result, Velo
from tests.support.tree import Tree

pytestmark = pytest.mark.usefixtures("can_tell_auditors")

PARTS = '''
    import collections
    import dataclasses
    import re

    NAMED = re.compile(r"(?P<year>\\d{4})-(?P<month>[01]\\d)|(?P<word>[a-zé]+)", re.IGNORECASE)
    BYTES = re.compile(rb"(a|b)*?\\xff[^c-z]", re.DOTALL)
    INLINE = re.compile("(?x) a # comment\\n b{2,} (?i:c) (?<!z)")
    LONE = re.compile("[\\ud800-\\udbff]")
    EMPTY = re.compile("")
    Point = collections.namedtuple("Point", "x y", defaults=(1,))

    @dataclasses.dataclass(order=True)
    class Box:
        """A box."""
        width: int
        names: list = dataclasses.field(default_factory=list)
        height: float = 2.5

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Frozen:
        a: "int"
        b: str = "q"
    '''
SHOW = """
    import sys
    from copy import copy
    import parts, re, inspect, dataclasses

    def facts(code):
        yield from (code.co_name, code.co_qualname, code.co_filename, code.co_firstlineno, code.co_flags)
        yield from (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_stacksize)
        yield list(code.co_positions())
        for value in code.co_consts:
            yield list(facts(value)) if hasattr(value, "co_code") else repr(value)

    for pattern in (parts.NAMED, parts.BYTES, parts.INLINE, parts.LONE, parts.EMPTY):
        print(ascii(pattern), pattern.flags, pattern.groups, list(pattern.groupindex.items()))
        print(re.compile(pattern.pattern, pattern.flags) == pattern, hash(pattern) == hash(copy(pattern)))
    print(parts.NAMED.search("on 2024-11!").groupdict(), parts.BYTES.match(b"ab\\xff-").span())
    print(list(map(ascii, re._cache)), list(map(ascii, getattr(re, "_cache2", ()))))
    re.purge()
    print(len(re._cache), re.compile("abc") is re.compile("abc"), len(re._cache))
    for kind in (parts.Box, parts.Frozen, parts.Point):
        print(kind.__doc__, inspect.signature(kind), sorted(vars(kind)))
        for name, method in sorted(vars(kind).items()):
            method = inspect.unwrap(method) if callable(method) else method
            if inspect.isfunction(method):
                print(name, list(facts(method.__code__)), method.__module__, method.__qualname__)
                print(method.__defaults__, method.__kwdefaults__, len(method.__closure__ or ()))
    print(parts.Box(3) < parts.Box(4), repr(parts.Frozen(a=1)), parts.Point(5), hash(parts.Frozen(a=1)))
    print(sys.getsizeof(parts.Point.__new__.__globals__), list(parts.Point.__new__.__globals__))
    """


def taught(velo: Velo, *arguments: str, **options: object) -> Result:
    """Plain, then accelerated until all is remembered; every answer has to be the plain one."""
    plain = velo.plain(*arguments, **options)  # type: ignore[arg-type]
    for _ in range(4):
        result = velo.learn(*arguments, **options)  # type: ignore[arg-type]
        assert result.answer == plain.answer
        assert result.errors == 0, result.stats
    return result


def counted(result: Result, kind: str) -> int:
    return sum(each[kind] for each in result.stats)


def table_of(velo: Velo) -> Path:
    (found,) = velo.home.glob("manifests/v1/*/remembered.table")
    return found


@pytest.mark.core
def test_nothing_shows_that_it_was_not_compiled(tree: Tree, velo: Velo) -> None:
    """Patterns, dataclasses and named tuples look as always: flags, groups, caches, bytecode, positions."""
    tree.write({"parts.py": PARTS, "app.py": SHOW})
    velo.environment["PYTHONHASHSEED"] = "1"

    result = taught(velo, "app.py")

    assert counted(result, "patterns") >= 5
    assert counted(result, "sources") >= 10
    assert result.stats[0]["wanted"] == 0


@pytest.mark.core
def test_functions_that_ask_look_as_their_source(tree: Tree, velo: Velo) -> None:
    """The changed functions have the names, lines, variables and source that they had."""
    program = """
        import parts, re, dataclasses, collections, inspect, importlib.util, marshal
        functions = [re._compiler.compile, collections.namedtuple, dataclasses.dataclass]
        functions += [each for each in vars(dataclasses).values() if inspect.isfunction(each)]
        for function in functions:
            code = function.__code__
            print(function.__name__, list(inspect.signature(function).parameters), function.__module__)
            print(code.co_varnames, code.co_cellvars, code.co_freevars)
            print(code.co_firstlineno, sorted({line for *_, line in code.co_lines() if line}), code.co_flags)
            print(hash(inspect.getsource(function)))
        for module in (re._compiler, dataclasses, collections):
            loader = importlib.util.find_spec(module.__name__).loader
            code = loader.get_code(module.__name__)
            plain = compile(inspect.getsource(module), code.co_filename, "exec")
            print(len(marshal.dumps(code)) > 0, code == plain)
            print(sorted(name for name in vars(module) if name != "__cached__"))
        """
    tree.write({"parts.py": PARTS, "app.py": program})
    velo.environment["PYTHONHASHSEED"] = "1"

    assert counted(taught(velo, "app.py"), "sources") > 0


@pytest.mark.core
def test_errors_and_warnings_come_each_time(tree: Tree, velo: Velo) -> None:
    """What fails or warns when it is compiled does so at each start, with the same traceback."""
    bad = """
        import re, dataclasses, collections, warnings
        warnings.simplefilter("always")
        re.compile("[[a]||b]")
        for pattern in ("(", "a{3,1}", "(?P<1>a)", b"\\\\u1234", "(?i)x" * 2):
            try:
                re.compile(pattern)
            except Exception as error:
                print(type(error), error, error.__context__)
        for name in ("class", "a b"):
            try:
                collections.namedtuple("T", name + " c!")
            except ValueError as error:
                print(error)
        dataclasses.make_dataclass("D", ["x"], namespace={"__annotations__": {"x": int}}, order=True)
        class Evil(str):
            pass
        print(re.compile(Evil("abc")).pattern.__class__)
        make = getattr(dataclasses, "_create_fn", None) or 1 / 0
        make("f", ["x"], ["return ("], globals={})
        """
    tree.write({"bad.py": bad, "parts.py": PARTS, "app.py": "import parts\nimport bad"})

    assert taught(velo, "app.py").code == 1


@pytest.mark.core
def test_locale_and_debug_are_left_to_python(tree: Tree, velo: Velo) -> None:
    """Patterns that depend on the locale, or print when they are compiled, are compiled."""
    odd = """
        import re
        first = re.compile(rb"\\w+", re.LOCALE)
        second = re.compile(rb"(?L)\\w+")
        print(first.flags, second.flags)
        re.compile("a|b[c-d]*", re.DEBUG)
        """
    tree.write({"odd.py": odd, "parts.py": PARTS, "app.py": "import parts\nimport odd"})

    result = taught(velo, "app.py")

    assert "BRANCH" in result.stdout
    assert result.stats[0]["wanted"] == 0


SHOWN = "def {name}(*a): print('{name}', *map(ascii, a[:2])); return old(*a)"
RUN = "def run(*a): type(a[0]) is str and print(a[0]); return old(*a)"
PATCHES = {
    "parse": f"import re._parser as p; old = p.parse\n{SHOWN.format(name='parse')}\np.parse = parse",
    "fix_flags": "import re._parser as p; old = p.fix_flags\np.fix_flags = lambda s, f: old(s, f) | 2",
    "tokenizer": "import re._parser as p\nclass T(p.Tokenizer):\n  def getuntil(self, *a):\n    print(a)\n"
    "    return super().getuntil(*a)\np.Tokenizer = T",
    "code": "import re._compiler as c; old = c._code\ndef code(*a): print('code'); return old(*a)\n"
    "c._code = code",
    "sre": f"import _sre; old = _sre.compile\n{SHOWN.format(name='make')}\n_sre.compile = make",
    "compile": f"import re._compiler as c; old = c.compile\n{SHOWN.format(name='make')}\nc.compile = make",
    "exec": f"import builtins; old = exec\n{RUN}\nbuiltins.exec = run",
    "eval": f"import builtins, collections; old = eval\n{RUN}\nbuiltins.eval = run",
    "module exec": f"import dataclasses; old = exec\n{RUN}\ndataclasses.exec = run",
    "spec": "import re._compiler, dataclasses, collections\n"
    "for m in (re._compiler, dataclasses, collections): m.__spec__ = None",
    "audit": "import sys, re, collections, dataclasses\nseen = []\n"
    "names = 'compile', 'code.__new__', 'marshal.loads', 'object.__getattr__', 'sys._getframe'\n"
    "sys.addaudithook(lambda e, a: seen.append((e, a[1:])) if e in names\n"
    "  or e == 'exec' and a[0].co_filename == '<string>' else None)",
    "trace": "import sys, re, collections, dataclasses\nseen = []\ndef trace(frame, event, value):\n"
    "  name = frame.f_code.co_filename\n"
    "  if 'importlib' not in name and [event, frame.f_lineno] != [seen[-1][0], seen[-1][2]]:\n"
    "    seen.append((event, frame.f_code.co_name, frame.f_lineno))\n"
    "  return trace\nseen.append(('', '', 0))\nsys.settrace(trace)",
}


@pytest.mark.core
@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_who_replaces_or_watches_a_part_is_left_alone(tree: Tree, velo: Velo, patch: str) -> None:
    """Whoever patched `re`, `dataclasses` or a builtin, audits or traces sees all calls as without Velo."""
    app = f"{patch}\nimport sys, parts, flat\nsys.settrace(None)\nprint(flat.seen(globals()))"
    flat = """
        def seen(names):
            events = names.get("seen", ())
            return [each for each in events if each[0] != "marshal.loads"], sum(
                each[0] == "marshal.loads" for each in events
            )
        """
    tree.write({"parts.py": PARTS, "flat.py": flat, "plain.py": "import parts", "app.py": app})
    velo.environment["PYTHONHASHSEED"] = "1"  # What is traced includes the order of sets.
    velo.plain("app.py")  # Without it the first one alone would compile files.

    remembered = taught(velo, "plain.py")
    assert counted(remembered, "sources") > 0
    velo.learn("app.py")  # Where a module is not known yet, tracers see the finder at work.
    taught(velo, "app.py")


@pytest.mark.core
def test_forked_children_and_subinterpreters(tree: Tree, velo: Velo, interpreter: Interpreter) -> None:
    """Both remember for themselves, and each process counts its own."""
    module = {(3, 11): "_xxsubinterpreters", (3, 12): "_xxsubinterpreters"}.get(
        interpreter.version[:2], "_interpreters"
    )
    program = f"""
        import os, sys
        import {module} as interpreters
        child = os.fork()
        if not child:
            import parts
            print(parts.NAMED.groups, flush=True)
            sys.exit(0)
        os.waitpid(child, 0)
        number = interpreters.create()
        program = "import sys; sys.path.insert(0, {str(velo.cwd)!r}); import parts; "
        program += "print(parts.NAMED.groups, parts.Box(1), flush=True)"
        print(interpreters.run_string(number, program))
        interpreters.destroy(number)
        import parts
        print(parts.Box(1))
        """
    tree.write({"parts.py": PARTS, "app.py": program})

    result = taught(velo, "app.py")

    assert len(result.stats) >= 2
    assert min(each["patterns"] for each in result.stats[:2]) >= 5


def test_damaged_tables_cost_speed_only(tree: Tree, velo: Velo) -> None:
    """Cut anywhere, or with any bit changed, the program runs as without Velo; and the learner mends it."""
    tree.write({"parts.py": PARTS, "app.py": SHOW})
    velo.environment["PYTHONHASHSEED"] = "1"
    plain = velo.plain("app.py")
    taught(velo, "app.py")
    table = table_of(velo)
    whole = table.read_bytes()
    chance = random.Random(8)
    damaged = [b"", whole[:8], whole[:63], whole[: len(whole) // 2], whole[:-8], bytes(len(whole))]
    for at in [9, 17, 25, 33, 41, 49, 70, *(chance.randrange(len(whole)) for _ in range(10))]:
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :])
    # Every length and offset of every record at its largest.
    damaged.append(whole[:4096] + b"\xff" * (len(whole) - 4096))

    for data in damaged:
        table.unlink()
        table.write_bytes(data)
        result = velo.run("app.py", env={"VELO_READONLY": "1"})
        assert result.answer == plain.answer
    table.unlink()
    table.write_bytes(damaged[3])
    taught(velo, "app.py")
    assert table.read_bytes() == whole or counted(taught(velo, "app.py"), "patterns") >= 5


def test_a_table_that_others_may_write_is_not_used(tree: Tree, velo: Velo) -> None:
    """What lies there is executed: so nobody else may have written it."""
    tree.write({"parts.py": PARTS, "app.py": SHOW})
    velo.environment["PYTHONHASHSEED"] = "1"
    taught(velo, "app.py")
    table_of(velo).chmod(0o666)

    result = velo.run("app.py", env={"VELO_READONLY": "1"})

    assert (counted(result, "patterns"), result.reasons["remembered: owner"]) == (0, 1)


@pytest.mark.core
@pytest.mark.parametrize(
    ("switch", "patterns", "sources"), [("none", 0, 0), ("patterns", 5, 0), ("sources", 0, 9)]
)
def test_each_kind_has_a_switch(tree: Tree, velo: Velo, switch: str, patterns: int, sources: int) -> None:
    """VELO_REMEMBER, or `[run] remember` in a file, says which kinds are remembered."""
    tree.write({"parts.py": PARTS, "app.py": SHOW})
    velo.environment["PYTHONHASHSEED"] = "1"
    taught(velo, "app.py")

    told = [velo.run("app.py", env={"VELO_REMEMBER": switch})]
    tree.write({"velo.toml": f'[run]\nremember = "{switch}"\n'})
    told.append(velo.run("app.py"))

    for result in told:
        for kind, least in (("patterns", patterns), ("sources", sources)):
            assert counted(result, kind) >= least
            assert bool(counted(result, kind)) == bool(least)


def test_columns_are_left_out_where_python_leaves_them_out(tree: Tree, velo: Velo) -> None:
    """With -X no_debug_ranges compiled text has no columns, so what was remembered with them does not do."""
    tree.write({"parts.py": PARTS, "app.py": SHOW})
    velo.environment.update(PYTHONHASHSEED="1", PYTHONDONTWRITEBYTECODE="1")
    taught(velo, "app.py")

    assert counted(taught(velo, "-X", "no_debug_ranges", "app.py"), "sources") == 0
    velo.environment["PYTHONNODEBUGRANGES"] = "1"
    assert counted(taught(velo, "app.py"), "sources") == 0


def test_inputs_that_vary_are_not_learned_each_time(tree: Tree, velo: Velo) -> None:
    """A module that compiles another pattern at each start does not start a learner at each."""
    tree.write({"vary.py": "import os, re\nre.compile(f'process {os.getpid()}')", "app.py": "import vary"})
    for _ in range(7):
        velo.learn("app.py")
        time.sleep(1)

    (vain,) = (velo.home / "run").glob("*.vain")
    # The hook waits for 2 ** attempts seconds.
    assert max(attempts for *_, attempts in Struct("<8sII").iter_unpack(vain.read_bytes())) >= 2


def test_data_of_a_running_program_is_not_kept(tree: Tree, velo: Velo) -> None:
    """What is compiled once the program runs may be anybody's data; only module bodies are learned from."""
    part = (
        "import re\nFIRST = re.compile('of the module')\ndef find(word): return re.compile(re.escape(word))"
    )
    tree.write({"part.py": part, "app.py": "import part\nprint(part.find('password1'))"})

    taught(velo, "app.py")

    assert b"of the module" in table_of(velo).read_bytes()
    assert b"password1" not in table_of(velo).read_bytes()


def test_another_build_of_the_interpreter_learns_anew(tree: Tree, velo: Velo) -> None:
    """An interpreter that was replaced in its place gets none of what its predecessor made."""
    tree.write({"parts.py": PARTS, "app.py": SHOW})
    velo.environment["PYTHONHASHSEED"] = "1"
    taught(velo, "app.py")
    table = table_of(velo)
    from velo_import.format.remembered import Table, decode_table, encode_table

    known = decode_table(table.read_bytes())
    table.unlink()
    table.write_bytes(encode_table(Table(known.identity + b"+", known.values)))

    replaced = velo.learn("app.py")

    assert (counted(replaced, "patterns"), replaced.reasons["remembered: build"]) == (0, 1)
    assert counted(taught(velo, "app.py"), "patterns") >= 5
    assert decode_table(table.read_bytes()).values.keys() == known.values.keys()

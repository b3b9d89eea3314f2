# SPDX-License-Identifier: Apache-2.0
"""Functions out of images of an interpreter's memory, and nobody can tell."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from struct import Struct, pack_into, unpack_from

import pytest

from tests.support.interpreters import Interpreter
from tests.support.running import HAS_NATIVE, Result, Velo
from tests.support.tree import Tree
from velo_import.format.images import HEADER, decode_images, stamped_header

pytestmark = pytest.mark.skipif(not HAS_NATIVE, reason="only native code can use images")

# Every kind of body, constant and variable that a compiler makes code objects of.
RICH = '''
    """Of the module: ünïcödé."""
    from __future__ import annotations
    import functools

    CONSTANTS = 1.5, -0.0, 2j, 10**30, b"bytes", "te xt", "name", (1, ("x", None, ...)), frozenset({"a"})

    def plain(a, b=2, /, c=(3, "three"), *rest, d, e="é and more", **others):
        """Of the function."""
        global shared
        shared = a in {"one", "two", 3} or b in ("p", "q") or a == 1234567890123456789012345
        return [a, b, c, rest, d, e, sorted(others), b"\\x00\\xff", 0.1, "a b", shared]

    def outer(x):
        y = x + 1
        def inner(z, *, w=lambda q: q * y):
            nonlocal y
            y += z
            return w(y), [i * j for i in range(3) for j in (1, x)], {k: y for k in "ab"}
        return inner

    def numbers(n):
        got = 0
        while got is not None and n:
            n -= 1
            got = yield got or n
        return "done"

    async def waiting(x):
        async with x as y:
            async for z in y:
                yield z

    def failing(x):
        try:
            with open("/nowhere/at/all") as file:
                return file
        except OSError as error:
            try:
                return 1 / x
            finally:
                del error

    class Base:
        """Of the class."""
        kind = "base"
        def who(self):
            return __class__.__name__, self.kind
        def __init_subclass__(cls, **options):
            cls.options = options
        class Nested:
            def deep(self): return self.__class__.__qualname__
            class Deeper:
                def deepest(self): return __class__.__qualname__

    class Child(Base, option=1):
        kind = "child"
        def who(self):
            return super().who() + (type(self).__mro__[0].__name__,)
        @property
        def value(self): return self._value
        @value.setter
        def value(self, new): self._value = new
        @staticmethod
        @functools.lru_cache
        def cached(n): return n if n < 2 else Child.cached(n - 1) + Child.cached(n - 2)

    def matching(thing):
        match thing:
            case {"a": [1, *rest]}: return rest
            case Base(kind=k): return k
            case str() | bytes(): return "text"
            case _: return None

    TWICE = [lambda: "same", lambda: "same"]
    '''
SHOW = """
    import asyncio, copy, gc, inspect, pickle, sys, traceback, types, weakref
    import rich

    def facts(code):
        yield {name: getattr(code, name) for name in dir(code) if name.startswith("co_") and name not in
               ("co_consts", "co_lines", "co_positions", "co_branches", "co_lnotab")}
        yield list(code.co_lines()), list(code.co_positions()), hash(code) == hash(code.replace())
        for value in code.co_consts:
            yield list(facts(value)) if isinstance(value, types.CodeType) else (type(value), repr(value))

    seen = {}
    def look(thing, name):
        if isinstance(thing, types.FunctionType) and thing.__module__ == "rich":
            seen[name] = list(facts(thing.__code__))
            print(name, inspect.signature(thing), thing.__doc__, thing.__defaults__, thing.__kwdefaults__)
            print(inspect.getsource(thing))
        elif isinstance(thing, type) and thing.__module__ == "rich":
            for key, value in vars(thing).items():
                look(getattr(value, "fget", value), f"{name}.{key}")
    for name, thing in list(vars(rich).items()):
        look(inspect.unwrap(thing) if callable(thing) else thing, name)
    print(seen)
    print(rich.CONSTANTS, rich.__doc__, rich.plain("one", 1, 2, 3, 4, d=5, zz=1), rich.outer(3)(4))
    print(list(rich.numbers(5)), rich.Child().who(), rich.Child.options, rich.Child.cached(20))
    print(rich.Base.Nested().deep(), rich.Base.Nested.Deeper().deepest(), rich.matching({"a": [1, 2, 3]}))
    print(rich.matching(rich.Child()), rich.matching(b""), [f() for f in rich.TWICE])
    try:
        rich.failing(0)
    except ZeroDivisionError as error:
        caught = error
        print(*traceback.format_exception(error))
    print("name" is rich.CONSTANTS[6], rich.plain.__code__.co_names[0] is sys.intern("sorted"))
    print(copy.copy(rich.plain) is rich.plain, pickle.loads(pickle.dumps(rich.plain)) is rich.plain)
    kept = weakref.ref(rich.numbers.__code__)
    other = types.FunctionType(rich.numbers.__code__.replace(co_name="other"), {})
    del rich.numbers, sys.modules["rich"]
    gc.collect()
    import rich as again
    print(again is not rich, list(again.numbers(3)), list(other(3)), caught.__traceback__.tb_next.tb_lineno)
    """


def taught(velo: Velo, *arguments: str, **options: object) -> Result:
    """Plain, then accelerated until all is learned; every answer has to be the plain one."""
    velo.plain(*arguments, **options)  # type: ignore[arg-type] # What was just compiled lists sets otherwise.
    plain = velo.plain(*arguments, **options)  # type: ignore[arg-type]
    for _ in range(3):
        result = velo.learn(*arguments, **options)  # type: ignore[arg-type]
        assert result.answer == plain.answer
        assert result.errors == 0, result.stats
    return result


def imaged(result: Result) -> int:
    return sum(each["images"] for each in result.stats)


def table_of(velo: Velo) -> Path:
    (found,) = velo.home.glob("manifests/v1/*/images.table")
    return found


def rewrite(path: Path, change: Callable[[bytearray], object]) -> None:
    """Write the file anew with a change, signed and stamped as if it were ours."""
    data = bytearray(path.read_bytes())
    change(data)
    path.unlink()
    with path.open("wb") as file:
        status = os.fstat(file.fileno())
        file.write(stamped_header(data, status.st_mtime_ns, status.st_ino))
        file.write(data[file.tell() :])
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    path.chmod(0o444)


@pytest.mark.core
def test_code_looks_and_runs_as_ever(tree: Tree, velo: Velo) -> None:
    """All that can be seen of functions, and all that they do, is what unmarshalled code shows and does."""
    tree.write({"rich.py": RICH, "app.py": SHOW})
    velo.environment["PYTHONHASHSEED"] = "1"

    assert imaged(taught(velo, "app.py")) > 5


@pytest.mark.core
def test_hot_functions_are_told_apart(tree: Tree, velo: Velo) -> None:
    """Specialised calls know functions by a version, which images leave to be given out."""
    tree.write(
        {
            "many.py": "\n".join(f"def f{n}(a, b={n}): return a * {n} + b" for n in range(300)),
            "app.py": """
                import many
                functions = [getattr(many, f"f{n}") for n in range(300)]
                def call(function, x): return function(x)
                print([[call(function, x) for x in range(40)][-1] for function in functions])
                print([call(function, 1) for function in functions for _ in range(3)])
                for one, other in zip(functions, functions[1:]):
                    before = [call(one, 2) for _ in range(20)]
                    one.__code__ = other.__code__
                    one.__defaults__ = (7,)
                    print(before[-1], [call(one, 2) for _ in range(20)][-1])
                class A:
                    m = many.f5
                def method(a): return a.m()
                print([method(type("B", (), {"m": f, "__mul__": lambda s, n: n})()) for f in functions[:50]])
                """,
        }
    )

    assert imaged(taught(velo, "app.py")) > 0


@pytest.mark.core
def test_hot_calls_are_specialised(tree: Tree, velo: Velo) -> None:
    """Calls become as fast as ever: of functions and properties, and of what makes or subscribes an object.

    From 3.13 on a function without a version never gets one, and nothing that calls it is specialised.
    """
    tree.write(
        {
            "hot.py": """
                def short(x): return x
                def long(x, y=0): return x, y
                class Hot:
                    def __init__(self, x): self.x = x
                    def __getitem__(self, key): return key
                    @property
                    def value(self): return self.x
                    def again(self): return [self[n] for n in range(9)], self.value, long(self.x)
                """,
            "app.py": """
                import dis, sys, hot
                def work():
                    for n in range(99):
                        thing = hot.Hot(n)
                        hot.short(n), hot.long(n), thing[n], thing.value, thing.again()
                for _ in range(9):
                    work()
                for function in (work, hot.Hot.again):
                    print([each.opname for each in dis.get_instructions(function, adaptive=True)])
                if sys.version_info >= (3, 13):
                    import ctypes
                    functions = work, hot.short, hot.long, hot.Hot.__init__, hot.Hot.again
                    versions = [ctypes.string_at(id(each.__code__) + 92, 4) for each in functions]
                    print(len(set(versions)), bytes(4) in versions)
                """,
        }
    )

    assert imaged(taught(velo, "app.py")) > 0


@pytest.mark.core
def test_constants_that_become_interned(tree: Tree, velo: Velo) -> None:
    """Interned strings are freed when the interpreter is taken apart, however often they are referred to."""
    tree.write(
        {
            "texts.py": """
                def text(): return "te xt of a constant"
                def place(): return "<no file>"
                def key(): return "a key of a dict"
                """,
            "app.py": """
                import marshal, sys, texts
                code = compile("x = 1", texts.place(), "exec")
                print(marshal.loads(marshal.dumps(code)).co_filename is code.co_filename)
                text = sys.intern(texts.text())
                print(marshal.loads(marshal.dumps(text)) is text, sys.intern("".join(list(text))) is text)
                setattr(texts, texts.key(), 1)
                print(marshal.loads(marshal.dumps(list(vars(texts)))), getattr(texts, texts.key()))
                """,
        }
    )
    velo.environment["VELO_CALM"] = "0"

    assert imaged(taught(velo, "app.py")) > 0


@pytest.mark.core
def test_tracing_and_monitoring(tree: Tree, velo: Velo) -> None:
    """Functions are instrumented where they lie; tracers see the same lines, calls and events."""
    tree.write(
        {
            "rich.py": RICH,
            "app.py": """
                import sys, rich
                events = []
                def trace(frame, event, value):
                    if frame.f_globals.get("__name__") == "rich":
                        frame.f_trace_opcodes = True
                        events.append((frame.f_code.co_qualname, event, frame.f_lineno, frame.f_lasti))
                    return trace
                def work():
                    rich.plain(1, d=2), list(rich.numbers(3)), rich.Child().who(), rich.outer(1)(2)
                work()
                sys.settrace(trace)
                work()
                sys.settrace(None)
                sys.setprofile(lambda frame, event, value: events.append((event, frame.f_lineno)))
                work()
                sys.setprofile(None)
                monitoring = getattr(sys, "monitoring", None)
                if monitoring:
                    monitoring.use_tool_id(3, "test")
                    heard = lambda *what: events.append((what[0].co_name, what[1]))
                    for kind in (monitoring.events.LINE, monitoring.events.PY_START):
                        monitoring.register_callback(3, kind, heard)
                    monitoring.set_local_events(3, rich.plain.__code__, monitoring.events.LINE)
                    monitoring.set_events(3, monitoring.events.PY_START | monitoring.events.LINE)
                    work()
                    monitoring.set_events(3, 0)
                    monitoring.free_tool_id(3)
                work()
                print(events)
                """,
        }
    )

    assert imaged(taught(velo, "app.py")) > 0


@pytest.mark.core
def test_each_asks_for_code_of_his_own(tree: Tree, velo: Velo, interpreter: Interpreter) -> None:
    """Reloaded modules, `get_code`, forked children, threads and subinterpreters."""
    module = "_xxsubinterpreters" if interpreter.version < (3, 13) else "_interpreters"
    tree.write(
        {
            "rich.py": RICH,
            **{f"part{n}.py": f"def f(x): return x + {n}\n" for n in range(8)},
            "app.py": f"""
                import importlib, os, sys, threading
                import rich
                first = rich.plain
                codes = [rich.__loader__.get_code("rich") for _ in range(2)]
                print(codes[0] == codes[1], codes[0] is codes[1], codes[0].co_consts[1:2])
                importlib.reload(rich)
                print(first is not rich.plain, first.__code__ == rich.plain.__code__)
                print(first.__code__ is not rich.plain.__code__, rich.plain(1, d=2))
                sys.stdout.flush()
                child = os.fork()
                if not child:
                    import part0
                    print(part0.f(1))
                    sys.stdout.flush()
                    os._exit(0)
                os.waitpid(child, 0)
                import part0
                print(part0.f(2))
                def work(n):
                    print(end=str(__import__(f"part{{n % 4 + 1}}").f(n))[:0])
                threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
                [thread.start() for thread in threads], [thread.join() for thread in threads]
                sys.stdout.flush()
                import {module} as interpreters
                own = interpreters.create()
                interpreters.run_string(own, "import part6, part7; print(part6.f(1), part7.f(2), flush=True)")
                interpreters.destroy(own)
                import part6
                print(part6.f(5))
                """,
        }
    )

    assert imaged(taught(velo, "app.py")) > 0


@pytest.mark.core
def test_who_listens_hears_that_code_is_unmarshalled(tree: Tree, velo: Velo) -> None:
    """Auditors are told of every code object that is unmarshalled, so nothing else may happen."""
    tree.write(
        {
            "rich.py": RICH,
            "app.py": """
                import sys
                seen = []
                names = "marshal.loads", "open", "exec", "import", "code.__new__"
                sys.addaudithook(lambda event, values: seen.append(event) if event in names else None)
                import rich
                print(seen)
                """,
        }
    )

    result = taught(velo, "app.py")

    assert imaged(velo.run("-c", "import rich")) > imaged(result)
    assert imaged(result) == imaged(velo.run("-c", "pass"))


@pytest.mark.core
def test_columns_are_left_out_where_python_leaves_them_out(tree: Tree, velo: Velo) -> None:
    """With -X no_debug_ranges code has no columns, so images with them do not do."""
    app = "import rich\nfor f in rich.plain, rich.outer(1), rich.Child.who: print(*f.__code__.co_positions())"
    tree.write({"rich.py": RICH, "app.py": app})
    velo.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    assert imaged(taught(velo, "app.py")) > 0

    assert imaged(taught(velo, "-X", "no_debug_ranges", "app.py")) == 0


def test_what_is_known_without_images_gets_them(tree: Tree, velo: Velo) -> None:
    """Modules that another program, or `velo ingest`, made known are served at once, later from images."""
    other = {f"other{n}.py": f"def f(): return {n}" for n in range(4)}
    two = "import other0, other1, other2, other3"
    tree.write({"rich.py": RICH, "one.py": "import rich", "two.py": two, **other})
    velo.ingest()
    taught(velo, "one.py")
    before = imaged(velo.run("two.py", env={"VELO_READONLY": "1"}))

    result = taught(velo, "two.py")

    assert imaged(result) >= before + 4
    assert not any(each["wanted"] for each in result.stats)


def test_a_switch(tree: Tree, velo: Velo) -> None:
    """VELO_REMEMBER says what is kept of a start."""
    tree.write({"rich.py": RICH, "app.py": "import rich, re, json"})
    assert imaged(taught(velo, "app.py")) > 0

    assert imaged(velo.run("app.py", env={"VELO_REMEMBER": "images"})) > 0
    for other in ("none", "patterns", "sources"):
        assert imaged(velo.run("app.py", env={"VELO_REMEMBER": other})) == 0


@pytest.mark.core
def test_a_file_that_others_could_write_is_not_used(tree: Tree, velo: Velo) -> None:
    tree.write({"rich.py": RICH, "app.py": "import rich; print(rich.plain(1, d=2))"})
    plain = taught(velo, "app.py")
    table_of(velo).chmod(0o666)

    result = velo.run("app.py", env={"VELO_READONLY": "1"})

    assert result.answer == plain.answer
    assert (imaged(result), result.reasons["images: owner"]) == (0, 1)


@pytest.mark.core
def test_a_file_that_was_written_to_is_made_anew(tree: Tree, velo: Velo) -> None:
    """Its stamp says so, whatever was written; also a copy is another file."""
    tree.write({"rich.py": RICH, "app.py": "import rich; print(rich.plain(1, d=2))"})
    plain = taught(velo, "app.py")
    path = table_of(velo)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")

    result = velo.learn("app.py")

    assert result.answer == plain.answer
    assert (imaged(result), result.reasons["images: changed"]) == (0, 1)
    assert imaged(velo.run("app.py")) == imaged(plain)
    decode_images(table_of(velo).read_bytes())


@pytest.mark.core
def test_an_edited_module_is_run_as_it_is_now(tree: Tree, velo: Velo) -> None:
    tree.write({"part.py": "def f(): return 'old'\n", "app.py": "import part; print(part.f())"})
    taught(velo, "app.py")

    for text in ("newer", "new and longer"):
        tree.write({"part.py": f"def f(): return {text!r}\n"})
        assert taught(velo, "app.py").stdout == f"{text}\n"


@pytest.mark.core
def test_a_large_module_without_functions_gets_no_image(tree: Tree, velo: Velo) -> None:
    """It would gain nothing by one: it is unmarshalled, and not asked for again."""
    tree.write({"large.py": f"x = {'a' * 20_000!r}\n", "app.py": "import large"})
    result = taught(velo, "app.py")

    kept = decode_images(table_of(velo).read_bytes())
    assert None in kept.images.values()
    assert not any(each["wanted"] for each in result.stats)


def test_a_start_of_images_opens_no_pack(tree: Tree, velo: Velo, tmp_path: Path) -> None:
    """Neither for modules with functions nor for small ones without; for a large one its pack is opened."""
    program = """
        import sys, functions, small
        if "large" in sys.argv:
            import large
        with open("/proc/self/maps") as maps, open(sys.argv[1], "w") as file:
            print(sum(line.endswith(".pack\\n") for line in maps), file=file)
        """
    large = f"x = {'a' * 20_000!r}\n"
    tree.write(
        {"functions.py": "def f(): pass\n", "small.py": "x = 1\n", "large.py": large, "app.py": program}
    )
    answer = tmp_path / "answer"

    for wanted, packs in (("large", "1"), ("", "0")):
        taught(velo, "app.py", str(answer), wanted)
        assert answer.read_text().strip() == packs


def test_no_number_in_the_file_is_believed(tree: Tree, velo: Velo) -> None:
    """Counts, offsets and indexes that lead anywhere but into the image: its module is unmarshalled."""
    tree.write({"rich.py": RICH, "app.py": "import rich; print(rich.plain(1, d=2), rich.Child().who())"})
    velo.environment["VELO_REMEMBER"] = "images"
    expected = taught(velo, "app.py")
    path = table_of(velo)
    good = path.read_bytes()
    slots_at, count, _, begin = HEADER.unpack_from(good)[6:10]
    chance = random.Random(1)
    slots = [slots_at + 8 * n for n in range(count) if unpack_from("<Q", good, slots_at + 8 * n)[0]]
    word = Struct("<Q")

    def change(data: bytearray, slot: int) -> None:
        at = 8 * unpack_from("<I", data, slot + 4)[0]
        sizes = unpack_from("<9I", data, at)
        spots = [at + 4 * chance.randrange(10)]
        if sizes[0]:
            arrays = sizes[1] + sizes[2] + 2 * sizes[4] + 3 * sizes[5] + 2 * sizes[3]
            spots.append(at + 72 + 4 * chance.randrange(arrays))
        # Other numbers within the image would be other pointers, as other bytes of bytecode are other code.
        pack_into("<I", data, chance.choice(spots), 2**32 - chance.choice((1, 8, 16, 2**20, 2**31)))

    for number in range(60):
        target = chance.choice(slots)
        kind = number % 6

        def damage(data: bytearray, target: int = target, kind: int = kind) -> None:
            data[:] = good
            if kind == 0:  # where the chunk begins
                pack_into("<I", data, target + 4, chance.choice((1, 17, begin // 8, 2**31, 2**32 - 1)))
            elif kind == 1:  # of the header
                word.pack_into(
                    data, chance.choice((40, 48, 56, 64)), chance.choice((0, 3, 2**20, 2**63, 2**64 - 1))
                )
            else:
                change(data, target)

        try:
            rewrite(path, damage)
        except Exception:  # The header leads nowhere, so that even the test cannot sign it.
            continue
        result = velo.run("app.py", env={"VELO_READONLY": "1"})
        assert (result.answer, number) == (expected.answer, number)

# SPDX-License-Identifier: Apache-2.0
"""Accelerate, do not relocate: whatever a program can ask about its modules has the answer it had without
Velo.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.support.interpreters import Interpreter
from tests.support.running import CHECKOUT, Velo
from tests.support.tree import Tree

NATIVE = CHECKOUT / "velo_import" / "_native" / "core.abi3.so"
PACKAGE = {
    "box/__init__.py": '"""A box."""\nfrom box import part\nfrom .part import Thing\n__version__ = "1"\n',
    "box/part.py": """
        import sys

        class Thing:
            def method(self):
                return sys._getframe().f_code.co_filename

        def plain(a, b=1, *, c: int = 2) -> int:
            # A comment that getsource must show.
            return a + b + c

        def fails(number):
            return 1 / number
        """,
    "box/data.txt": "some data\n",
    "box/sub/__init__.py": "",
    "box/sub/leaf.py": "VALUE = 1\n",
    "box/sub/more.txt": "more data\n",
    "single.py": "VALUE = 'single'\n",
}


def addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "0x", text)


@pytest.mark.core
def test_what_a_module_knows_of_itself(tree: Tree, velo: Velo) -> None:
    """`__file__`, `__cached__`, `__spec__`, `__path__`, `__loader__`: values and types."""
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import importlib.machinery, json, sys
                import box, box.part, box.sub.leaf, single
                for module in (box, box.part, box.sub, box.sub.leaf, single, json, json.decoder):
                    spec, loader = module.__spec__, module.__loader__
                    print(module.__name__, module.__package__, module.__file__, str(module.__doc__)[:9])
                    print(getattr(module, "__cached__", None), getattr(module, "__path__", None))
                    print(spec.name, spec.origin, spec.cached, spec.parent, spec.has_location)
                    print(spec.submodule_search_locations, spec.loader_state, spec.loader is loader)
                    print(spec._initializing, spec._set_fileattr)
                    print(isinstance(loader, importlib.machinery.SourceFileLoader), loader.name, loader.path)
                    print(loader.get_filename(), loader.is_package(module.__name__))
                    print(loader.get_source(module.__name__)[:30])
                    print(loader.get_data(module.__file__)[:30], loader.get_code(module.__name__).co_filename)
                    print(sorted(vars(module)), list(vars(module)) == list(vars(module)))
                    print(repr(module))
                """
        }
    )

    velo.both("app.py", served=6)


@pytest.mark.core
def test_state_of_the_interpreter(tree: Tree, velo: Velo) -> None:
    """`sys.path`, `sys.modules` and the rest are equal; of `sys.meta_path` only one finder more, before
    PathFinder.
    """
    tree.write(
        {
            "app.py": """
                import sys
                modules = list(sys.modules)
                import json, os
                print(json.dumps({
                    "path": sys.path, "modules": modules, "hooks": len(sys.path_hooks),
                    "importers": sorted(map(str, sys.path_importer_cache)),
                    "finders": [getattr(each, "__name__", type(each).__name__) for each in sys.meta_path],
                    "names": sorted(vars(sys)), "builtins": sorted(vars(__builtins__)),
                }))
                """
        }
    )
    plain = velo.plain("app.py").json
    for _ in range(3):
        accelerated = velo.learn("app.py").json

        extra = [each for each in accelerated["finders"] if each not in plain["finders"]]
        at = accelerated["finders"].index("PathFinder")
        assert [each for each in accelerated["finders"] if each not in extra] == plain["finders"]
        assert accelerated["path"] == plain["path"]
        assert accelerated["modules"] == plain["modules"]
        assert accelerated["hooks"] == plain["hooks"]
        assert accelerated["names"] == plain["names"] and accelerated["builtins"] == plain["builtins"]
        # Fewer folders are listed, that is the point; none may be listed that plain Python does not ask.
        assert set(accelerated["importers"]) <= set(plain["importers"])
    assert len(extra) == 1 and accelerated["finders"][at - 1] == extra[0]


def test_nothing_of_velo_is_importable(tree: Tree, velo: Velo) -> None:
    """Neither Velo nor anything it depends on can be imported by the program, before or after learning."""
    names = [
        "velo_import",
        "velo_import.hook",
        "velo_import.hook.finder",
        "blake3",
        "lmdb",
        "cbor2",
        "click",
        "rich",
    ]
    tree.write(
        {
            "app.py": f"""
                import importlib, importlib.util, sys, helper
                for name in {names}:
                    try:
                        print(importlib.import_module(name))
                    except ImportError as error:
                        print(error)
                    print(name.partition(".")[0], importlib.util.find_spec(name.partition(".")[0]))
                print([name for name in sys.modules if "velo" in name.lower()])
                """,
            "helper.py": "",
        }
    )

    runs = velo.both("app.py")

    assert str(CHECKOUT) not in runs.second.stdout


@pytest.mark.core
def test_traceback_of_a_served_function(tree: Tree, velo: Velo) -> None:
    """An error in a served module: same frames, same lines, same carets."""
    tree.write(PACKAGE | {"app.py": "import box.part\n\nbox.part.fails(0)\n"})

    runs = velo.both("app.py", served=2)

    assert "return 1 / number" in runs.second.stderr


@pytest.mark.core
def test_traceback_of_a_failing_import(tree: Tree, velo: Velo) -> None:
    """A module that raises while it is imported: no frame of Velo's, no frame of importlib's."""
    tree.write(
        {
            "app.py": "import outer\n",
            "outer.py": "import inner\n",
            "inner.py": "def work():\n    return {}['missing']\n\nwork()\n",
        }
    )

    velo.learn("app.py")  # Modules that fail are not in sys.modules at the end: the second run notes them.

    runs = velo.both("app.py", served=2)

    assert (
        "velo" not in runs.second.stderr.replace(str(velo.folder), "")
        and "importlib" not in runs.second.stderr
    )


@pytest.mark.parametrize(
    "statement",
    [
        "import missing",
        "import box.missing",
        "from box import missing",
        "import single.missing",
        "from single import missing",
        "from . import x",
        "import broken",
        "import broken_by_null",
        "import broken_by_encoding",
        "import circle",
        "import exits",
        "__import__('')",
        "import importlib; importlib.import_module('.x')",
        "import importlib; importlib.import_module('..x', 'box.sub')",
    ],
)
def test_failing_import(tree: Tree, velo: Velo, statement: str) -> None:
    """Every way an import can fail gives the same message, traceback and exit code."""
    tree.write(
        PACKAGE
        | {
            "broken.py": "def f(:\n    pass\n",
            "broken_by_null.py": b"a = 1\n\0\n",
            "broken_by_encoding.py": b"# coding: no-such-codec\n",
            "circle.py": "from circle_b import b\na = 1\n",
            "circle_b.py": "from circle import a\nb = 1\n",
            "exits.py": "raise SystemExit('leaving')\n",
            "app.py": f"import single, box\n{statement}\n",
        }
    )

    velo.both("app.py", served=3)


def test_failed_import_is_tried_again(tree: Tree, velo: Velo) -> None:
    """A module that fails the first time leaves `sys.modules` as plain Python does and may succeed later."""
    tree.write(
        {
            "app.py": """
                import sys
                for _ in range(3):
                    try:
                        import moody
                        print("fine", moody.box_part)
                    except RuntimeError as error:
                        print(error, "moody" in sys.modules, "moody_part" in sys.modules)
                """,
            "moody.py": """
                import sys, moody_part
                sys.tries = getattr(sys, "tries", 0) + 1
                if sys.tries < 3:
                    raise RuntimeError(f"try {sys.tries}")
                box_part = moody_part.VALUE
                """,
            "moody_part.py": "VALUE = 1\n",
        }
    )

    velo.both("app.py", served=4)


@pytest.mark.core
def test_source_of_served_modules(tree: Tree, velo: Velo) -> None:
    """`inspect` finds source, file, signature and comments; `linecache` and `traceback` the lines."""
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import inspect, linecache, box, box.part
                print(inspect.getsource(box.part.plain), inspect.getsourcefile(box.part.Thing))
                print(inspect.getfile(box), inspect.getmodule(box.part.plain))
                print(inspect.signature(box.part.plain))
                print(inspect.getsourcelines(box.part.Thing.method), inspect.getcomments(box.part.fails))
                print(inspect.getmodulename(box.part.__file__), inspect.getdoc(box), inspect.getsource(box))
                print(linecache.getline(box.part.__file__, 3), box.part.Thing().method())
                code = box.part.plain.__code__
                print(code.co_filename, code.co_firstlineno, code.co_qualname, list(code.co_positions())[:4])
                """
        }
    )

    velo.both("app.py", served=2)


@pytest.mark.core
def test_specs_as_they_are_kept(tree: Tree, velo: Velo) -> None:
    """`vars(spec)`, in its order: what is filled in is filled in, and what is worked out later is not yet."""
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import box.part, box.sub, single, json.tool
                for module in (box, box.part, box.sub, single, json, json.tool):
                    kept = dict(vars(module.__spec__))
                    print(module.__name__, kept.pop("loader") is module.__loader__, kept)
                """
        }
    )

    velo.both("app.py", served=4)


@pytest.mark.core
def test_package_tools(tree: Tree, velo: Velo) -> None:
    """`pkgutil`, `importlib.resources`, `importlib.util`, `importlib.metadata` and `runpy` on served
    packages.
    """
    tree.write(
        PACKAGE
        | {
            "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
            "thing-1.0.dist-info/RECORD": "box/__init__.py,,\nsingle.py,,\n",
            "thing-1.0.dist-info/entry_points.txt": "[group]\nname = box.part:plain\n",
            "app.py": """
                import importlib, importlib.metadata, importlib.resources, importlib.util, pkgutil, runpy, sys
                import box, box.sub
                for found in pkgutil.walk_packages(box.__path__, "box."):
                    print(found.name, found.ispkg, found.module_finder)
                print([m.name for m in pkgutil.iter_modules([sys.path[0]])])
                print(pkgutil.get_data("box", "data.txt"), pkgutil.resolve_name("box.part:plain").__name__)
                print(pkgutil.find_loader("box.part").path if hasattr(pkgutil, "find_loader") else "")
                files = importlib.resources.files("box")
                print(files, sorted(each.name for each in files.iterdir() if each.name != "__pycache__"))
                print(files.joinpath("data.txt").read_text(), importlib.resources.files(box.sub) / "more.txt")
                with importlib.resources.as_file(files / "data.txt") as path:
                    print(path)
                for name in "box box.part box.sub.leaf single missing json _json sys zlib".split():
                    spec = importlib.util.find_spec(name)
                    print(name, spec and (spec.origin, spec.cached, spec.submodule_search_locations))
                print(importlib.metadata.version("thing"), importlib.metadata.files("thing"))
                print([e.load().__name__ for e in importlib.metadata.entry_points(group="group")])
                print(runpy.run_module("box.sub.leaf")["VALUE"], runpy.run_path("single.py")["VALUE"])
                print(sorted(runpy.run_module("box.part", run_name="other").keys()))
                """,
        }
    )
    if velo.plain("-W", "error", "-c", "import pkgutil; pkgutil.find_loader('json')").code:
        tree.write(
            {
                "app.py": "\n".join(
                    x for x in (tree / "app.py").read_text().split("\n") if "find_loader" not in x
                )
            }
        )

    velo.both("-W", "ignore", "app.py", served=5, same=addresses)


@pytest.mark.core
def test_reload(tree: Tree, velo: Velo) -> None:
    """`importlib.reload` gives the text of the moment, after an edit and without one."""
    tree.write(
        {
            "app.py": """
                import importlib, os, sys, part
                first = part
                print(part.VALUE, importlib.reload(part) is first, part.VALUE)
                with open("part.py", "w") as file:
                    file.write("VALUE = 'edited and longer'\\nMORE = 1\\n")
                importlib.reload(part)
                print(part.VALUE, part.MORE, part.__spec__.origin, type(part.__loader__.get_source("part")))
                with open("part.py", "w") as file:
                    file.write("VALUE = 'original'\\n")
                """,
            "part.py": "VALUE = 'original'\n",
        }
    )

    velo.both("app.py", env={"PYTHONDONTWRITEBYTECODE": "1"})


def test_pickles(tree: Tree, velo: Velo) -> None:
    """Functions, classes and instances of served modules pickle to the same bytes and come back; loaders
    pickle too.
    """
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import copy, pickle, box.part
                for thing in (box.part.plain, box.part.Thing, box.part.Thing()):
                    data = pickle.dumps(thing)
                    print(data, type(pickle.loads(data)))
                loader = pickle.loads(pickle.dumps(box.part.__loader__))
                print(type(loader), vars(loader), copy.copy(box.part.__loader__).path)
                print(loader == box.part.__loader__, hash(loader) == hash(box.part.__loader__))
                """
        }
    )

    velo.both("app.py", served=2)


def test_loader_by_hand(tree: Tree, velo: Velo) -> None:
    """Programs that load modules by hand, from specs, from copies of specs, lazily, under another name."""
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import importlib.util, importlib.machinery, sys
                spec = importlib.util.find_spec("single")
                one, two = importlib.util.module_from_spec(spec), importlib.util.module_from_spec(spec)
                spec.loader.exec_module(one); spec.loader.exec_module(two)
                print(one.VALUE, two.VALUE, one is two, "single" in sys.modules)
                other = importlib.util.spec_from_file_location("renamed", spec.origin)
                module = importlib.util.module_from_spec(other); other.loader.exec_module(module)
                print(module.__name__, module.VALUE)
                try:
                    spec.loader.load_module("single")
                    print(sys.modules["single"].VALUE)
                    spec.loader.load_module("wrong")
                except (ImportError, AttributeError) as error:
                    print(type(error))
                try:
                    print(spec.loader.get_code("wrong"))
                except ImportError as error:
                    print(error)
                lazy = importlib.util.find_spec("box.sub.leaf")
                lazy.loader = importlib.util.LazyLoader(lazy.loader)
                module = importlib.util.module_from_spec(lazy); lazy.loader.exec_module(module)
                print(module.VALUE)
                print(spec.loader.path_stats(spec.origin)["size"])
                """
        }
    )

    velo.both("-W", "ignore", "app.py", served=5)


def test_order_of_imports(tree: Tree, velo: Velo) -> None:
    """A big piece of the standard library: the same modules, in the same order, with the same attributes."""
    names = [
        "argparse",
        "asyncio",
        "concurrent.futures",
        "csv",
        "dataclasses",
        "decimal",
        "email.message",
        "html",
    ]
    names += [
        "http.client",
        "logging.config",
        "sqlite3",
        "tempfile",
        "unittest.mock",
        "xml.etree.ElementTree",
        "zipfile",
    ]
    tree.write(
        {
            "app.py": f"""
                import importlib, sys
                for name in {names}:
                    importlib.import_module(name)
                print(list(sys.modules))
                for name, module in list(sys.modules.items()):
                    print(name, getattr(module, "__file__", None), name == "__main__" or list(vars(module)))
                """
        }
    )

    runs = velo.both("app.py", served=100)

    assert runs.second.reasons.get("folder not known", 0) == 0


def test_shared_constants_stay_shared(tree: Tree, velo: Velo) -> None:
    """Identity of constants and interned names holds across modules as after an ordinary load."""
    tree.write(
        {
            "app.py": """
                import one, two
                print(one.NAME is two.NAME, one.KEY is two.KEY)
                print(one.f.__code__.co_names[0] is two.f.__code__.co_names[0])
                print(one.EMPTY is two.EMPTY, one.NUMBER is two.NUMBER)
                print(one.f.__defaults__ == two.f.__defaults__)
                """,
            **{
                f"{name}.py": "NAME = 'identifier_like'\nKEY = 'x'\nEMPTY = ()\nNUMBER = 5\n"
                "def f(a=frozenset((1, 2))):\n    return attribute\n"
                for name in ("one", "two")
            },
        }
    )

    velo.both("app.py", served=2)


def test_unusual_sources(tree: Tree, velo: Velo) -> None:
    """Encodings, line ends, a byte order mark, an empty file, a very long one, deep nesting."""
    nested = "VALUE = " + "(" * 80 + "1" + ")" * 80 + "\n"
    tree.write(
        {
            "app.py": """
                import latin, bom, crlf, empty, long, nested, future, star
                print(ascii(latin.VALUE), bom.VALUE, repr(crlf.VALUE), nested.VALUE)
                print(len(vars(empty)), len(vars(long)))
                print(future.f.__annotations__, star.__all__, star.hidden())
                """,
            "latin.py": "# coding: latin-1\nVALUE = 'caf\xe9'\n".encode("latin-1"),
            "bom.py": b"\xef\xbb\xbfVALUE = 'bom'\n",
            "crlf.py": b"VALUE = '''a\r\nb'''\r\n",
            "empty.py": b"",
            "long.py": "".join(f"name_{number} = {number}\n" for number in range(20_000)),
            "nested.py": nested,
            "future.py": "from __future__ import annotations\ndef f(x: undefined) -> 'y': pass\n",
            "star.py": "__all__ = ['hidden']\ndef hidden(): return __all__\n",
        }
    )

    velo.both("app.py", served=8)


def test_main_is_importable_again(tree: Tree, velo: Velo) -> None:
    """A script that imports itself under its own name, and a package's `__init__` and `__main__` by name."""
    tree.write(
        PACKAGE
        | {
            "app.py": "print(__name__)\nimport app, box.__init__\nprint(box.__init__ is box, app.__file__)\n",
        }
    )

    velo.both("app.py", served=3)


def test_audit_events(tree: Tree, velo: Velo) -> None:
    """An audit hook is told of the same imports, compilations apart, and of the files that are opened for
    them.
    """
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import sys
                events = []
                sys.addaudithook(lambda name, args: events.append((name, args)))
                import box.sub.leaf, single
                print([args[0] for name, args in events if name == "import"])
                print([args[0] for name, args in events if name == "open" and "pycache" in str(args[0])])
                """
        }
    )
    velo.plain("app.py")

    velo.both("app.py", served=5)


@pytest.mark.skipif(not NATIVE.exists(), reason="packs are opened in Python then, and auditors are told")
def test_audit_events_say_how_files_are_opened(tree: Tree, velo: Velo) -> None:
    """Path, mode and flags of every file that is opened for an import."""
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import sys
                events = []
                sys.addaudithook(lambda name, args: events.append(args) if name == "open" else None)
                import box.sub.leaf, single
                print(events)
                """
        }
    )
    velo.plain("app.py")

    velo.both("app.py", served=5)


def test_replaced_functions_of_builtins_do_not_see_velo(tree: Tree, velo: Velo) -> None:
    """A program that watches `__import__` and `open` to its end, exit functions included, sees its own use.

    Not shown: `_io`, which CPython asks for with each cached file that it opens, and Velo opens none.
    """
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import builtins
                def watched(name, function):
                    def watch(what, *more, **named):
                        if what != "_io":
                            print(name, what if type(what) is str else type(what))
                        return function(what, *more, **named)
                    setattr(builtins, name, watch)
                for name in ("__import__", "open", "compile", "exec"):
                    watched(name, getattr(builtins, name))
                import box.sub.leaf, single
                try:
                    import nowhere
                except ImportError as error:
                    print(error)
                """
        }
    )
    velo.plain("app.py")  # Leaves the cached files that spare Python the compiler.

    velo.both("app.py", served=5)


def test_coverage_like_tracing(tree: Tree, velo: Velo) -> None:
    """A tracer set before the import sees the same calls and lines of a module's body."""
    tree.write(
        PACKAGE
        | {
            "app.py": """
                import sys
                seen = []
                def trace(frame, event, argument):
                    if frame.f_globals.get("__name__") in ("box", "box.part", "box.sub", "box.sub.leaf"):
                        seen.append((frame.f_code.co_name, event, frame.f_lineno))
                    return trace
                sys.settrace(trace)
                import box.sub.leaf
                sys.settrace(None)
                print(seen)
                """
        }
    )

    velo.both("app.py", served=4)


def test_many_small_programs(tree: Tree, velo: Velo, interpreter: Interpreter) -> None:
    """Standard library programs that print the same either way: json.tool, tokenize, dis, unittest,
    py_compile.
    """
    tree.write({"data.json": '{"a": [1, 2]}', "part.py": "VALUE = 1\n", "test_x.py": "import part\n"})
    for arguments in (
        ["-m", "json.tool", "data.json"],
        ["-m", "tokenize", "part.py"],
        ["-m", "dis", "part.py"],
    ):
        velo.both(*arguments)
    velo.both("-m", "unittest", "-q", "test_x", same=lambda text: re.sub(r"\d\.\d+s", "", text))
    velo.both("-m", "zipfile", "-l", "nothing.zip")
    velo.both("-m", "py_compile", "part.py")
    velo.both("-m", "site", same=lambda text: text, served=0)
    assert json.loads(velo.run("-m", "json.tool", "data.json").stdout) == {"a": [1, 2]}

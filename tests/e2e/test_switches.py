# SPDX-License-Identifier: Apache-2.0
"""Python's own switches and variables mean under Velo what they always mean."""

from __future__ import annotations

import re

import pytest

from tests.support.interpreters import Interpreter
from tests.support.running import Result, Velo
from tests.support.tree import Tree

APP = {
    "app.py": """
        import sys, part, box.deep
        print(part.checked(), part.checked.__doc__, __debug__, sys.path)
        """,
    "part.py": '''
        def checked():
            """A docstring."""
            try:
                assert False, "asserts are on"
            except AssertionError as error:
                return str(error)
            return "asserts are off"
        ''',
    "box/__init__.py": "",
    "box/deep.py": "",
}


@pytest.mark.core
@pytest.mark.parametrize("switch", ["-O", "-OO"])
def test_optimisation(tree: Tree, velo: Velo, switch: str) -> None:
    """-O drops asserts, -OO docstrings too; what was learned without a switch is not served with it."""
    tree.write(APP)
    velo.both("app.py", served=3)

    runs = velo.both(switch, "app.py", served=3)

    assert "asserts are off" in runs.second.stdout
    assert ("docstring" in runs.second.stdout) == (switch == "-O")
    assert "asserts are on" in velo.run("app.py").stdout


@pytest.mark.parametrize("level", ["1", "2"])
def test_optimisation_by_variable(tree: Tree, velo: Velo, level: str) -> None:
    """PYTHONOPTIMIZE does what -O does."""
    tree.write(APP)

    velo.both("app.py", served=3, env={"PYTHONOPTIMIZE": level})


SERVED = [
    ["-B"],
    ["-u"],
    ["-q"],
    ["-s"],
    ["-b"],
    ["-bb"],
    ["-W", "error"],
    ["-X", "dev"],
    ["-X", "utf8"],
    ["-X", "faulthandler"],
    ["-X", "no_debug_ranges"],
    ["-X", "pycache_prefix=PREFIX"],
]


@pytest.mark.parametrize("switches", SERVED, ids=lambda switches: "".join(switches))
def test_switch_that_does_not_matter(tree: Tree, velo: Velo, switches: list[str]) -> None:
    """Switches that concern other things change neither the answer nor the acceleration."""
    tree.write(APP)
    switches = [each.replace("PREFIX", str(velo.folder / "prefix")) for each in switches]

    velo.both(*switches, "app.py", served=0 if "no_debug_ranges" in switches else 3)


def test_no_debug_ranges(tree: Tree, velo: Velo) -> None:
    """-X no_debug_ranges leaves the carets out of tracebacks, also of modules that were learned with them."""
    tree.write(
        {"app.py": "import part; part.fail()", "part.py": "def fail():\n    return (1 + 2) / (3 - 3)\n"}
    )
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    velo.both("app.py", env=env)
    velo.both("-X", "no_debug_ranges", "app.py", served=0, env=env)
    velo.both("app.py", env=env)


@pytest.mark.parametrize("switch", ["-I", "-E", "-S"])
def test_switch_that_turns_velo_off(tree: Tree, velo: Velo, switch: str) -> None:
    """-I and -E ignore PYTHONPATH, -S skips sitecustomize: the program runs plainly, and nothing is said."""
    tree.write(APP | {"app.py": "import sys; print(sys.path, sorted(sys.modules))"})

    plain = velo.plain(switch, "app.py")
    for _ in range(2):
        result = velo.learn(switch, "app.py")
        if switch == "-S":  # Here PYTHONPATH still counts, and it is what brings us in.
            assert (result.code, result.stderr) == (0, "")
        else:
            assert result.answer == plain.answer
        assert result.served == 0


@pytest.mark.core
def test_safe_path(tree: Tree, velo: Velo) -> None:
    """-P and PYTHONSAFEPATH keep the script's folder off the path; PYTHONPATH still counts."""
    tree.write(APP | {"lib/other.py": "", "app.py": "import sys, other; print(sys.path)\nimport part"})
    env = {"PYTHONPATH": str(tree / "lib")}

    runs = velo.both("-P", "app.py", env=env)
    again = velo.both("app.py", env=env | {"PYTHONSAFEPATH": "1"})
    velo.both("-P", "-c", "import sys; print(sys.path)", served=0)

    assert "ModuleNotFoundError" in runs.plain.stderr and runs.plain.answer == again.plain.answer


def test_pythonpath_of_all_shapes(tree: Tree, velo: Velo) -> None:
    """Empty entries, relative entries, duplicates and missing folders stay on the path as Python has them."""
    tree.write(APP | {"lib/other.py": ""})
    for value in ("lib", "lib:", ":lib", "::", "lib:lib", "/no/such/folder:lib", "./lib/.:lib/../lib"):
        velo.both("app.py", env={"PYTHONPATH": value}, served=3)


@pytest.mark.core
def test_bytecode_prefix(tree: Tree, velo: Velo) -> None:
    """PYTHONPYCACHEPREFIX moves bytecode files away; `__cached__` says where they would be."""
    prefix = velo.folder / "bytecode"
    tree.write(APP | {"app.py": "import part, sys; print(part.__spec__.cached, sys.pycache_prefix)"})
    before = tree.listing()

    runs = velo.both("app.py", env={"PYTHONPYCACHEPREFIX": str(prefix)})

    assert before == tree.listing()
    assert str(prefix) in runs.second.stdout


def test_no_bytecode_files(tree: Tree, velo: Velo) -> None:
    """With -B nobody writes a bytecode file: not Python, not Velo, not the learner."""
    tree.write(APP)
    before = tree.listing()

    velo.both("-B", "app.py", served=3)

    assert before == tree.listing()


def imported(result: Result) -> list[str]:
    """The names in the output of -X importtime, from the first after `site` on."""
    names = re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", result.stderr, re.M)
    assert "site" in names
    return names[names.index("site") + 1 :]


@pytest.mark.core
def test_import_times(tree: Tree, velo: Velo) -> None:
    """-X importtime lists the program's imports: the same names in the same order."""
    tree.write(APP | {"app.py": "import json, part, box.deep; print('ran')"})
    plain = velo.plain("-X", "importtime", "app.py")
    velo.learn("-X", "importtime", "app.py")

    result = velo.learn("-X", "importtime", "app.py")

    assert imported(result) == imported(plain)
    assert (result.stdout, result.code) == (plain.stdout, 0)
    assert result.served >= 3


def test_verbose(tree: Tree, velo: Velo) -> None:
    """-v tells of the same imports by the same loaders, and the program's own output is untouched."""
    tree.write(APP)

    def trail(result: Result) -> list[str]:
        lines = re.findall(r"^import '?(\S+?)'? # <(\S+) object", result.stderr, re.M)
        return [f"{name} {loader}" for name, loader in lines if name not in ("mmap", "sitecustomize")]

    plain = velo.plain("-v", "app.py")
    for _ in range(2):
        result = velo.learn("-v", "app.py")
        assert (result.stdout, result.code) == (plain.stdout, 0)
        assert trail(result) == trail(plain)


def test_hash_seed_does_not_matter(tree: Tree, velo: Velo) -> None:
    """Programs with different hash seeds share what was learned."""
    tree.write(APP)
    velo.learn("app.py", env={"PYTHONHASHSEED": "1"})

    assert velo.run("app.py", env={"PYTHONHASHSEED": "2"}).served >= 3


def test_warnings_in_modules(tree: Tree, velo: Velo) -> None:
    """Warnings raised by a module are raised each time, at the same place."""
    tree.write({"app.py": "import part\n", "part.py": "import warnings\n\nwarnings.warn('careful')\n"})
    velo.both("app.py")
    velo.both("-W", "error", "app.py", served=0)


def test_warnings_of_the_compiler(tree: Tree, velo: Velo) -> None:
    """A module whose compilation warns: a first plain run warns, later ones with a bytecode file do not."""
    tree.write({"app.py": "import part\nprint(part.VALUE)\n", "part.py": "VALUE = 1 is 1\n"})

    first = velo.learn("app.py")
    second = velo.learn("app.py")

    tree.forget_bytecode()
    cold, warm = velo.plain("app.py"), velo.plain("app.py")
    assert (first.answer, second.answer) == (cold.answer, warm.answer)
    assert "SyntaxWarning" in cold.stderr


@pytest.mark.core
def test_warnings_of_the_compiler_where_no_bytecode_is_kept(tree: Tree, velo: Velo) -> None:
    """Where Python may not write bytecode files it compiles, and warns, at each start; so it does with us."""
    tree.write(
        {
            "app.py": "import part, other\nprint(part.VALUE, other.VALUE)\n",
            "part.py": "VALUE = '\\d'\nassert (1, 'always')\n",
            "other.py": "VALUE = 2\n",
        }
    )
    without = {"PYTHONDONTWRITEBYTECODE": "1"}

    answers = velo.both("-W", "always", "app.py", env=without)

    assert answers.plain.stderr.count("Warning") == 2
    velo.both("-W", "error", "app.py", env=without, served=0)


def test_interpreter_state_is_untouched(tree: Tree, velo: Velo, interpreter: Interpreter) -> None:
    """Recursion limit, garbage collector, hooks, signal handlers and flags are as in a plain start.

    But for one number: C3.12 begins with some hundred frozen objects of its own, and they are let go with
    the first served module (docs/sameness.md).
    """
    tree.write(
        {
            "app.py": """
                import gc, signal, sys, threading
                print(sys.flags, sys.getrecursionlimit())
                print(gc.get_threshold(), gc.isenabled())
                print(sys.version_info[:2] == (3, 12) or gc.get_freeze_count())
                print(sys.excepthook, sys.unraisablehook, sys.displayhook, sys.gettrace(), sys.getprofile())
                print(threading.active_count(), [signal.getsignal(number) for number in (1, 2, 13, 15, 17)])
                print(sys.dont_write_bytecode, sys.argv, sys.orig_argv, sys.executable, sys.prefix)
                print(sys.warnoptions, sys._xoptions, sys.pycache_prefix, sys.getswitchinterval())
                """
        }
    )

    velo.both("app.py", served=0, same=lambda text: re.sub(r"0x[0-9a-f]+", "0x", text))

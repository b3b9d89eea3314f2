# SPDX-License-Identifier: Apache-2.0
"""Velo beside other tools that change how modules are found, loaded, traced or run: what they print is what
they print without Velo.

Runs on the interpreter that runs the tests, because the tools are copied from its environment; a tool that is
not there is skipped. Children, threads, subinterpreters and sitecustomize have files of their own.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.interpreters import ask
from tests.support.running import Velo
from tests.support.tree import Tree, make_environment

LONG = 300  # seconds for seven runs of pip on a busy machine


@pytest.fixture
def velo(tmp_path: Path) -> Velo:
    """A fresh virtual environment of this interpreter, and a project."""
    base = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    interpreter = ask(base)
    assert interpreter is not None
    python = make_environment(tmp_path / "venv", interpreter, base)
    (tmp_path / "project").mkdir()
    return Velo(tmp_path, python, tmp_path / "project")


@pytest.fixture
def tree(velo: Velo) -> Tree:
    return Tree(velo.cwd, velo)


def bring(velo: Velo, *names: str) -> None:
    """Copy installed distributions into the story's environment, or skip the story."""
    (site,) = velo.python.parents[1].glob("lib/python3.*/site-packages")
    for name in names:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed here")
        for file in files:
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.is_file() and source.suffix != ".pyc":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, site / file)


def untimed(text: str) -> str:
    """Without durations and addresses."""
    # A longer time leaves less of the line to be filled.
    text = re.sub("={3,}", "===", re.sub(r"\d+\.\d+ ?s(econds)?\b", "TIME", text))
    return re.sub(r"0x[0-9a-f]+", "0x", text)


def test_pytest(tree: Tree, velo: Velo) -> None:
    """Rewritten assertions explain themselves, in tests, in conftest.py and in registered helpers."""
    bring(velo, "pytest", "pluggy", "iniconfig", "packaging", "pygments")
    tree.write(
        {
            "conftest.py": "import pytest\npytest.register_assert_rewrite('helper')\n",
            "helper.py": "def check(one, two):\n    assert one == two\n",
            "plain.py": "VALUE = [1, 2]\n",
            "test_it.py": """
                import helper, plain
                def test_list(): assert plain.VALUE == [1, 3]
                def test_helper(): helper.check({"a": 1}, {"a": 2})
                def test_good(tmp_path, capsys): assert plain.__file__
                """,
        }
    )

    # A folder of its own: in the usual one it would also clean up after others, and may speak of that.
    own = ("-p", "no:cacheprovider", "--basetemp", "temporary")
    runs = velo.both("-m", "pytest", *own, "-vv", served=50, same=untimed)

    assert "At index 1 diff: 2 != 3" in runs.second.stdout
    assert "{'a': 1} == {'a': 2}" in runs.second.stdout


def test_coverage(tree: Tree, velo: Velo) -> None:
    """The same lines are covered and missing, branches included."""
    bring(velo, "coverage")
    tree.write(
        {
            "app.py": "import box.part\nprint(box.part.choose(3))\n",
            "box/__init__.py": "",
            "box/part.py": """
                def choose(number):
                    if number > 5:
                        return "large"
                    return "small"
                """,
            "box/never.py": "VALUE = 1\n",
            "measure.py": """
                import coverage
                measured = coverage.Coverage(branch=True, source=["box"], data_file=None)
                measured.start()
                import app
                measured.stop()
                measured.report(show_missing=True)
                """,
        }
    )

    runs = velo.both("measure.py", served=10)

    assert "box/part.py" in runs.second.stdout


def test_typeguard(tree: Tree, velo: Velo) -> None:
    """An import hook that looks for `PathFinder` and wants a `SourceFileLoader` finds both."""
    bring(velo, "typeguard", "typing_extensions")
    tree.write(
        {
            "app.py": """
                from typeguard import install_import_hook
                install_import_hook("checked")
                import checked, unchecked
                print(unchecked.double("a"), checked.__loader__.__class__.__name__, checked.__file__)
                try:
                    checked.double("a")
                except Exception as error:
                    print(type(error).__name__, error)
                """,
            "checked.py": "def double(x: int) -> int:\n    return x * 2\n",
            "unchecked.py": "def double(x: int) -> int:\n    return x * 2\n",
        }
    )

    runs = velo.both("app.py", served=10)

    assert "TypeCheckError" in runs.second.stdout


def test_beartype(tree: Tree, velo: Velo) -> None:
    """A hook on `sys.path_hooks` is not overtaken by a finder on `sys.meta_path`."""
    bring(velo, "beartype")
    tree.write(
        {
            "app.py": """
                import box
                import box.part, other
                print(other.double("a"), type(box.part.__loader__).__name__)
                try:
                    box.part.double("a")
                except Exception as error:
                    print(type(error).__name__)
                """,
            "box/__init__.py": "from beartype.claw import beartype_this_package\nbeartype_this_package()\n",
            "box/part.py": "def double(x: int) -> int:\n    return x * 2\n",
            "other.py": "def double(x: int) -> int:\n    return x * 2\n",
        }
    )

    runs = velo.both("app.py", served=10)

    assert "BeartypeCallHintParamViolation" in runs.second.stdout


def test_wrapt(tree: Tree, velo: Velo) -> None:
    """Functions that wait for a module to be imported are called, with the module as it always is."""
    bring(velo, "wrapt")
    tree.write(
        {
            "app.py": """
                import wrapt, importlib.resources
                @wrapt.when_imported("box.part")
                def seen(module):
                    print("imported", module.__name__, type(module.__spec__.loader).__name__)
                @wrapt.when_imported("json.decoder")
                def also(module):
                    print("imported", module.__name__)
                import box.part, json
                print(importlib.resources.files("box").joinpath("data.txt").read_text())
                print(box.part.__loader__.get_source("box.part"))
                """,
            "box/__init__.py": "",
            "box/part.py": "VALUE = 1\n",
            "box/data.txt": "data",
        }
    )

    def loader_name(text: str) -> str:
        return text.replace("VeloSourceLoader", "SourceFileLoader")

    velo.both("app.py", served=10, same=loader_name)


def test_lazy_loaders(tree: Tree, velo: Velo) -> None:
    """`lazy_loader` and `importlib.util.LazyLoader` load when they are asked, and not before."""
    bring(velo, "lazy-loader", "packaging")
    tree.write(
        {
            "app.py": """
                import importlib.util, sys
                import box
                print("box.slow" in sys.modules, dir(box))
                print(box.slow.VALUE, box.value(), "box.slow" in sys.modules)
                import lazy_loader
                late = lazy_loader.load("late")
                print("late loaded" in sys.argv, type(late).__name__)
                print(late.VALUE, type(late).__name__)
                try:
                    lazy_loader.load("is_missing", error_on_import=True)
                except ImportError as error:
                    print(type(error), error)
                """,
            "box/__init__.py": """
                import lazy_loader
                __getattr__, __dir__, __all__ = lazy_loader.attach(
                    __name__, submodules=["slow"], submod_attrs={"fast": ["value"]})
                """,
            "box/slow.py": "VALUE = 'slow'\n",
            "box/fast.py": "def value(): return 'fast'\n",
            "late.py": "import sys\nsys.argv.append('late loaded')\nVALUE = 'late'\n",
        }
    )

    velo.both("app.py", served=5)


def test_gevent(tree: Tree, velo: Velo) -> None:
    """Monkey patching before everything else, and greenlets that import at the same time."""
    bring(velo, "gevent", "greenlet", "zope.event", "zope.interface")
    tree.write(
        {
            "app.py": """
                from gevent import monkey
                monkey.patch_all()
                import gevent, importlib
                names = ["one", "two", "three", "one", "json.tool", "two"]
                jobs = [gevent.spawn(importlib.import_module, name) for name in names]
                gevent.joinall(jobs, raise_error=True)
                print([job.value.__name__ for job in jobs])
                """,
            **{f"{name}.py": "import gevent\ngevent.sleep(0.01)\nimport three\n" for name in ("one", "two")},
            "three.py": "import gevent\ngevent.sleep(0.01)\n",
        }
    )

    velo.both("app.py", served=30)


def test_pdb(tree: Tree, velo: Velo) -> None:
    """Breakpoints in served modules, stepping, listing, post-mortem."""
    tree.write(
        {
            "app.py": "import box.part\nprint(box.part.outer(2))\nbox.part.outer(0)\n",
            "box/__init__.py": "",
            "box/part.py": """
                def outer(number):
                    def inner(value):
                        return 1 / value
                    return inner(number)
                """,
        }
    )
    commands = "import box.part\nbreak box/part.py:4\ncontinue\nwhere\nlist\nstep\nargs\ncontinue\n"

    def without_folder(text: str) -> str:
        return text.replace(str(velo.cwd), "")

    velo.both(
        *("-m", "pdb", "app.py"),
        stdin=commands + "clear 1\ncontinue\nwhere\nquit\nquit\n",
        same=without_folder,
    )


def test_debugpy(tree: Tree, velo: Velo) -> None:
    """A debugger that listens for its client, and traces what is imported meanwhile."""
    bring(velo, "debugpy")
    tree.write(
        {
            "app.py": """
                import debugpy
                debugpy.listen(("127.0.0.1", 0))
                debugpy.debug_this_thread()
                import box.part
                from _pydevd_bundle.pydevd_constants import get_global_debugger
                print(box.part.outer(2), box.part.__file__, debugpy.is_client_connected())
                print(get_global_debugger() is not None)
                """,
            "box/__init__.py": "",
            "box/part.py": """
                def outer(number):
                    return 1 / number
                """,
        }
    )

    velo.both("-X", "frozen_modules=off", "app.py", served=50, same=untimed)


def test_ddtrace(tree: Tree, velo: Velo) -> None:
    """Its watchdog wraps finders and loaders of every module: hooks are called, with modules as they are."""
    bring(velo, "ddtrace", "envier", "bytecode", "wrapt", "opentelemetry-api", "typing_extensions")
    tree.write(
        {
            "app.py": """
                from ddtrace.internal.module import ModuleWatchdog
                import sys, importlib.resources
                ModuleWatchdog.install()
                def seen(module):
                    print("imported", module.__name__, module.VALUE)
                ModuleWatchdog.register_module_hook("box.part", seen)
                import box.part, other
                spec = box.part.__spec__
                print(spec.origin, spec.has_location, box.part.__loader__ is spec.loader)
                print(box.part.__loader__.get_source("box.part"), box.part.__loader__.is_package("box.part"))
                print(importlib.resources.files("box").joinpath("data.txt").read_text())
                """,
            "box/__init__.py": "",
            "box/part.py": "VALUE = 1\n",
            "box/data.txt": "data",
            "other.py": "",
        }
    )

    velo.both(
        "app.py", served=50, env={"DD_TRACE_ENABLED": "false", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "0"}
    )


def test_profilers(tree: Tree, velo: Velo) -> None:
    """`cProfile` and `trace` count the same calls of the program's own functions."""
    tree.write(
        {
            "app.py": "import part\nfor number in range(7):\n    part.work(number)\n",
            "part.py": """
                def work(number):
                    return helper(number)
                def helper(number):
                    return number
                """,
        }
    )

    def own_calls(text: str) -> str:
        lines = [line for line in text.splitlines() if "part.py" in line or "app.py" in line]
        # Of equal names the profiler knows no order.
        return "\n".join(sorted(re.sub(r"\d+\.\d+", "TIME", line) for line in lines))

    runs = velo.both("-m", "cProfile", "-s", "name", "app.py", same=own_calls)
    assert "(work)" in runs.second.stdout
    runs = velo.both("-m", "trace", "--listfuncs", "app.py", same=own_calls)
    assert "funcname: work" in runs.second.stdout
    velo.both("-m", "trace", "--trace", "app.py", same=own_calls)


def test_doctest(tree: Tree, velo: Velo) -> None:
    """Examples of a served module are found and fail with the same report."""
    tree.write(
        {
            "part.py": '''
                def double(number):
                    """
                    >>> double(2)
                    4
                    >>> double(3)
                    7
                    """
                    return number * 2
                ''',
            "app.py": "import doctest, part\nprint(doctest.testmod(part))\n",
        }
    )

    velo.both("app.py", served=20)
    velo.both("-m", "doctest", "part.py")


def test_zipapp(tree: Tree, velo: Velo) -> None:
    """`python -m zipapp` makes an application, and it runs."""
    tree.write(
        {
            "source/__main__.py": "import inner, json\nprint(inner.VALUE, inner.__file__, __file__)\n",
            "source/inner.py": "VALUE = 'inner'\n",
        }
    )

    velo.both("-m", "zipapp", "source", "-o", "app.pyz", "-p", "/usr/bin/env python3")

    runs = velo.both("app.pyz")
    assert "app.pyz/inner.py" in runs.second.stdout


@pytest.mark.slow
def test_new_environment_and_pip(tree: Tree, velo: Velo) -> None:
    """In an accelerated shell: an environment is made, pip installs, upgrades and uninstalls in it, and each
    step is seen at once.
    """
    for version in ("1.0", "2.0"):
        with zipfile.ZipFile(tree / f"thing-{version}-py3-none-any.whl", "w") as wheel:
            folder = f"thing-{version}.dist-info"
            wheel.writestr("thing.py", f"VALUE = '{version}'\n")
            wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
            wheel.writestr(
                f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(
                f"{folder}/RECORD", f"thing.py,,\n{folder}/METADATA,,\n{folder}/WHEEL,,\n{folder}/RECORD,,\n"
            )
    show = 'inner/bin/python -c "import thing, sys; print(thing.VALUE, thing.__file__, sys.prefix)"'
    pip = "inner/bin/python -m pip --no-cache-dir -q --disable-pip-version-check"
    tree.write(
        {
            "all.sh": f"""
                set -e
                rm -rf inner
                "$1" -m venv inner
                {pip} install --no-index ./thing-1.0-py3-none-any.whl
                {show}
                {pip} install --no-index --upgrade ./thing-2.0-py3-none-any.whl
                {show}
                inner/bin/python -m pip --disable-pip-version-check list --format freeze | grep thing
                {pip} uninstall -y thing
                {show} 2>&1 | tail -n 1
                """
        }
    )
    shell = f"import os; os.execlp('sh', 'sh', 'all.sh', {str(velo.python)!r})"
    plain = velo.plain("-c", shell, timeout=LONG)

    runs = [velo.run(command=["sh", "all.sh", velo.python], timeout=LONG) for _ in range(2)]
    velo.wait_learned()

    assert "1.0" in plain.stdout and "ModuleNotFoundError" in plain.stdout
    assert [each.answer for each in runs] == [plain.answer] * 2
    assert runs[1].served > 100


def test_module_that_forks_while_it_is_imported(tree: Tree, velo: Velo) -> None:
    """The child goes on in the middle of the import and imports more; so does the parent."""
    tree.write(
        {
            "app.py": "import forks, after\nprint('parent', forks.CHILD > 0, after.VALUE, flush=True)\n",
            "forks.py": """
                import os, sys
                CHILD = os.fork()
                if CHILD == 0:
                    import after, json.tool
                    print("child", after.VALUE, "forks" in sys.modules, flush=True)
                    sys.exit(7)
                print("code", os.waitstatus_to_exitcode(os.waitpid(CHILD, 0)[1]), flush=True)
                """,
            "after.py": "VALUE = 'after'\n",
        }
    )

    velo.both("-W", "ignore", "app.py", served=2)

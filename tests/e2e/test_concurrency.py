# SPDX-License-Identifier: Apache-2.0
"""Threads, forks and subinterpreters import at the same time, and nothing is loaded twice, lost or stuck."""

from __future__ import annotations

import textwrap

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree


@pytest.mark.core
def test_threads_import_at_once(tree: Tree, velo: Velo) -> None:
    """Many threads import overlapping packages: each body runs once, all threads see it finished."""
    count = 30
    tree.write(
        {
            "app.py": f"""
                import builtins, importlib, threading
                builtins.bodies = []
                barrier = threading.Barrier(8)
                seen = []

                def work(offset):
                    barrier.wait()
                    for number in range({count}):
                        name = f"box.part{{(number + offset) % {count}}}"
                        module = importlib.import_module(name)
                        seen.append(module.VALUE)

                threads = [threading.Thread(target=work, args=(4 * n,)) for n in range(8)]
                for thread in threads: thread.start()
                for thread in threads: thread.join()
                print(len(seen), sum(seen), sorted(builtins.bodies))
                """,
            "box/__init__.py": "",
            **{
                f"box/part{number}.py": "import builtins, time\n"
                "builtins.bodies.append(__name__)\ntime.sleep(0.001)\nVALUE = 1\n"
                for number in range(count)
            },
        }
    )

    velo.both("app.py", served=count + 1)


def test_circular_imports_in_threads(tree: Tree, velo: Velo) -> None:
    """Two threads enter an import cycle from both ends; deadlock is avoided as in plain Python."""
    tree.write(
        {
            "app.py": """
                import importlib, threading
                problems = []
                def work(name):
                    try:
                        importlib.import_module(name)
                    except Exception as error:
                        problems.append(type(error).__name__)
                threads = [threading.Thread(target=work, args=(name,)) for name in ("left", "right") * 4]
                for thread in threads: thread.start()
                for thread in threads: thread.join()
                import left, right
                print(left.VALUE, right.VALUE, left.right is right)
                """,
            "left.py": "import time; time.sleep(.01)\nimport right\nVALUE = 1\n",
            "right.py": "import time; time.sleep(.01)\nimport left\nVALUE = 2\n",
        }
    )

    velo.both("app.py", served=2)


def test_fork_while_threads_import(tree: Tree, velo: Velo) -> None:
    """A fork in the middle of another thread's imports leaves a child that can import."""
    tree.write(
        {
            "app.py": """
                import os, threading, time, warnings
                warnings.simplefilter("ignore")
                def work():
                    for number in range(40):
                        __import__(f"part{number}")
                thread = threading.Thread(target=work)
                thread.start()
                codes = []
                for _ in range(5):
                    child = os.fork()
                    if child == 0:
                        import late
                        os._exit(late.VALUE)
                    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                thread.join()
                print(codes)
                """,
            "late.py": "VALUE = 3\n",
            **{f"part{number}.py": "import time; time.sleep(.001)\n" for number in range(40)},
        }
    )

    velo.both("app.py", served=40)


SUBINTERPRETER = """
    import sys
    try:
        import _interpreters as api
        create, run, destroy = api.create, lambda i, text: api.exec(i, text), api.destroy
    except ImportError:
        import _xxsubinterpreters as api
        create, run, destroy = api.create, lambda i, text: api.run_string(i, text), api.destroy
    import part
    for _ in range(3):
        one = create()
        run(one, f"import sys; sys.path[:] = {sys.path!r}")  # 3.11 gives them another one
        text = "import part, box.deep, json; print(part.VALUE, part.__file__, len(box.__path__), flush=True)"
        problem = run(one, text)
        assert problem is None, problem
        destroy(one)
    import box.deep
    print("main", part.VALUE, flush=True)
    """


@pytest.mark.core
def test_subinterpreters(tree: Tree, velo: Velo) -> None:
    """Subinterpreters, with a lock of their own or the shared one, import and end like everywhere."""
    tree.write({"app.py": SUBINTERPRETER, "part.py": "VALUE = 1\n", "box/__init__.py": "", "box/deep.py": ""})

    velo.both("app.py", served=3)


@pytest.mark.core
def test_forgotten_subinterpreter(tree: Tree, velo: Velo) -> None:
    """One that is still there when the program ends does not change its exit code."""
    create = textwrap.dedent(SUBINTERPRETER).partition("import part\n")[0]
    tree.write(
        {
            "app.py": create
            + "one = create()\nrun(one, 'import json, base64, this_is_not_there')\nsys.exit(3)\n"
        }
    )

    velo.both("app.py", served=0)


@pytest.mark.core
def test_subinterpreters_leave_no_child(tree: Tree, velo: Velo) -> None:
    """What a subinterpreter was the first to import is learned without a process that the program could wait
    for.
    """
    end = """
        try:
            print("child", os.waitpid(-1, 0))
        except ChildProcessError as error:
            print(type(error).__name__)
        """
    create = (
        textwrap.dedent(SUBINTERPRETER)
        .replace("import part\n", "import os\n", 1)
        .partition("import box.deep\n")[0]
    )
    tree.write(
        {
            "app.py": create + textwrap.dedent(end),
            "part.py": "VALUE = 1\n",
            "box/__init__.py": "",
            "box/deep.py": "",
        }
    )

    velo.both("app.py", served=0)
    assert velo.run("app.py").served >= 3


def test_imports_at_exit(tree: Tree, velo: Velo) -> None:
    """Imports in `atexit` functions, in finalizers and in threads that outlive the main thread."""
    tree.write(
        {
            "app.py": """
                import atexit, threading, time, part

                @atexit.register
                def last():
                    import late
                    print("late", late.VALUE)

                class Thing:
                    def __del__(self):
                        try:
                            import very_late
                            print("very late", very_late.VALUE)
                        except ImportError as error:
                            print(type(error).__name__)

                thing = Thing()

                def work():
                    time.sleep(.05)
                    import threaded
                    print("threaded", threaded.VALUE)

                threading.Thread(target=work).start()
                """,
            **{f"{name}.py": "VALUE = 1\n" for name in ("part", "late", "very_late", "threaded")},
        }
    )

    velo.both("app.py", served=3)


def test_asynchronous_program(tree: Tree, velo: Velo) -> None:
    """Imports in coroutines and executors of an event loop."""
    tree.write(
        {
            "app.py": """
                import asyncio, importlib
                async def main():
                    loop = asyncio.get_running_loop()
                    names = [f"part{number}" for number in range(10)]
                    jobs = [loop.run_in_executor(None, importlib.import_module, name) for name in names]
                    print(sorted(module.VALUE for module in await asyncio.gather(*jobs)))
                    import part3
                    print(part3.__file__)
                asyncio.run(main())
                """,
            **{f"part{number}.py": f"VALUE = {number}\n" for number in range(10)},
        }
    )

    velo.both("app.py", served=60)

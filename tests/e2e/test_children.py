# SPDX-License-Identifier: Apache-2.0
"""Programs that start programs: whatever way a child comes to life, it is accelerated, and it tells the same
story.
"""

from __future__ import annotations

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

WORK = {
    "work.py": """
        import os, shared

        def square(number):
            return number * number + shared.OFFSET

        def name():
            return __name__, shared.__spec__.name, shared.__file__
        """,
    "shared.py": "OFFSET = 0\n",
    "child.py": "import sys, work; print(work.square(int(sys.argv[1])), sys.path)\n",
}
POOL = """
    import multiprocessing, work

    if __name__ == "__main__":
        context = multiprocessing.get_context("METHOD")
        with context.Pool(2) as pool:
            print(pool.map(work.square, range(5)), pool.apply(work.name))
        queue = context.SimpleQueue()
        process = context.Process(target=queue.put, args=("put",))
        process.start()
        process.join()
        print(queue.get(), process.exitcode)
    """


@pytest.mark.core
def test_subprocess(tree: Tree, velo: Velo) -> None:
    """A child Python started by a script is served as well, and sees the same `sys.path`."""
    tree.write(
        WORK
        | {
            "app.py": """
                import subprocess, sys
                for number in "123":
                    subprocess.run([sys.executable, "child.py", number], check=True)
                print(subprocess.run([sys.executable, "-m", "child", "4"], capture_output=True).stdout)
                """
        }
    )

    runs = velo.both("app.py", served=8)

    print(*runs.second.stats, sep="\n")
    assert len(runs.second.stats) == 5
    assert all(each["served"] for each in runs.second.stats)


def test_shell_between(tree: Tree, velo: Velo) -> None:
    """A shell script that calls Python passes the acceleration on."""
    tree.write(WORK | {"app.sh": 'set -e\n"$1" child.py 3\necho done\n'})
    first = velo.learn(command=["sh", "app.sh", velo.python])
    second = velo.learn(command=["sh", "app.sh", velo.python])

    plain = velo.plain("child.py", "3")
    assert first.stdout == second.stdout == plain.stdout + "done\n"
    assert second.served >= 2


@pytest.mark.core
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tree: Tree, velo: Velo, method: str) -> None:
    """Pools and processes of each start method give the same results."""
    tree.write(WORK | {"app.py": POOL.replace("METHOD", method)})

    runs = velo.both("-W", "ignore", "app.py", served=2)

    assert "[0, 1, 4, 9, 16]" in runs.plain.stdout


def test_process_pool_executor(tree: Tree, velo: Velo) -> None:
    """`concurrent.futures` with processes, and an error that crosses them."""
    tree.write(
        WORK
        | {
            "app.py": """
                import concurrent.futures, work

                if __name__ == "__main__":
                    with concurrent.futures.ProcessPoolExecutor(2) as pool:
                        print(list(pool.map(work.square, range(4))))
                        print(type(pool.submit(work.square, None).exception()).__name__)
                """
        }
    )

    velo.both("-W", "ignore", "app.py", served=2)


def test_test_runner(tree: Tree, velo: Velo) -> None:
    """A test runner that imports test modules by path and starts a child for some of them."""
    tree.write(
        WORK
        | {
            "test_one.py": """
                import subprocess, sys, unittest, work

                class OneTest(unittest.TestCase):
                    def test_here(self):
                        self.assertEqual(work.square(3), 9)
                    def test_child(self):
                        out = subprocess.check_output([sys.executable, "child.py", "3"], text=True)
                        self.assertEqual(out.split()[0], "9")
                """,
            "app.py": """
                import sys, unittest
                suite = unittest.defaultTestLoader.discover(".")
                result = unittest.TextTestRunner(stream=open("/dev/null", "w")).run(suite)
                print(result.testsRun, len(result.failures), len(result.errors))
                """,
        }
    )

    runs = velo.both("app.py", served=4)

    assert runs.plain.stdout == "2 0 0\n"


def test_fork_after_imports(tree: Tree, velo: Velo) -> None:
    """A forked child goes on importing, and parent and child count for themselves."""
    tree.write(
        {
            "app.py": """
                import os, sys, before
                child = os.fork()
                import after
                print(after.VALUE, "child" if child == 0 else "parent", flush=True)
                if child:
                    _, status = os.waitpid(child, 0)
                    sys.exit(os.waitstatus_to_exitcode(status))
                """,
            "before.py": "",
            "after.py": "VALUE = 5\n",
        }
    )
    for _ in range(2):
        result = velo.learn("app.py")
        assert (sorted(result.stdout.split("\n")), result.stderr, result.code) == (
            ["", "5 child", "5 parent"],
            "",
            0,
        )

    assert len(result.stats) == 2
    assert all(each["served"] for each in result.stats)


def test_forked_children_that_leave_early(tree: Tree, velo: Velo) -> None:
    """Children that leave by `os._exit` take nothing along and leave nothing behind."""
    tree.write(
        {
            "app.py": """
                import os, helper
                for _ in range(20):
                    child = os.fork()
                    if child == 0:
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
                print("done")
                """,
            "helper.py": "",
        }
    )

    velo.both("app.py")


@pytest.mark.parametrize("name", ["python", "other"])
def test_exec_under_another_name(tree: Tree, velo: Velo, name: str) -> None:
    """A program that replaces itself by a Python which is told a misleading name for itself."""
    app = f"import os, sys, work\nos.execv(sys.executable, [{name!r}, 'child.py', '7'])\n"
    tree.write(WORK | {"app.py": app})
    if velo.plain("app.py").code:
        pytest.skip("under that name this Python does not find its own standard library")

    # Whose environment that is depends on PATH; nothing need be served, but all has to be right.
    for _ in range(3):
        velo.both("app.py", served=0)


def test_exec_into_another_python(tree: Tree, velo: Velo) -> None:
    """A program that replaces itself by another is followed."""
    app = "import os, sys, work\nos.execv(sys.executable, [sys.executable, 'child.py', '7'])\n"
    tree.write(WORK | {"app.py": app})

    velo.both("app.py", served=2)


def test_child_with_a_clean_environment(tree: Tree, velo: Velo) -> None:
    """A child that is given no variables runs plainly."""
    tree.write(
        WORK
        | {
            "app.py": """
                import subprocess, sys, work
                subprocess.run([sys.executable, "child.py", "3"], env={}, check=True)
                """
        }
    )

    velo.both("app.py")


def test_no_descriptor_reaches_children(tree: Tree, velo: Velo) -> None:
    """The files that Velo has open are closed in a child that inherits everything."""
    tree.write(
        {
            "app.py": """
                import os, subprocess, sys, helper
                subprocess.run(["ls", "/proc/self/fd"], close_fds=False)
                """,
            "helper.py": "",
        }
    )

    velo.both("app.py")


def test_environment_of_children(tree: Tree, velo: Velo) -> None:
    """A child sees one thing more on PYTHONPATH, in front, and what the user had there behind it."""
    tree.write({"app.py": "import os; print(os.environ.get('PYTHONPATH'))", "lib/one.py": ""})

    bare = velo.run("app.py").stdout.strip()
    mine = velo.run("app.py", env={"PYTHONPATH": f"lib:{tree / 'lib'}"}).stdout.strip()
    empty = velo.run("app.py", env={"PYTHONPATH": ""}).stdout.strip()

    assert bare == empty and ":" not in bare
    assert mine == f"{bare}:lib:{tree / 'lib'}"

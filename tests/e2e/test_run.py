# SPDX-License-Identifier: Apache-2.0
"""Every way to start a Python program: the first run is as without Velo, the second is served, the answer is
one.
"""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

PROJECT = {
    "app.py": """
        import sys
        import greeting
        from parts import first, second

        print(greeting.hello("world"), first.VALUE + second.VALUE, sys.argv)
        print("to stderr", file=sys.stderr)
        """,
    "greeting.py": 'def hello(name):\n    return f"hello {name}"\n',
    "parts/__init__.py": "",
    "parts/first.py": "VALUE = 1\n",
    "parts/second.py": "from . import first\nVALUE = first.VALUE + 1\n",
    "tool/__init__.py": "import greeting\n",
    "tool/__main__.py": "import sys, tool\nfrom . import work\nprint(work.RESULT, tool.__path__, sys.argv)\n",
    "tool/work.py": "RESULT = 42\n",
}


@pytest.mark.core
def test_script(tree: Tree, velo: Velo) -> None:
    """A script and its arguments: the second run takes all of the project's modules from the store."""
    tree.write(PROJECT)

    runs = velo.both("app.py", "--flag", "", "ü b", served=4)

    assert runs.first.served < runs.second.served
    assert runs.plain.stdout.startswith("hello world 3 ['app.py', '--flag', '', 'ü b']")


@pytest.mark.core
def test_script_without_bytecode_files(tree: Tree, velo: Velo) -> None:
    """Where Python may not write bytecode files, the second run is served all the same."""
    tree.write(PROJECT)
    before = tree.listing()

    velo.both("app.py", served=4, env={"PYTHONDONTWRITEBYTECODE": "1"})

    assert before == tree.listing()


def test_script_in_another_folder(tree: Tree, velo: Velo, tmp_path: Path) -> None:
    """A script given by its absolute path, started from elsewhere."""
    tree.write(PROJECT)
    (tmp_path / "elsewhere").mkdir()

    velo.both(tree / "app.py", served=4, cwd=tmp_path / "elsewhere")


def test_script_through_a_symbolic_link(tree: Tree, velo: Velo) -> None:
    """A linked script finds the modules beside its target, not those beside the link."""
    tree.write({"real/app.py": "import near; print(near.__file__)", "real/near.py": "", "near.py": ""})
    (tree / "app").symlink_to("real/app.py")

    velo.both("app", served=1)


@pytest.mark.core
def test_module(tree: Tree, velo: Velo) -> None:
    """`python -m package` runs `__main__` with the package served."""
    tree.write(PROJECT)

    velo.both("-m", "tool", "argument", served=3)


def test_module_inside_a_package(tree: Tree, velo: Velo) -> None:
    """`python -m package.module`, and the name it finds itself under."""
    tree.write(
        PROJECT | {"tool/inner.py": "import sys; print(__name__, __package__, __spec__.name, __file__)"}
    )

    velo.both("-m", "tool.inner", served=2)


def test_module_that_does_not_exist(tree: Tree, velo: Velo) -> None:
    """The message for a wrong `-m` is Python's own, and so is the exit code."""
    velo.both("-m", "no_such_module", served=0)
    velo.both("-m", "json.no_such_module", served=0)


@pytest.mark.core
def test_command(tree: Tree, velo: Velo) -> None:
    """`python -c` imports from the current folder, and later from the store."""
    tree.write(PROJECT)

    velo.both("-c", "import sys, tool.work; print(tool.work.RESULT, sys.path[0], sys.argv)", "x", served=3)


def test_standard_input(tree: Tree, velo: Velo) -> None:
    """A program read from standard input imports from the current folder."""
    tree.write(PROJECT)

    velo.both("-", "x", stdin="import greeting, sys\nprint(greeting.hello(sys.argv[1]))\n", served=1)


def test_standard_input_reaches_the_program(tree: Tree, velo: Velo) -> None:
    """What is piped in belongs to the program, to the last byte."""
    tree.write({"app.py": "import sys, helper\nprint(len(sys.stdin.read()))\n", "helper.py": ""})

    velo.both("app.py", stdin="x" * 100_000, served=1)


def test_folder_and_archive_with_main(tree: Tree, velo: Velo) -> None:
    """`python folder` and `python archive.zip` run their `__main__`."""
    files = {"__main__.py": "import inner; print(inner.__file__, __file__)", "inner.py": ""}
    tree.write({f"folder/{name}": text for name, text in files.items()})
    tree.archive("archive.zip", files)

    velo.both("folder", served=1)
    velo.both("archive.zip", served=0)


@pytest.mark.core
def test_entry_point_script(tree: Tree, velo: Velo, python: Path, site_packages: Tree) -> None:
    """A command that pip installed: its first line names the interpreter, `velo run -- command` runs it."""
    site_packages.write(
        {"tool/__init__.py": "", "tool/cli.py": "def main():\n    print('ran')\n    return 7\n"}
    )
    script = python.parent / "tool"
    script.write_text(f"#!{python}\nimport sys\nfrom tool.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)

    first = velo.learn(command=[script])
    second = velo.learn(command=[script])

    assert first.answer == second.answer == ("ran\n", "", 7)
    assert second.served >= 2


def test_command_found_on_the_path(tree: Tree, velo: Velo, python: Path) -> None:
    """`velo run -- tool` looks for the command where a shell would."""
    tree.write({"bin/tool": f"#!{python}\nimport sys; print(sys.argv[1:])\n"})
    (tree / "bin/tool").chmod(0o755)

    result = velo.run(command=["tool", "a"], env={"PATH": f"{tree / 'bin'}:/usr/bin:/bin"})

    assert result.answer == ("['a']\n", "", 0)


def test_program_that_is_not_python(velo: Velo) -> None:
    """A command of another language runs as ever."""
    assert velo.run(command=["sh", "-c", "echo out; echo err >&2; exit 3"]).answer == ("out\n", "err\n", 3)


def test_command_that_cannot_start(tree: Tree, velo: Velo) -> None:
    """127 for a command that does not exist, 126 for one that is not executable, and a line that says so."""
    tree.write({"data.txt": "not a program"})
    (tree / "data.txt").chmod(stat.S_IRUSR)

    missing = velo.run(command=["no-such-command-anywhere"])
    refused = velo.run(command=["./data.txt"])

    assert (missing.code, refused.code) == (127, 126)
    assert "no-such-command-anywhere" in missing.stderr and missing.stdout == ""
    assert "data.txt" in refused.stderr and refused.stdout == ""
    assert "hint: " in missing.stderr and "hint: " in refused.stderr
    assert "Traceback" not in missing.stderr + refused.stderr


@pytest.mark.parametrize(
    "ending", ["sys.exit(5)", "sys.exit('message')", "os._exit(9)", "1/0", "raise SystemExit"]
)
def test_exit_code(tree: Tree, velo: Velo, ending: str) -> None:
    """However a program ends, its exit code and its last words are the same."""
    tree.write({"app.py": f"import os, sys, helper\nprint('here', flush=True)\n{ending}\n", "helper.py": ""})

    velo.both("app.py", served=0)


@pytest.mark.core
def test_end_by_ctrl_c(tree: Tree, velo: Velo) -> None:
    """Python ends such a program by SIGINT itself, whatever is looked at before: what the shell, make and
    `timeout` go by.
    """
    tree.write(
        {
            "app.py": """
                import helper

                kept = helper.Quiet(), helper.waits()
                next(kept[1])
                raise KeyboardInterrupt
                """,
            "helper.py": """
                class Quiet:
                    def __del__(self):
                        pass

                def waits():
                    while True:
                        yield
                """,
        }
    )

    assert velo.both("app.py").second.code == -signal.SIGINT


def test_end_by_signal(tree: Tree, velo: Velo) -> None:
    """A program that is killed is seen to be killed by that signal."""
    tree.write({"app.py": "import os, helper\nos.kill(os.getpid(), 15)\n", "helper.py": ""})

    assert velo.run("app.py").code == velo.plain("app.py").code == -signal.SIGTERM


def test_interactive_flag(tree: Tree, velo: Velo) -> None:
    """`python -i` continues with the console after the script."""
    tree.write({"app.py": "import helper\nvalue = helper.VALUE\n", "helper.py": "VALUE = 12\n"})

    velo.both("-q", "-i", "app.py", stdin="print(value + 1)\n", served=1)


def test_nothing_but_bytecode_is_written(tree: Tree, velo: Velo) -> None:
    """The project's folder holds afterwards what it holds after a plain run, file by file."""
    tree.write(PROJECT)
    sources = tree.listing()
    velo.plain("app.py")
    plain = set(tree.listing())
    tree.forget_bytecode()

    velo.learn("app.py")
    velo.learn("app.py")

    after = tree.listing()
    assert set(after) <= plain
    assert sources == {name: facts for name, facts in after.items() if "__pycache__" not in name}


def test_nothing_is_written_into_the_environment(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """`site-packages` and the user's home folder are left as they were."""
    site_packages.write({"library.py": "VALUE = 1\n"})
    tree.write({"app.py": "import library"})
    velo.plain("app.py")
    environment = Tree(site_packages.folder.parents[2])
    before = environment.listing(), Tree(velo.user).listing()

    velo.both("app.py")

    assert before == (environment.listing(), Tree(velo.user).listing())


def test_default_store(tree: Tree, velo: Velo) -> None:
    """Without VELO_HOME the store lies below the user's cache folder, wherever that is."""
    tree.write({"app.py": "import helper; print(helper)", "helper.py": ""})
    for cache in (velo.folder / "xdg", None):
        velo.home = (cache or velo.user / ".cache") / "velo"
        env = {"VELO_HOME": None, "XDG_CACHE_HOME": cache and str(cache)}

        velo.both("app.py", env=env)

        assert (velo.home / "VERSION").exists()

# SPDX-License-Identifier: Apache-2.0
"""Velo comes in as `sitecustomize`, which belongs to the user: theirs runs as ever, ours leaves no trace."""

from __future__ import annotations

import textwrap

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

SHOW = """
    import sys
    for name in ("sitecustomize", "usercustomize"):
        module = sys.modules.get(name)
        print(name, getattr(module, "__file__", None), getattr(module, "GREETING", None))
    import part
    """


@pytest.fixture
def no_other(velo: Velo) -> None:
    """For stories in which the environment's sitecustomize is the only one."""
    if velo.plain("-c", "import sitecustomize").code == 0:
        pytest.skip("this Python has a sitecustomize in its standard library, which comes first")


@pytest.mark.core
def test_sitecustomize_of_the_environment(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """The environment's own sitecustomize runs once and is what `import sitecustomize` gives."""
    tree.write(
        {
            "app.py": textwrap.dedent(SHOW) + "import sitecustomize\nprint(sitecustomize.GREETING)\n",
            "part.py": "",
        }
    )
    site_packages.write(
        {"sitecustomize.py": "import sys\nprint('hello from', __name__)\nGREETING = 'mine'\n"}
    )

    runs = velo.both("app.py")

    # Debian's own, in the standard library, comes before the environment's: then that one is the answer.
    assert runs.second.stdout.count("hello from sitecustomize") <= 1


def test_sitecustomize_on_pythonpath(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """One on PYTHONPATH wins over the environment's, with us in front as without."""
    tree.write({"app.py": SHOW, "part.py": "", "lib/sitecustomize.py": "GREETING = 'from the path'\n"})
    site_packages.write({"sitecustomize.py": "GREETING = 'from the environment'\n"})

    runs = velo.both("app.py", env={"PYTHONPATH": str(tree / "lib")})

    assert "from the path" in runs.second.stdout


@pytest.mark.parametrize(
    "text",
    [
        "raise ValueError('broken')",
        "raise ImportError('needs something')",
        "import no_such_module_at_all",
        "def broken(:",
    ],
)
def test_sitecustomize_that_fails(tree: Tree, velo: Velo, site_packages: Tree, text: str) -> None:
    """One that raises is reported, or ends the program, in exactly the words of a plain start."""
    tree.write({"app.py": SHOW, "part.py": ""})
    site_packages.write({"sitecustomize.py": f"{text}\n"})

    velo.both("app.py", served=0)


@pytest.mark.parametrize("text", ["import sys; sys.exit(3)", "raise SystemExit", "raise KeyboardInterrupt"])
def test_sitecustomize_that_ends_everything(tree: Tree, velo: Velo, site_packages: Tree, text: str) -> None:
    """One that ends the interpreter ends it: same exit code, same message, the user's frame the last."""
    tree.write({"app.py": "print('never')"})
    site_packages.write({"sitecustomize.py": f"{text}\n"})

    def told(text: str) -> tuple[list[str], list[str]]:
        """First and last two lines: Python dumps the frames in between, and ours is among them."""
        lines = [line for line in text.splitlines() if line.strip("^~ ")]
        return lines[:3], lines[-3:]

    plain = velo.plain("app.py")
    for _ in range(2):
        result = velo.learn("app.py")
        assert (result.stdout, result.code) == (plain.stdout, plain.code)
        assert told(result.stderr) == told(plain.stderr)


@pytest.mark.usefixtures("no_other")
def test_sitecustomize_that_fails_verbosely(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """With -v, Python prints the traceback of a broken sitecustomize: the user's frames are its end."""
    tree.write({"app.py": "print('ran')"})
    site_packages.write({"sitecustomize.py": "def inner():\n    raise ValueError('broken')\ninner()\n"})

    def frames(text: str) -> list[str]:
        end = text[: text.index("ValueError: broken")].splitlines()
        return [line for line in end if line.startswith("  File") and str(velo.folder) in line]

    plain = velo.plain("-v", "app.py")
    result = velo.learn("-v", "app.py")

    assert len(frames(plain.stderr)) == 2
    assert frames(result.stderr) == frames(plain.stderr)


@pytest.mark.usefixtures("no_other")
def test_package_as_sitecustomize(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """A sitecustomize that is a package works, its parts too."""
    site_packages.write({"sitecustomize/__init__.py": "from sitecustomize.part import GREETING\n"})
    site_packages.write({"sitecustomize/part.py": "GREETING = 'packaged'\n"})
    tree.write({"app.py": SHOW, "part.py": ""})

    assert "packaged" in velo.both("app.py").second.stdout


def test_sitecustomize_that_changes_the_import_system(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """One that adds path entries and finders, as tracers do, finds them in place afterwards."""
    site_packages.write(
        {
            "sitecustomize.py": f"""
                import sys
                sys.path.append({str(tree / "extra")!r})

                class Watcher:
                    @staticmethod
                    def find_spec(name, path=None, target=None):
                        return None

                sys.meta_path.insert(0, Watcher)
                """
        }
    )
    show = "import sys, part, more; print(sys.path, sys.meta_path[0].__name__, more.__file__)"
    tree.write({"app.py": show, "part.py": "", "extra/more.py": ""})

    velo.both("app.py", served=2)


@pytest.mark.usefixtures("no_other")
def test_sitecustomize_that_chains_by_itself(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """Another tool that injects itself in the same way: both are passed through, in either order."""
    tool = """
        import sys
        folder = __file__.rpartition("/")[0]
        sys.path.remove(folder)
        del sys.modules["sitecustomize"]
        try:
            import sitecustomize
        except ImportError:
            pass
        finally:
            sys.path.insert(0, folder)
        print("tool")
        """
    site_packages.write({"sitecustomize.py": "print('mine')\nGREETING = 'mine'\n"})
    tree.write({"app.py": SHOW, "part.py": "", "tool/sitecustomize.py": tool})

    runs = velo.both("app.py", env={"PYTHONPATH": str(tree / "tool")})

    assert runs.second.stdout.startswith("mine\ntool\n")


def test_usercustomize(tree: Tree, velo: Velo, base_python: object) -> None:
    """The user's own usercustomize runs after ours, served or not."""
    assert isinstance(base_python, type(velo.python))
    velo.python = base_python
    user_site = velo.plain("-m", "site", "--user-site").stdout.strip()
    Tree(type(velo.python)(user_site)).write({"usercustomize.py": "print('user')\nGREETING = 'user'\n"})
    tree.write({"app.py": SHOW, "part.py": ""})

    runs = velo.both("app.py")

    assert runs.second.stdout.startswith("user\n")


def test_sitecustomize_from_the_store(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """What the user's sitecustomize imports is accelerated like everything else."""
    site_packages.write({"sitecustomize.py": "import heavy\n", "heavy.py": "VALUE = 1\n"})
    tree.write({"app.py": "import sys; print(sys.modules['heavy'].VALUE)"})

    velo.both("app.py", served=1)


def test_without_any_other(tree: Tree, velo: Velo) -> None:
    """Where there is no other sitecustomize, importing it fails as it does without Velo."""
    tree.write(
        {
            "app.py": "import part\n"
            "try:\n    import sitecustomize\nexcept ImportError as error:\n    print(error)\n"
        }
    )
    tree.write({"part.py": ""})

    velo.both("app.py")


@pytest.mark.usefixtures("no_other")
def test_sitecustomize_in_children(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """In a child of the program the user's sitecustomize runs once again, as it should."""
    site_packages.write({"sitecustomize.py": "print('hello', flush=True)\n"})
    app = "import subprocess, sys, part\nsubprocess.run([sys.executable, '-c', 'import part'])\n"
    tree.write({"app.py": app, "part.py": ""})

    assert velo.both("app.py", served=3).second.stdout == "hello\nhello\n"

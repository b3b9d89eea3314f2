# SPDX-License-Identifier: Apache-2.0
"""Never stale: whatever changes on disk after learning, the program sees what plain Python would see, or
better.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

UNWRITTEN = {"PYTHONDONTWRITEBYTECODE": "1"}
APP = {
    "app.py": "import part; print(part.VALUE, part.__file__, part.__spec__.origin)\n",
    "part.py": "VALUE = 'old'\n",
}


def learned(tree: Tree, velo: Velo, *, env: dict[str, str | None] | None = None) -> None:
    """Write the project, run it until its modules are served."""
    tree.write(APP)
    velo.both("app.py", env=env)


def same_as_plain(velo: Velo, *arguments: str, env: dict[str, str | None] | None = None) -> str:
    """Accelerated first, so that plain Python's bytecode files cannot help; then again, learned."""
    first = velo.learn(*arguments, env=env)
    plain = velo.plain(*arguments, env=env)
    again = velo.learn(*arguments, env=env)
    assert first.answer == plain.answer == again.answer
    assert first.errors == again.errors == 0
    return plain.stdout


@pytest.mark.core
def test_edit_after_learning_wins(tree: Tree, velo: Velo) -> None:
    """A source file changed after learning is what the program sees, and what is served next."""
    learned(tree, velo)
    tree.write({"part.py": "VALUE = 'newer'\n"})

    assert same_as_plain(velo, "app.py").startswith("newer")
    assert velo.run("app.py").served >= 1


def test_edit_after_ingest_wins(tree: Tree, velo: Velo) -> None:
    """A source file changed after ingest is what the program sees."""
    tree.write(APP).ingest()
    tree.write({"part.py": "VALUE = 'newer'\n"})

    assert velo.run("app.py").stdout.startswith("newer")


@pytest.mark.core
def test_unnoticeable_edit_wins(tree: Tree, velo: Velo) -> None:
    """Same size, same inode, modification time set back: plain Python may be fooled by that, Velo is not."""
    learned(tree, velo, env=UNWRITTEN)
    tree.write_unnoticed("part.py", "VALUE = 'new'\n")

    assert velo.run("app.py", env=UNWRITTEN).stdout.startswith("new ")
    velo.wait_learned()
    assert velo.run("app.py", env=UNWRITTEN).stdout.startswith("new ")


def test_replaced_file_with_the_same_times(tree: Tree, velo: Velo) -> None:
    """Another file of the same size moved into place with the old times, as `cp -p` and `git checkout` do."""
    learned(tree, velo, env=UNWRITTEN)
    before = (tree / "part.py").stat()
    tree.write({"part.new": "VALUE = 'new'\n"})
    os.utime(tree / "part.new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(tree / "part.new", tree / "part.py")

    assert velo.run("app.py", env=UNWRITTEN).stdout.startswith("new ")


def test_stale_bytecode_file_is_no_worse_than_plain(tree: Tree, velo: Velo) -> None:
    """With a bytecode file that fools plain Python, Velo answers right or as plain Python does, never from
    memory.
    """
    learned(tree, velo)
    tree.write_unnoticed("part.py", "VALUE = 'new'\n")
    plain = velo.plain("app.py").stdout.split()[0]

    for _ in range(2):
        assert velo.learn("app.py").stdout.split()[0] in (plain, "new")

    shutil.rmtree(tree / "__pycache__")  # From here on plain Python knows better.
    for _ in range(2):
        assert velo.learn("app.py", env=UNWRITTEN).stdout.split()[0] == "new"


def test_times_set_back_far(tree: Tree, velo: Velo) -> None:
    """A modification time from long ago does not make new text look old."""
    learned(tree, velo)
    tree.write({"part.py": "VALUE = 'other'\n"})
    os.utime(tree / "part.py", (1, 1))

    assert same_as_plain(velo, "app.py").startswith("other")


def test_edit_run_edit_run(tree: Tree, velo: Velo) -> None:
    """Twenty edits of equal size, each run at once, while learners come and go: the newest is always seen."""
    tree.write(APP)
    for number in range(20):
        (tree / "part.py").write_text(f"VALUE = {100 + number}\n")

        assert velo.run("-B", "app.py").stdout.split()[0] == str(100 + number)
    velo.wait_learned()

    assert velo.run("-B", "app.py").stdout.split()[0] == "119"


def test_edit_while_the_program_runs(tree: Tree, velo: Velo) -> None:
    """A module edited between the program's start and its import is imported as edited."""
    tree.write(
        {
            "app.py": """
                import other, os, time
                before = os.stat("part.py")
                open("part.py", "w").write("VALUE = 'new'\\n")
                os.utime("part.py", ns=(before.st_atime_ns, before.st_mtime_ns))
                import part
                print(part.VALUE)
                """,
            "part.py": "VALUE = 'old'\n",
            "other.py": "",
        }
    )
    for _ in range(3):
        tree.write({"part.py": "VALUE = 'old'\n"})
        assert velo.learn("app.py", env=UNWRITTEN).stdout == "new\n"


def test_touched_file_is_served_again(tree: Tree, velo: Velo) -> None:
    """A file whose times changed but not its text gives the same answer."""
    learned(tree, velo)
    (tree / "part.py").touch()

    assert same_as_plain(velo, "app.py").startswith("old")


def test_reverted_edit(tree: Tree, velo: Velo) -> None:
    """Edit, run, take it back, run: each run sees the text of its moment."""
    learned(tree, velo)
    for value in ("new", "old", "new", "old"):
        tree.write({"part.py": f"VALUE = {value!r}\n"})
        assert velo.learn("app.py", env=UNWRITTEN).stdout.startswith(value)


PACKAGE = "VALUE = 'package'\n"
CHANGES: dict[str, Callable[[Tree], object]] = {
    "module becomes package": lambda tree: tree.write({"part.py": None, "part/__init__.py": PACKAGE}),
    "package joins module": lambda tree: tree.write({"part/__init__.py": PACKAGE}),
    "module deleted": lambda tree: tree.write({"part.py": None}),
    "namespace folder beside module": lambda tree: tree.write({"part/inner.py": ""}),
    "namespace instead of module": lambda tree: tree.write({"part.py": None, "part/inner.py": ""}),
    "only bytecode left": lambda tree: (
        tree.write({"part.py": None}),
        (tree / "__pycache__").exists()
        and [each.rename(tree / "part.pyc") for each in (tree / "__pycache__").glob("part.*.pyc")],
    ),
    "source unreadable as text": lambda tree: tree.write({"part.py": b"VALUE = '\xff'\n"}),
    "syntax error": lambda tree: tree.write({"part.py": "VALUE = = 1\n"}),
    "empty file": lambda tree: tree.write({"part.py": ""}),
    "symbolic link": lambda tree: (
        tree.write({"real/part.py": "VALUE = 'linked'\n", "part.py": None}),
        (tree / "part.py").symlink_to("real/part.py"),
    ),
    "dangling link": lambda tree: (tree.write({"part.py": None}), (tree / "part.py").symlink_to("nowhere")),
    "folder of that name": lambda tree: (tree.write({"part.py": None}), (tree / "part.py").mkdir()),
    "bytecode file beside the source": lambda tree: shutil.copy(
        next((tree / "__pycache__").glob("part.*.pyc")), tree / "part.pyc"
    ),
}


@pytest.mark.parametrize("change", ["edited", "deleted", "replaced by a folder"])
def test_target_of_a_link(tree: Tree, velo: Velo, change: str) -> None:
    """What a linked module points to changes; the folder that holds the link does not."""
    tree.write({"app.py": APP["app.py"], "real/part.py": APP["part.py"]})
    (tree / "part.py").symlink_to("real/part.py")
    velo.both("app.py", env=UNWRITTEN)

    if change == "edited":
        tree.write_unnoticed("real/part.py", "VALUE = 'new'\n")
    else:
        tree.write({"real/part.py": None})
        if change == "replaced by a folder":
            (tree / "real/part.py").mkdir()

    same_as_plain(velo, "app.py", env=UNWRITTEN)


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_shape(tree: Tree, velo: Velo, change: str) -> None:
    """Whatever takes a module's place on disk takes it in the program."""
    tree.write(APP | {"app.py": "import part; print(getattr(part, 'VALUE', None), part.__spec__.origin)\n"})
    velo.both("app.py")

    CHANGES[change](tree)

    same_as_plain(velo, "app.py")


def test_package_turned_namespace(tree: Tree, velo: Velo) -> None:
    """A package that loses its `__init__.py` becomes a namespace package, its modules still import."""
    tree.write({"app.py": "import box.thing; print(box.__spec__.origin, box.__path__)"})
    tree.write({"box/__init__.py": "", "box/thing.py": ""})
    velo.both("app.py", served=2)
    tree.write({"box/__init__.py": None})

    assert "NamespacePath" in same_as_plain(velo, "app.py")


def test_package_gains_and_loses_modules(tree: Tree, velo: Velo) -> None:
    """Submodules that appear and vanish are found and missed at once."""
    probe = """
        import importlib, box
        for name in ("a", "b"):
            try:
                print(importlib.import_module("box." + name).__name__)
            except ImportError as error:
                print(error)
        """
    tree.write({"app.py": probe, "box/__init__.py": "", "box/a.py": ""})
    velo.both("app.py", served=2)
    tree.write({"box/b.py": ""})
    same_as_plain(velo, "app.py")
    tree.write({"box/a.py": None})
    same_as_plain(velo, "app.py")
    tree.write({"box/a/__init__.py": ""})

    assert same_as_plain(velo, "app.py") == "box.a\nbox.b\n"


def test_earlier_entry_gains_a_module(tree: Tree, velo: Velo) -> None:
    """A module that appears in an earlier folder of the path hides the one learned from a later folder."""
    tree.write(
        APP | {"app.py": APP["app.py"], "first/unrelated.py": "", "second/part.py": "VALUE = 'second'\n"}
    )
    tree.write({"part.py": None})
    env: dict[str, str | None] = {"PYTHONPATH": f"{tree / 'first'}:{tree / 'second'}"}
    assert velo.both("app.py", env=env).plain.stdout.startswith("second")

    tree.write({"first/part.py": "VALUE = 'first'\n"})
    assert same_as_plain(velo, "app.py", env=env).startswith("first")
    tree.write({"part.py": "VALUE = 'script folder'\n"})
    assert same_as_plain(velo, "app.py", env=env).startswith("script folder")
    tree.write({"part.py": None, "first/part.py": None})
    assert same_as_plain(velo, "app.py", env=env).startswith("second")


def test_project_shadows_the_standard_library(tree: Tree, velo: Velo) -> None:
    """A project's own `textwrap.py` wins over the standard library's, from the moment it appears."""
    tree.write({"app.py": "import textwrap; print(textwrap.__file__)"})
    velo.both("app.py")
    tree.write({"textwrap.py": ""})

    assert str(tree.folder) in same_as_plain(velo, "app.py")


def test_earlier_folder_appears(tree: Tree, velo: Velo) -> None:
    """A folder of the path that did not exist while learning counts once it exists."""
    tree.write({"app.py": APP["app.py"], "second/part.py": "VALUE = 'second'\n"})
    env: dict[str, str | None] = {"PYTHONPATH": f"{tree / 'first'}:{tree / 'second'}"}
    velo.both("app.py", env=env)
    tree.write({"first/part.py": "VALUE = 'first'\n"})

    assert same_as_plain(velo, "app.py", env=env).startswith("first")


def test_moved_project(tree: Tree, velo: Velo) -> None:
    """A project that was moved, with another in its place, is not mistaken for the old one."""
    learned(tree, velo)
    tree.folder.rename(tree.folder.with_name("moved"))
    tree.write(APP | {"part.py": "VALUE = 'new'\n"})

    assert same_as_plain(velo, "app.py").startswith("new")
    assert same_as_plain(velo, str(tree.folder.with_name("moved") / "app.py")).startswith("old")


def test_reinstalled_package(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """An upgraded package in `site-packages`, with times from the archive as installers set them."""
    tree.write({"app.py": "import library, library.deep; print(library.VERSION, library.deep.VERSION)"})
    for version in (1, 2):
        if version == 2:
            shutil.rmtree(site_packages / "library")
        for name in ("library/__init__.py", "library/deep.py"):
            site_packages.write({name: f"VERSION = {version}\n"})
            os.utime(site_packages / name, (315532800, 315532800))

        runs = velo.both("app.py", env=UNWRITTEN, served=2)

        assert runs.second.stdout == f"{version} {version}\n"


def test_two_projects_share_nothing_wrong(tree: Tree, velo: Velo) -> None:
    """Equal file names in two projects, learned into one store, stay apart."""
    for name in ("left", "right"):
        tree.write(
            {f"{name}/app.py": "import part; print(part.VALUE)", f"{name}/part.py": f"VALUE = {name!r}\n"}
        )
    for name in ("left", "right", "left", "right"):
        result = velo.learn("app.py", cwd=tree / name)
        assert result.stdout == f"{name}\n"
    assert velo.run("app.py", cwd=tree / "left").served >= 1
    assert velo.run("app.py", cwd=tree / "right").served >= 1


def test_equal_text_at_two_places(tree: Tree, velo: Velo) -> None:
    """Two files of the same text share bytecode, and each still knows its own name."""
    text = "import sys\n"
    text += "def where():\n    return where.__code__.co_filename, sys._getframe().f_code.co_filename\n"
    tree.write({"app.py": "import a, b; print(a.where(), b.where())", "a.py": text, "b.py": text})

    velo.both("app.py", served=2)


def test_future_times(tree: Tree, velo: Velo) -> None:
    """Files from the future, as a wrong clock leaves them, are learned and edits to them are seen."""
    learned(tree, velo)
    ahead = time.time() + 86400 * 365
    os.utime(tree / "part.py", (ahead, ahead))
    assert same_as_plain(velo, "app.py").startswith("old")
    tree.write_unnoticed("part.py", "VALUE = 'new'\n")

    assert velo.run("app.py", env=UNWRITTEN).stdout.split()[0] in (
        "new",
        velo.plain("app.py").stdout.split()[0],
    )


def test_touched_source_is_read_once(tree: Tree, velo: Velo) -> None:
    """A source whose times have moved and whose content has not (another environment was linked to the same
    file) is read and compared at the next start, and not at every start after that.
    """
    tree.write(
        {
            "app.py": """
                import sys
                opened = []
                sys.addaudithook(lambda name, args: opened.append(args[0]) if name == "open" else None)
                import part
                print(part.VALUE, [path for path in opened if str(path).endswith("part.py")])
                """,
            "part.py": "VALUE = 1\n",
        }
    )
    velo.plain("app.py")
    plain = velo.plain("app.py")
    velo.learn("app.py")
    os.link(tree / "part.py", tree / "linked")  # changes the inode's ctime
    (tree / "linked").unlink()

    touched = velo.learn("app.py")
    after = velo.learn("app.py")

    assert (touched.served, after.served) == (1, 1)
    assert touched.stdout != plain.stdout, "nothing was touched, so nothing was tried"
    assert after.answer == plain.answer


def test_package_linked_from_another_version(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """A new version as uv installs it: hard links into its cache, of the old one's size and times."""
    tree.write({"app.py": "import library, library.deep; print(library.VERSION, library.deep.VERSION)"})
    for version in (1, 2, 1):
        shutil.rmtree(site_packages / "library", ignore_errors=True)
        (site_packages / "library").mkdir()
        for name in ("__init__.py", "deep.py"):
            cached = tree / f"cache-{version}-{name}"
            if not cached.exists():
                cached.write_text(f"VERSION = {version}\n")
                os.utime(cached, (315532800, 315532800))
            os.link(cached, site_packages / "library" / name)

        runs = velo.both("app.py", env=UNWRITTEN, served=2)

        assert runs.second.stdout == f"{version} {version}\n"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_checkout(tree: Tree, velo: Velo) -> None:
    """Branches that differ in text, in modules and in what is a package: each is seen at once."""

    def git(*words: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "init.defaultBranch=one"]
        subprocess.run(["git", *who, *words], cwd=tree.folder, check=True, capture_output=True)

    show = "import part, box; print(part.VALUE, box.VALUE, getattr(box, '__path__', None))\n"
    tree.write({"app.py": show, "part.py": "VALUE = 'one'\n", "box.py": "VALUE = 'file'\n"})
    git("init", "-q")
    git("add", "app.py", "part.py", "box.py")
    git("commit", "-qm", "one")
    git("checkout", "-qb", "two")
    tree.write({"part.py": "VALUE = 'two'\n", "box.py": None, "box/__init__.py": "VALUE = 'folder'\n"})
    git("add", "-A", "part.py", "box.py", "box/__init__.py")
    git("commit", "-qm", "two")
    for branch in ("two", "one", "two", "one"):
        git("checkout", "-q", branch)
        answer = velo.run("app.py", env=UNWRITTEN).answer
        assert (
            answer == velo.plain("app.py", env=UNWRITTEN).answer == velo.learn("app.py", env=UNWRITTEN).answer
        )
        assert answer[0].startswith(branch)


def test_native_module_beside_a_source(tree: Tree, velo: Velo, base_python: Path) -> None:
    """A compiled module that appears beside its source wins, and the source does once it is gone."""
    tree.write(
        {"app.py": "import xxlimited; print(xxlimited.__file__, type(xxlimited.__loader__).__mro__[-3:])"}
    )
    tree.write({"xxlimited.py": "VALUE = 'source'\n"})
    ask = "import sys; print(*sys.path, sep=chr(10))"
    folders = subprocess.check_output([base_python, "-c", ask], text=True).split("\n")
    found = [path for folder in folders if folder for path in Path(folder).glob("xxlimited.*.so")]
    if not found:
        pytest.skip("this Python has no xxlimited")
    assert velo.both("app.py").second.stdout.startswith(str(tree / "xxlimited.py"))

    shutil.copy(found[0], tree / found[0].name)
    assert ".so" in same_as_plain(velo, "app.py")
    (tree / found[0].name).unlink()
    assert same_as_plain(velo, "app.py").startswith(str(tree / "xxlimited.py"))


@pytest.mark.parametrize("check", ["root", "none"])
def test_what_the_other_checks_promise(tree: Tree, velo: Velo, site_packages: Tree, check: str) -> None:
    """`root`: whatever changes is seen by the next program if the folder on the path has changed as well, as
    it does when something is installed, and by a running one after `invalidate_caches`. `none`: only after an
    ingest. Neither asks about the file itself.
    """
    env: dict[str, str | None] = {"VELO_CHECK": check, "PYTHONDONTWRITEBYTECODE": "1", "VELO_READONLY": "1"}
    site_packages.write({"library/__init__.py": "", "library/deep.py": "VALUE = 1\n"})
    tree.write(
        {
            "app.py": "from library.deep import VALUE; print(VALUE)\n",
            "long.py": """
                import importlib, sys
                import library.deep
                first = library.deep.VALUE
                open(library.deep.__file__, "w").write("VALUE = 3\\n")
                open(sys.argv[1], "w").close()
                importlib.invalidate_caches()
                del sys.modules["library.deep"], sys.modules["library"]
                import library.deep
                print(first, library.deep.VALUE)
                """,
        }
    )
    velo.ingest(velo.python.parents[1])
    assert velo.run("app.py", env=env).stdout == "1\n"
    site_packages.write({"library/deep.py": "VALUE = 2\n"})
    assert velo.run("app.py", env=env).stdout == "1\n", "the file was asked after all"
    site_packages.write({"library-2.dist-info/METADATA": ""})
    assert velo.run("app.py", env=env).stdout == {"root": "2\n", "none": "1\n"}[check]

    velo.ingest(velo.python.parents[1])
    assert velo.run("app.py", env=env).stdout == "2\n"
    marker = site_packages / "library-3.pth"
    assert velo.run("long.py", marker, env=env).stdout == {"root": "2 3\n", "none": "2 2\n"}[check]

# SPDX-License-Identifier: Apache-2.0
"""Where modules may come from: editable installs, `.pth` files, archives, namespaces, a moving path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

SHOW = """
    import importlib, sys
    for name in sys.argv[1:]:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            print(type(error).__name__, error)
        else:
            spec = module.__spec__
            print(name, spec.origin, list(module.__path__) if hasattr(module, "__path__") else None)
    print(sys.path)
    """


@pytest.mark.core
def test_site_packages(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """Installed packages, a sub-package and a single-file module."""
    site_packages.write({"library/__init__.py": "", "library/sub/__init__.py": "", "library/sub/deep.py": ""})
    site_packages.write({"single.py": ""})
    tree.write({"app.py": SHOW})

    velo.both("app.py", "library.sub.deep", "single", "library.missing", served=4)


@pytest.mark.core
def test_editable_install_by_path_file(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """An editable install as pip makes it for simple layouts: a `.pth` file that names the source folder."""
    tree.write({"app.py": SHOW, "checkout/src/mine/__init__.py": "", "checkout/src/mine/part.py": ""})
    site_packages.write({"__editable__.mine-1.0.pth": f"{tree / 'checkout/src'}\n"})
    velo.both("app.py", "mine.part", served=2)
    tree.write({"checkout/src/mine/later.py": "", "checkout/src/mine/part.py": "# edited\n"})

    velo.both("app.py", "mine.part", "mine.later", served=3)


FINDER = """
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import spec_from_file_location
    from pathlib import Path

    MAPPING = {"mine": SOURCE}

    class EditableFinder:
        @classmethod
        def find_spec(cls, fullname, path=None, target=None):
            if fullname in MAPPING:
                folder = Path(MAPPING[fullname])
                return spec_from_file_location(fullname, folder / "__init__.py",
                                               submodule_search_locations=[str(folder)])

    def install():
        sys.meta_path.append(EditableFinder)
    """


def test_editable_install_by_finder(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """An editable install as setuptools makes it: a finder at the end of `sys.meta_path` maps the name."""
    tree.write({"app.py": SHOW, "src/deep/mine/__init__.py": "", "src/deep/mine/part.py": ""})
    site_packages.write(
        {
            "__editable___mine_finder.py": FINDER.replace("SOURCE", repr(str(tree / "src/deep/mine"))),
            "__editable__.mine.pth": "import __editable___mine_finder; __editable___mine_finder.install()\n",
        }
    )

    velo.both("app.py", "mine.part", served=1)


def test_path_files(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """`.pth` files: folders, files that do not exist, comments, code lines, a chain, an error."""
    tree.write({"app.py": SHOW, "one/first.py": "", "two/second.py": ""})
    site_packages.write(
        {
            "a.pth": f"# comment\n{tree / 'one'}\n{tree / 'missing'}\n\n",
            "b.pth": f"import sys; sys.path.append({str(tree / 'two')!r})\n",
        }
    )

    velo.both("app.py", "first", "second", served=2)


def test_broken_path_file(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """A `.pth` file that raises is reported by Python in the same words."""
    site_packages.write({"broken.pth": "import no_such_module_at_all\n"})
    tree.write({"app.py": SHOW, "part.py": ""})

    velo.both("app.py", "part")


def test_archives(tree: Tree, velo: Velo) -> None:
    """Modules from a zip file on the path, before and behind ordinary folders; data and tracebacks too."""
    inside = {"packed/__init__.py": "", "packed/part.py": "def fail():\n    raise ValueError('inside')\n"}
    archive = tree.archive("library.zip", inside)
    tree.write(
        {"app.py": SHOW, "lib/plain.py": "", "fail.py": "import packed.part, plain; packed.part.fail()"}
    )
    for order in ([archive, tree / "lib"], [tree / "lib", archive], [archive / "packed", tree / "lib"]):
        env = {"PYTHONPATH": ":".join(map(str, order))}
        # Behind an archive nothing is served: only the archive's own importer can say what it holds.
        velo.both("app.py", "packed.part", "part", "plain", env=env, served=order[0] == tree / "lib")
    velo.both("fail.py", env=env | {"PYTHONPATH": f"{archive}:{tree / 'lib'}"}, served=0)


@pytest.mark.core
def test_namespace_package_over_two_roots(tree: Tree, velo: Velo) -> None:
    """One namespace, portions in two folders: both are found, in order, and a third joins later."""
    tree.write({"app.py": SHOW, "one/space/left.py": "", "two/space/right.py": "", "three/other.py": ""})
    env = {"PYTHONPATH": ":".join(str(tree / name) for name in ("one", "two", "three"))}
    velo.both("app.py", "space.left", "space.right", "space.more", env=env, served=2)
    tree.write({"three/space/more.py": "", "one/space/deep/inner.py": ""})

    velo.both("app.py", "space.left", "space.more", "space.deep.inner", env=env, served=3)


def test_regular_package_behind_namespace_portion(tree: Tree, velo: Velo) -> None:
    """A regular package in a later folder wins over a bare folder in an earlier one."""
    tree.write(
        {"app.py": SHOW, "one/thing/data.txt": "", "two/thing/__init__.py": "", "two/thing/part.py": ""}
    )
    env = {"PYTHONPATH": f"{tree / 'one'}:{tree / 'two'}"}
    velo.both("app.py", "thing.part", env=env, served=2)
    tree.write({"one/thing/__init__.py": ""})

    velo.both("app.py", "thing.part", env=env)


def test_legacy_namespace_packages(tree: Tree, velo: Velo) -> None:
    """`pkgutil.extend_path` joins the portions of a package."""
    extend = "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n"
    tree.write({"one/shared/__init__.py": extend, "two/shared/__init__.py": extend, "app.py": SHOW})
    tree.write({"one/shared/left.py": "", "two/shared/right.py": ""})

    velo.both(
        "app.py",
        "shared.left",
        "shared.right",
        env={"PYTHONPATH": f"{tree / 'one'}:{tree / 'two'}"},
        served=3,
    )


@pytest.mark.core
def test_path_changes_at_run_time(tree: Tree, velo: Velo) -> None:
    """Folders added, moved and removed while the program runs decide as they do in plain Python."""
    tree.write(
        {
            "app.py": """
                import importlib, sys

                def show():
                    sys.modules.pop("part", None)
                    try:
                        import part
                        print(part.WHERE)
                    except ImportError as error:
                        print(error)

                show()
                sys.path.append("two"); show()
                sys.path.insert(0, "one"); show()
                sys.path.reverse(); show()
                sys.path = ["two"] + sys.path; show()
                sys.path.remove("two"); show()
                sys.path[:] = [entry for entry in sys.path if entry not in ("one", "two")]; show()
                sys.path.append(b"one"); show()
                sys.path.append(None); show()
                """,
            "one/part.py": "WHERE = 1, __file__\n",
            "two/part.py": "WHERE = 2, __file__\n",
        }
    )

    velo.both("app.py", served=1)


def test_package_path_changes_at_run_time(tree: Tree, velo: Velo) -> None:
    """A package that edits its own `__path__` finds its modules where it says."""
    tree.write(
        {
            "app.py": "import box.far, box.near; print(box.far.__file__, box.near.__file__)",
            "box/__init__.py": "import os\nhere = os.path.dirname(__file__)\n"
            "__path__.insert(0, os.path.join(here, 'elsewhere'))\n",
            "box/near.py": "",
            "box/elsewhere/far.py": "",
        }
    )

    velo.both("app.py", served=3)


def test_relative_entries_and_changing_folders(tree: Tree, velo: Velo) -> None:
    """Relative path entries follow `os.chdir`, and the empty entry is the current folder of the moment."""
    tree.write(
        {
            "app.py": """
                import os, sys
                sys.path[:0] = ["", "lib", "./lib/../lib", "lib/"]
                for folder in ("here", "there"):
                    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), folder))
                    for name in ("part", "inner"):
                        sys.modules.pop(name, None)
                        module = __import__(name)
                        print(module.__file__, module.__spec__.cached, module.VALUE)
                """,
            "here/part.py": "VALUE = 1\n",
            "there/part.py": "VALUE = 2\n",
            "here/lib/inner.py": "VALUE = 3\n",
            "there/lib/inner.py": "VALUE = 4\n",
        }
    )

    velo.both("app.py")


def test_deleted_current_folder(tree: Tree, velo: Velo) -> None:
    """A program whose current folder has gone goes on importing from elsewhere."""
    tree.write(
        {
            "app.py": """
                import os, sys
                os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
                sys.path.insert(0, "")
                import part
                print(part.__file__)
                """,
            "part.py": "",
        }
    )

    velo.both("app.py")


@pytest.mark.core
def test_invalidate_caches(tree: Tree, velo: Velo) -> None:
    """A module written by the program itself is found after `importlib.invalidate_caches()`."""
    tree.write(
        {
            "app.py": """
                import importlib, os, sys, known
                try:
                    import fresh
                except ImportError as error:
                    print(error)
                open("fresh.py", "w").write("VALUE = 1\\n")
                importlib.invalidate_caches()
                import fresh
                print(fresh.VALUE, fresh.__file__)
                os.makedirs("parcel")
                open("parcel/__init__.py", "w").write("VALUE = 2\\n")
                importlib.invalidate_caches()
                import parcel
                print(parcel.VALUE)
                del sys.modules["parcel"]
                os.remove("parcel/__init__.py")
                importlib.invalidate_caches()
                import parcel
                print(parcel.__spec__.origin)
                """,
            "known.py": "",
        }
    )

    def tidy() -> None:
        tree.forget_bytecode()
        for name in ("fresh.py", "parcel"):
            if (tree / name).exists():
                tree.write({name: None})

    tidy()
    velo.both("app.py", between=tidy)


def test_written_module_without_invalidation(tree: Tree, velo: Velo) -> None:
    """A module written into a folder that was never listed is found without further ado."""
    tree.write(
        {
            "app.py": """
                import os, sys, known
                os.makedirs("made")
                open("made/fresh.py", "w").write("VALUE = 1\\n")
                sys.path.insert(0, "made")
                import fresh
                print(fresh.VALUE)
                """,
            "known.py": "",
        }
    )

    def tidy() -> None:
        if (tree / "made").exists():
            tree.write({"made": None})

    tidy()
    velo.both("app.py", between=tidy)


def test_path_hooks_of_the_user(tree: Tree, velo: Velo) -> None:
    """A program's own path hook is asked for folders it claims, as if Velo were not there."""
    tree.write(
        {
            "app.py": """
                import sys, importlib.util, importlib.machinery, early

                class Finder(importlib.machinery.FileFinder):
                    def find_spec(self, name, target=None):
                        print("asked for", name)
                        return super().find_spec(name, target)

                def hook(path):
                    if not path.endswith("special"):
                        raise ImportError
                    return Finder(path, (importlib.machinery.SourceFileLoader, [".py"]))

                sys.path_hooks.insert(0, hook)
                sys.path.insert(0, "special")
                import claimed
                import late
                print(claimed.__file__, late.__file__)
                """,
            "early.py": "",
            "late.py": "",
            "special/claimed.py": "",
        }
    )

    velo.both("app.py", served=0)


def test_path_hook_in_front_from_the_start(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """An editable install as meson-python makes it: a `.pth` file puts a hook in front that only wants paths
    of its own. It is asked for every folder, as without Velo, and everything else is served.
    """
    site_packages.write(
        {
            "editable.pth": "import _editable_loader\n",
            "_editable_loader.py": """
                import sys
                from importlib.machinery import ModuleSpec, SourceFileLoader
                from importlib.util import spec_from_file_location
                asked = []
                class Finder:
                    @staticmethod
                    def find_spec(name, path=None, target=None):
                        if name == "box":
                            place = ["marker/box"]
                            return spec_from_file_location(
                                name, "source/box.py", submodule_search_locations=place)
                class Entries:
                    def find_spec(self, name, target=None):
                        if name == "box.part":
                            return spec_from_file_location(name, "source/part.py")
                def hook(path):
                    asked.append(path)
                    if path.startswith("marker/"):
                        return Entries()
                    raise ImportError
                sys.meta_path.insert(0, Finder)
                sys.path_hooks.insert(0, hook)
                """,
        }
    )
    tree.write(
        {
            "app.py": """
                import _editable_loader, os, sys
                import early, json, box.part, pack.inner
                here = os.path.dirname(os.path.abspath(__file__))
                print(box.part.VALUE, early.__file__, pack.inner.__spec__.origin)
                print([path for path in _editable_loader.asked if path.startswith((here, "marker"))])
                """,
            "early.py": "",
            "pack/__init__.py": "",
            "pack/inner.py": "",
            "source/box.py": "",
            "source/part.py": "VALUE = 1\n",
        }
    )

    runs = velo.both("app.py", served=5)

    assert "marker/box" in runs.second.stdout


def test_meta_path_finder_of_the_user(tree: Tree, velo: Velo) -> None:
    """A program's own finder in front sees every name; one that wraps PathFinder gets its answers."""
    tree.write(
        {
            "app.py": """
                import sys, importlib.machinery as machinery
                seen = []

                class Watcher:
                    @staticmethod
                    def find_spec(name, path=None, target=None):
                        seen.append(name)
                        if name == "wrapped":
                            spec = machinery.PathFinder.find_spec(name, path, target)
                            assert type(spec.loader) is machinery.SourceFileLoader, type(spec.loader)
                            spec.loader_state = "mine"
                            return spec

                sys.meta_path.insert(0, Watcher)
                import wrapped, ordinary, box.part
                print(seen, wrapped.__spec__.loader_state)
                """,
            "wrapped.py": "",
            "ordinary.py": "",
            "box/__init__.py": "",
            "box/part.py": "",
        }
    )

    velo.both("app.py", served=3)


def test_cached_importers_of_the_user(tree: Tree, velo: Velo) -> None:
    """An importer that the program put into `sys.path_importer_cache` answers for its folder."""
    tree.write(
        {
            "app.py": """
                import sys, types, importlib.machinery as machinery, early

                class Importer:
                    def find_spec(self, name, target=None):
                        if name == "magic":
                            return machinery.ModuleSpec(name, self, origin="magic")
                    def create_module(self, spec): return None
                    def exec_module(self, module): module.VALUE = "made up"

                sys.path_importer_cache[sys.path[0]] = Importer()
                import magic
                print(magic.VALUE)
                try:
                    import late
                except ImportError as error:
                    print(error)
                """,
            "early.py": "",
            "late.py": "",
            "magic.py": "VALUE = 'on disk'\n",
        }
    )

    velo.both("app.py", served=0)


def test_extension_modules(tree: Tree, velo: Velo) -> None:
    """Native modules of the standard library load from their true path, with the stock loader's look."""
    tree.write(
        {
            "app.py": """
                import importlib, sys
                for name in ("_ctypes", "_decimal", "_lzma", "_elementtree", "_sqlite3"):
                    try:
                        module = importlib.import_module(name)
                    except ImportError as error:
                        print(name, error)
                    else:
                        spec = module.__spec__
                        print(name, spec.origin, spec.cached, type(module.__loader__).__mro__[-3:])
                """
        }
    )

    velo.both("app.py", served=0)


def test_module_names_of_all_kinds(tree: Tree, velo: Velo) -> None:
    """Names in other alphabets, names that only `import_module` can spell, names that differ in case."""
    names = ["größe", "变量", "with-dash", "a b", "Upper", "upper", "x" * 200]
    tree.write({"app.py": SHOW, **{f"{name}.py": "" for name in names}})

    velo.both("app.py", *names, "UPPER", "Größe", served=len(names))


def test_names_that_are_not_text(tree: Tree, velo: Velo) -> None:
    """Folders and files whose names are not UTF-8, on the path and beside modules."""
    odd = Path(str(tree.folder) + "/caf\udce9")
    Tree(odd).write({"part.py": "", "gar\udce7on.py": ""})
    tree.write(
        {"app.py": f"import sys\nsys.path.insert(0, {str(odd)!r})\nimport part; print(ascii(part.__file__))"}
    )

    velo.both("app.py")


def test_many_path_entries(tree: Tree, velo: Velo) -> None:
    """Fifty folders on the path; the one wanted is the last."""
    folders = [f"lib{number:02}" for number in range(50)]
    tree.write({f"{folder}/only_{folder}.py": "" for folder in folders} | {"app.py": SHOW})

    velo.both(
        "app.py",
        "only_lib49",
        "only_lib00",
        "missing",
        env={"PYTHONPATH": ":".join(str(tree / folder) for folder in folders)},
        served=2,
    )


def test_symbolic_link_loop(tree: Tree, velo: Velo) -> None:
    """A package that links to its own parent is imported through the link, however deep."""
    tree.write({"app.py": SHOW, "box/__init__.py": "", "box/part.py": ""})
    (tree / "box/loop").symlink_to("..")
    tree.ingest()

    velo.both("app.py", "box.part", "box.loop.box.part", served=3)

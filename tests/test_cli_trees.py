# SPDX-License-Identifier: Apache-2.0
"""`velo manifest tree`, `diff`, `export`: folders named, compared and made again, as users meet them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

APP = {
    "app.py": "import shop.cart; print(shop.cart.total)",
    "shop/__init__.py": "",
    "shop/cart.py": "total = 3",
    "data/large.bin": bytes(range(256)) * 2000,
    "notes.txt": "no code",
}


@pytest.fixture
def app(tree: Tree) -> Tree:
    """A small project with links, a tool and an empty folder, ingested."""
    tree.write(APP)
    (tree / "tool").write_text("#!/bin/sh\n")
    (tree / "tool").chmod(0o755)
    (tree / "empty").mkdir()
    (tree / "lib").symlink_to("shop")
    (tree / "alias.py").symlink_to("app.py")
    (tree / "broken").symlink_to("/no/such/place")
    return tree.ingest()


def seen(folder: Path) -> dict[str, object]:
    """What a program can see below a folder: content, links, executable bits, mtimes; no bytecode caches."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        if "__pycache__" in path.parts:
            continue
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = None
        else:
            status = path.stat()
            found[name] = path.read_bytes(), status.st_mode & 0o111, status.st_mtime_ns
    return found


def test_an_ingested_folder_can_be_made_again(velo: Velo, app: Tree) -> None:
    """Export after ingest: the same files, links, executable bits and times; and the program runs."""
    target = velo.folder / "again"
    result = velo.command("manifest", "export", target, "--manifest", app.folder)

    assert result.code == 0, result.stderr
    assert result.stderr == ""
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "target",
        "files",
        "links",
        "content",
        "time",
    ]
    assert seen(target) == seen(app.folder)
    assert velo.plain(target / "app.py").answer == ("3\n", "", 0)
    assert velo.plain(target / "alias.py").answer == ("3\n", "", 0)


def test_equal_folders_have_one_id(velo: Velo, app: Tree) -> None:
    """As ingested, as it is on disk, exported: one id. One changed byte: another."""
    target = velo.folder / "again"
    velo.command("manifest", "export", target)
    ids = {
        velo.command("manifest", "tree", which).stdout
        for which in (app.folder, f"disk:{app.folder}", f"disk:{target}")
    }
    (target / "notes.txt").write_text("nO code")

    (name,) = ids
    assert name.startswith("tree:") and len(name) == 70
    assert velo.command("manifest", "tree", f"disk:{target}").stdout != name


def test_export_json_has_every_figure(velo: Velo, app: Tree) -> None:
    target = velo.folder / "again"
    document = velo.command("manifest", "export", target, "--json").json

    promised = {"schema", "target", "manifest", "folder", "tree", "files", "folders", "links", "bytes"}
    assert promised | {"hardlinked", "cloned", "copied", "written", "seconds", "left_out"} <= set(document)
    assert document["files"] == 6 and document["folders"] == 3 and document["links"] == 3
    assert document["hardlinked"] + document["cloned"] + document["copied"] == 1
    assert document["folder"] == str(app.folder)


def test_hardlink_mode_is_read_only_and_one_with_the_store(velo: Velo, app: Tree) -> None:
    """`--link-mode` as uv has it; the large file is the store's own, so nobody may write to it."""
    target = velo.folder / "again"
    document = velo.command("manifest", "export", target, "--link-mode", "hardlink", "--json").json

    assert (document["hardlinked"], document["written"]) == (1, 5)
    assert (target / "data/large.bin").stat().st_nlink == 2
    assert all(path.stat().st_mode & 0o222 == 0 for path in target.rglob("*") if path.is_file())
    shutil.rmtree(target)
    assert velo.command("manifest", "export", target, "--link-mode", "symlink").code == 2


def test_diff_says_what_has_changed_since(velo: Velo, app: Tree) -> None:
    """Added, removed, changed; content, bits, links, kinds; by path, with exit code 1."""
    app.write({"shop/cart.py": "total = 4", "new.txt": "new", "notes.txt": None})
    (app / "app.py").chmod(0o755)
    (app / "lib").unlink()
    (app / "lib").symlink_to("data")
    (app / "empty").rmdir()
    result = velo.command("manifest", "diff", app.folder, f"disk:{app.folder}")
    document = velo.command("manifest", "diff", app.folder, f"disk:{app.folder}", "--json")

    rows = [line.split()[:2] for line in result.stdout.splitlines()]
    assert rows == [
        ["change", "path"],
        ["changed", "app.py"],
        ["removed", "empty"],
        ["changed", "lib"],
        ["added", "new.txt"],
        ["removed", "notes.txt"],
        ["changed", "shop/cart.py"],
    ]
    assert result.stderr == "1 added, 2 removed, 3 changed\n"
    assert (result.code, document.code) == (1, 1)


def test_nothing_changed_is_no_output_and_exit_code_0(velo: Velo, app: Tree) -> None:
    """Times do not count unless they are asked for."""
    os.utime(app / "app.py", (1, 1))
    quiet = velo.command("manifest", "diff", app.folder, f"disk:{app.folder}")
    times = velo.command("manifest", "diff", app.folder, f"disk:{app.folder}", "--times", "--json")

    assert quiet.answer == ("", "no differences\n", 0)
    assert times.code == 1
    assert '"path": "app.py"' in times.stdout and '"changed": 1' in times.stdout


def test_a_kept_tree_can_be_brought_back(velo: Velo, app: Tree) -> None:
    """Kept by id; the folder goes on, is ingested again, and the old state is compared and exported."""
    before = seen(app.folder)
    name = velo.command("manifest", "tree", "--keep", "--times").stdout.strip()
    app.write({"shop/cart.py": "total = 5", "notes.txt": None})
    app.ingest()
    short = name[: len("tree:") + 8]

    changed = velo.command("manifest", "diff", short, app.folder, "--times", "--json").stdout
    assert '"removed": 1' in changed and '"path": "shop/cart.py"' in changed
    velo.command("manifest", "export", velo.folder / "old", "--manifest", short)
    assert seen(velo.folder / "old") == before


def test_a_kept_tree_is_protected_until_it_is_given_up(velo: Velo, app: Tree) -> None:
    """What only the tree needs survives a collection; `velo gc --forget tree:ID` lets go of it."""
    name = velo.command("manifest", "tree", "--keep").stdout.strip()
    app.write({"data/large.bin": b"other", "notes.txt": None}).ingest()
    short = name[: len("tree:") + 8]

    assert velo.command("gc", "--yes", "--grace", "0s").code == 0
    assert velo.command("manifest", "export", velo.folder / "old", "--manifest", short).code == 0
    assert velo.command("gc", "--yes", "--grace", "0s", "--forget", "tree:00000000").code == 2
    collected = velo.command("gc", "--yes", "--grace", "0s", "--forget", short)
    assert collected.code == 0, collected.stderr
    result = velo.command("manifest", "export", velo.folder / "older", "--manifest", short)
    assert result.code == 2 and f"no tree begins with {short[5:]}" in result.stderr
    assert velo.command("manifest", "export", velo.folder / "new").code == 0


def test_names_of_trees_are_checked(velo: Velo, app: Tree) -> None:
    """Too short, unknown, content that is no tree: exit code 2 and a hint; the id of a blob is refused."""
    listed = velo.command("manifest", "query", app / "notes.txt", "--json").json["found"]
    blob = listed[0]["digest"].removeprefix("blob:")
    for name in ("tree:1234567", "tree:00000000", f"tree:{blob}", "tree:xyz", "tree:"):
        result = velo.command("manifest", "tree", name)
        assert result.code == 2, (name, result.stderr)
        assert "\nhint: " in result.stderr


def test_content_is_found_by_its_digest(velo: Velo, app: Tree) -> None:
    """`blob:` and eight digits: every path that holds it; a link is shown with its text."""
    app.write({"copy/cart.py": APP["shop/cart.py"]}).ingest()
    (found,) = velo.command("manifest", "query", app / "shop/cart.py", "--json").json["found"]
    short = found["digest"][: len("blob:") + 8]

    paths = [each["path"] for each in velo.command("manifest", "query", short, "--json").json["found"]]
    assert paths == [str(app / "copy/cart.py"), str(app / "shop/cart.py")]
    (alias,) = velo.command("manifest", "query", app / "alias.py", "--json").json["found"]
    assert (alias["link"], found["link"]) == ("app.py", "")
    nowhere = velo.command("manifest", "query", "blob:00000000")
    assert (nowhere.code, nowhere.stderr) == (1, "not in any manifest: blob:00000000\n")
    assert velo.command("manifest", "query", "blob:123").code == 2


def test_names_that_steer_terminals_are_escaped(velo: Velo, tree: Tree) -> None:
    """A file may be called anything; what is printed is one line without control characters."""
    for name in (b"a\nb\x1b[31m.txt", b"\xff\xfe.txt"):
        (tree / os.fsdecode(name)).write_text("x")
    (velo.folder / "none").mkdir()
    result = velo.command("manifest", "diff", f"disk:{velo.folder}/none", f"disk:{tree.folder}")

    assert "a\\nb\\x1b[31m.txt" in result.stdout and "\\xff\\xfe.txt" in result.stdout
    assert "\x1b" not in result.stdout and len(result.stdout.splitlines()) == 3


def test_comparing_folders_needs_no_store(velo: Velo, tree: Tree) -> None:
    """Nor does it make one."""
    tree.write({"a/x": "1", "b/x": "2"})
    result = velo.command("manifest", "diff", f"disk:{tree / 'a'}", f"disk:{tree / 'b'}", "--json")

    assert result.code == 1
    assert not velo.home.exists()


def test_which_folder_is_meant(velo: Velo, app: Tree) -> None:
    """Two ingested folders share a manifest: a folder chooses, a key alone is refused with the choice."""
    environment = velo.python.parents[1]
    velo.ingest(environment)
    key = velo.command("manifest", "list", "--json").json["manifests"][0]["key"]

    by_key = velo.command("manifest", "tree", key)
    chosen = velo.command("manifest", "tree", key, "--folder", app / "shop", "--json").json
    inside = velo.command("manifest", "tree", app / "shop", "--json").json
    whole = velo.command("manifest", "tree", environment, "--json").json
    nowhere = velo.command("manifest", "tree", key, "--folder", velo.folder)
    twice = velo.command("manifest", "tree", f"disk:{app.folder}", "--folder", app / "shop")
    compared = velo.command("manifest", "diff", key, f"disk:{app / 'shop'}", "--folder", app / "shop")

    assert by_key.code == 2
    assert str(app.folder) in by_key.stderr and str(environment) in by_key.stderr
    assert chosen["tree"] == inside["tree"] and chosen["files"] == 2
    assert whole["folder"] == str(environment)
    assert twice.code == 2 and "is one folder" in twice.stderr
    assert compared.answer == ("", "no differences\n", 0)
    assert nowhere.code == 2 and "\nhint: it describes " in nowhere.stderr


def test_an_environment_comes_back_with_its_links(velo: Velo, site_packages: Tree) -> None:
    """`bin/python` stays a link, and the copy works where it stands."""
    site_packages.write({"shop.py": "total = 3"})
    environment = velo.python.parents[1]
    velo.ingest(environment)
    velo.command("manifest", "export", velo.folder / "again", "--manifest", environment)
    copy = velo.folder / "again"

    assert seen(copy) == seen(environment)
    assert os.readlink(copy / "bin/python") == os.readlink(velo.python)
    again = Velo(velo.folder, copy / "bin/python", velo.cwd)
    assert again.plain("-c", "import shop, sys; print(shop.total, sys.prefix)").stdout == f"3 {copy}\n"


def test_another_ingest_takes_nothing_away(velo: Velo, app: Tree, site_packages: Tree) -> None:
    """An environment, then a project of it: the project's search path leads through the environment, whose
    data files, metadata and links stay in its tree. What has changed since is named.
    """
    site_packages.write({"shop.py": "total = 3", "shop.txt": "3", "shop-1.dist-info/METADATA": "Name: shop"})
    (site_packages / "till").symlink_to("shop-1.dist-info")
    environment = velo.python.parents[1]
    velo.ingest(environment)
    app.write({"new.py": ""}).ingest()

    compared = velo.command("manifest", "diff", environment, f"disk:{environment}")
    assert compared.answer == ("", "no differences\n", 0)
    assert velo.command("manifest", "export", velo.folder / "again", "--manifest", environment).code == 0
    assert seen(velo.folder / "again") == seen(environment)

    site_packages.write({"shop.txt": "thirty"})
    app.write({"newer.py": ""}).ingest()
    document = velo.command("manifest", "tree", environment, "--json").json
    assert document["left_out"] == [str(site_packages / "shop.txt")]


def test_a_folder_that_was_only_looked_through_is_said_to_be(
    velo: Velo, tree: Tree, site_packages: Tree
) -> None:
    """A project's search path is in its manifest, modules only; nobody takes that for the whole folder."""
    site_packages.write({"shop.py": "total = 3", "shop.txt": "3"})
    tree.write({"app.py": "import shop"}).ingest()

    result = velo.command("manifest", "tree", site_packages.folder)
    document = velo.command("manifest", "tree", site_packages.folder, "--json").json
    whole = velo.command("manifest", "tree", "--json").json
    assert f"hint: run `velo ingest {site_packages.folder}`" in result.stderr
    assert (document["missing"], whole["missing"]) == (1, 0)
    assert (
        velo.command("manifest", "export", velo.folder / "out", "--manifest", site_packages.folder).code == 10
    )


def test_what_was_only_learned_is_no_folder(velo: Velo, tree: Tree) -> None:
    """A learned manifest knows imported modules; the answer is to ingest."""
    tree.write(APP)
    velo.learn("app.py")
    result = velo.command("manifest", "export", velo.folder / "out", "--manifest", velo.python.parents[1])

    assert result.code == 2
    assert "was learned, not ingested" in result.stderr and "hint: run `velo ingest` on it" in result.stderr


def test_what_an_ingest_leaves_out_is_no_difference(velo: Velo, app: Tree) -> None:
    """Secrets, histories, caches, another environment: not in the manifest, and not missed in it either."""
    app.write(
        {
            ".env": "PASSWORD=1",
            "notes.key": "-",
            "key.txt": "-----BEGIN PRIVATE KEY-----\n",
            ".git/config": "",
            "node_modules/a/index.js": "",
            "other/pyvenv.cfg": "",
            "other/lib.py": "",
            "shop/__pycache__/cart.pyc": "",
        }
    )
    (app / "settings").symlink_to(".env")
    (app / "server.key").symlink_to("notes.txt")
    app.ingest()
    result = velo.command("manifest", "diff", app.folder, f"disk:{app.folder}")
    assert result.answer == ("", "no differences\n", 0)
    velo.command("manifest", "export", velo.folder / "out")
    assert os.readlink(velo.folder / "out/settings") == ".env"
    assert not os.path.lexists(velo.folder / "out/server.key")


def test_secrets_do_not_come_out(velo: Velo, tree: Tree) -> None:
    """What an ingest leaves out is in no tree, and an export does not invent it."""
    tree.write({"app.py": "", ".env": "PASSWORD=1"})
    tree.ingest()
    velo.command("manifest", "export", velo.folder / "out")

    assert [path.name for path in (velo.folder / "out").iterdir()] == ["app.py"]


def test_no_store_and_no_manifest(velo: Velo) -> None:
    """Exit code 10 before there is a store; 2 and a hint while nothing was ingested."""
    assert velo.command("manifest", "export", "out").code == 10
    assert velo.command("manifest", "tree", "--keep", "disk:.").code == 10
    assert not velo.home.exists()
    velo.home.mkdir(mode=0o700)
    (velo.home / "VERSION").write_text("1\n")
    assert velo.command("manifest", "export", "out").code == 2
    assert not (velo.cwd / "out").exists()

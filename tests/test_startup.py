# SPDX-License-Identifier: Apache-2.0
"""Cold starts: what is remembered of a start, what is read ahead, packs in start-up order."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.coldness import evicted, is_in_memory
from tests.support.running import HAS_NATIVE, Velo
from tests.support.tree import Tree
from velo_import.format.manifest import PackRecord, decode
from velo_import.format.pack import COPIES
from velo_import.ingest import startup
from velo_import.ingest.notes import Start
from velo_import.ingest.plan import Code
from velo_import.ingest.startup import Kept, Placed, ahead_of, encode_note, joined, mark_of, named
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import open_pack
from velo_import.store.roots import remove_environment

PACKAGE = {
    "app.py": "import box.c, box.a\nimport box.b\nprint(box.a.NAME, box.b.NAME, box.c.NAME)\n",
    "box/__init__.py": "",
    **{f"box/{name}.py": f"NAME = {name!r}\n" for name in "abc"},
}


def key_of(store: Store) -> str:
    return next(path.name for path in (store.home / "manifests" / "v1").iterdir())


@pytest.fixture
def learned(tree: Tree, velo: Velo) -> Store:
    """A program that was learned, and its store."""
    tree.write(PACKAGE)
    velo.both("app.py", served=4)
    return Store.open(velo.home)


def test_a_program_is_named_by_what_it_runs_and_not_by_its_arguments() -> None:
    """Options before the program count, what comes after it does not; a relative name with its folder."""
    assert named(("python", "-O", "app.py", "--fast")) == ("python", "-O", "app.py")
    assert named(("python", "-m", "http.server", "80")) == ("python", "-m", "http.server")
    assert mark_of(("python", "app.py", "a"), "/one") == mark_of(("python", "app.py", "b"), "/one")
    assert mark_of(("python", "app.py"), "/one") != mark_of(("python", "app.py"), "/two")
    assert mark_of(("python", "-m", "app"), "/one") == mark_of(("python", "-m", "app"), "/two")
    assert mark_of(("python", "/app.py"), "/one") == mark_of(("python", "/app.py"), "/two")


def test_ranges_become_whole_pages_and_neighbours_one() -> None:
    assert joined([(5000, 10), (100, 10), (1 << 20, 1)]) == [(0, 8192), (1 << 20, 4096)]


def test_reading_ahead_follows_the_start(tmp_path: Path) -> None:
    """First the interpreter and its libraries, then our files and bytecode, then native modules in the
    order of import; a place in a pack is looked up and not remembered, and an image is read instead of it."""
    mapped = ((f"{name}", ((0, 4096),)) for name in ("/python", "/second.so", "/lib.so", "/first.so"))
    start = Start("/", ("python",), ("/first.so", "/a.py", "/b.py", "/second.so"), tuple(mapped))
    pack = PackRecord("ab/x.pack", "x", 1, 1, 1, 1)

    codes = {"/a.py": Code(pack, 160, 10, 0, 0), "/b.py": Code(pack, 170, 10, 5, 6)}
    images = Placed("/images", 100, {(5, 6): (1 << 20, 10)})

    found = ahead_of(start, codes, images, "/home", [("/own", [(0, 1)])])

    names = ["/python", "/lib.so", "/own", "/home/packs/v1/ab/x.pack", "/images", "/first.so", "/second.so"]
    assert [path for path, _ in found] == names
    assert dict(found)["/images"] == [(0, 4096), (1 << 20, 4096)]


@pytest.mark.core
def test_learning_remembers_how_the_program_started(learned: Store, velo: Velo) -> None:
    """Its words, its modules in the order of import, and what it mapped, the interpreter first."""
    (kept,) = startup.kept(learned, key_of(learned))

    names = [Path(origin).stem for origin in kept.start.origins if "box" in origin]
    assert names == ["__init__", "c", "a", "b"]
    assert kept.start.words == (str(velo.python), "app.py")
    assert os.path.realpath(velo.python) == kept.start.mapped[0][0]
    note = (learned.run / "ahead" / mark_of(kept.start.words, str(velo.cwd))).read_bytes()
    assert note.startswith(b"velo-ahead 1\0")
    assert (b"/images.table\0" if HAS_NATIVE else b"/packs/v1/") in note


@pytest.mark.core
def test_a_cold_start_reads_ahead_and_a_warm_one_does_not(learned: Store, velo: Velo, tmp_path: Path) -> None:
    """The hook asks for what its note names if the note had to be read from the disk, and only then."""
    (kept,) = startup.kept(learned, key_of(learned))
    note = learned.run / "ahead" / mark_of(kept.start.words, str(velo.cwd))
    other = tmp_path / "library"
    other.write_bytes(bytes(8192))
    note.chmod(0o600)
    note.write_bytes(encode_note([("/no/such/file", [(0, 1)]), (str(other), [(0, 8192)])]))

    note.read_bytes()
    evicted(other)
    alone = {"VELO_READONLY": "1"}  # A learner would write the note again.
    velo.run("app.py", env=alone)
    assert not is_in_memory(other)

    evicted(note)
    assert velo.run("app.py", env=alone).answer == velo.plain("app.py").answer
    assert is_in_memory(other)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"velo-ahead 2\0/a\0000 1\0",
        b"velo-ahead 1\0/a\0x y\0",
        b"velo-ahead 1\0/a\0" + b"9" * 40,
        b"\xff" * 99,
    ],
)
def test_a_damaged_note_changes_nothing(learned: Store, velo: Velo, note: bytes) -> None:
    (kept,) = startup.kept(learned, key_of(learned))
    path = learned.run / "ahead" / mark_of(kept.start.words, str(velo.cwd))
    path.write_bytes(note)
    if note:
        evicted(path)

    result = velo.run("app.py")

    assert (result.answer, result.errors) == (velo.plain("app.py").answer, 0)
    assert result.served >= 4


@pytest.mark.core
def test_pack_lays_bytecode_out_in_the_order_of_the_start(tree: Tree, velo: Velo) -> None:
    """One pack, its payloads in the order of import; the program is served from it and answers as before."""
    tree.write(PACKAGE)
    done = velo.command("pack", "--", velo.python, "app.py")

    assert done.code == 0, done.stderr
    assert done.stdout.startswith(velo.plain("app.py").stdout)
    store = Store.open(velo.home)
    key = key_of(store)
    manifest = decode((store.manifest_folder(key) / "upper.velo").read_bytes())
    (copies,) = [pack for pack in manifest.packs if pack.label.startswith(COPIES)]
    places = {
        manifest.files[module.file].path: module.offset
        for folder in manifest.folders
        for module in folder.modules
        if module.pack >= 0 and manifest.packs[module.pack] == copies
    }
    box = {Path(path).name: offset for path, offset in places.items() if "/box/" in path}
    assert box["__init__.py"] < box["c.py"] < box["a.py"] < box["b.py"]
    both = velo.both("app.py", served=4)
    assert both.second.answer == velo.plain("app.py").answer


def test_what_was_copied_stays_what_others_find(tree: Tree, velo: Velo) -> None:
    """The catalogue does not lead into copies, neither at once nor when it is made again."""
    tree.write(PACKAGE)
    velo.both("app.py", served=4)
    assert velo.command("pack", "--", velo.python, "app.py").code == 0
    store = Store.open(velo.home)
    with Catalog.open(store) as catalog:
        (copies,) = [pack.id for pack in catalog.packs().values() if pack.label.startswith(COPIES)]
        assert catalog.held_by(copies) == ([], [])

    assert velo.command("rebuild").code == 0
    with Catalog.open(store) as catalog:
        assert copies in catalog.packs()
        assert catalog.held_by(copies) == ([], [])
    assert velo.command("verify").code == 0
    assert velo.both("app.py", served=4).second.reasons.get("pack missing", 0) == 0


def test_an_edited_module_is_served_as_before(tree: Tree, velo: Velo) -> None:
    """The edit wins at once; the rest stays in the pack, and `velo status` says how much that is."""
    tree.write(PACKAGE)
    assert velo.command("pack", "--", velo.python, "app.py").code == 0
    tree.write({"box/b.py": "NAME = 'edited'\n"})

    for _ in range(2):
        assert velo.learn("app.py").stdout == "a edited c\n"

    text = velo.command("status").stdout
    assert "in start-up order" in text
    (start,) = json.loads(velo.command("status", "--json").stdout)["starts"]
    assert start["modules"] - start["packed"] == 1
    assert start["changed"] == 0


def test_learning_something_else_keeps_the_pack(tree: Tree, velo: Velo) -> None:
    tree.write({**PACKAGE, "other.py": "import box.a, json\nprint(json.dumps(box.a.NAME))\n"})
    assert velo.command("pack", "--", velo.python, "app.py").code == 0

    velo.both("other.py", served=2)

    starts = json.loads(velo.command("status", "--json").stdout)["starts"]
    packed = next(each for each in starts if each["pack"])
    assert packed["packed"] == packed["modules"]


def test_what_two_starts_share_is_copied_once(tree: Tree, velo: Velo) -> None:
    """The pack of the second holds what only it needs; together the two packs hold all of both."""
    tree.write({**PACKAGE, "other.py": "import box.a, tomllib\nprint(box.a.NAME)\n"})
    assert velo.command("pack", "--", velo.python, "app.py").code == 0
    assert velo.command("pack", "--", velo.python, "other.py").code == 0

    store = Store.open(velo.home)
    packs = []
    for kept in startup.kept(store, key_of(store)):
        with open_pack(store.pack_path(kept.pack)) as pack:
            packs.append({entry.source for entry in pack.entries})
    assert len(packs) == 2 and not packs[0] & packs[1]
    starts = json.loads(velo.command("status", "--json").stdout)["starts"]
    assert all(each["packed"] == each["modules"] for each in starts)


def test_an_ingest_keeps_the_pack(tree: Tree, velo: Velo) -> None:
    """What `velo ingest` publishes takes the place of what was learned, and names the pack as well."""
    tree.write(PACKAGE)
    assert velo.command("pack", "--", velo.python, "app.py").code == 0

    velo.ingest()

    (start,) = json.loads(velo.command("status", "--json").stdout)["starts"]
    assert start["packed"] == start["modules"] > 4
    assert velo.run("app.py").served >= 4


def test_gc_keeps_the_pack_of_a_start_and_removes_one_that_was_replaced(tree: Tree, velo: Velo) -> None:
    tree.write(PACKAGE)
    assert velo.command("pack", "--", velo.python, "app.py").code == 0
    store = Store.open(velo.home)
    (first,) = [kept.pack for kept in startup.kept(store, key_of(store))]
    tree.write({"box/b.py": "NAME = 'edited'\n"})
    assert velo.command("pack", "--", velo.python, "app.py").code == 0
    (second,) = [kept.pack for kept in startup.kept(store, key_of(store))]
    assert first != second

    assert velo.command("gc", "--yes", "--grace", "0min").code == 0

    assert not store.pack_path(first).exists()
    with open_pack(store.pack_path(second)) as pack:
        assert not pack.damaged()
    assert velo.run("app.py").served >= 4


@pytest.mark.parametrize(
    ("words", "code"),
    [(("true",), 1), (("no-such-program",), 127), ((sys.executable, "-I", "-S", "-c", "pass"), 1)],
    ids=["no Python", "nothing", "isolated"],
)
def test_pack_says_why_it_cannot(tree: Tree, velo: Velo, words: tuple[str, ...], code: int) -> None:
    done = velo.command("pack", "--", *words)

    assert done.code == code
    assert "hint:" in done.stderr


def test_damaged_records_say_nothing(learned: Store) -> None:
    key = key_of(learned)
    (kept,) = startup.kept(learned, key)
    (learned.run / "starts" / f"{key}.{'0' * 16}").write_bytes(b"\xa1not cbor")

    assert startup.kept(learned, key) == [kept]
    startup.write_notes(learned, key, {})
    startup.place_in_packs(startup.known_to(learned, key), [Kept(kept.start, "ab" * 32)], learned)


def test_only_so_many_starts_are_remembered(learned: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "MOST_STARTS", 2)
    key = key_of(learned)
    (kept,) = startup.kept(learned, key)
    startup.keep(
        learned, key, [Kept(kept.start._replace(words=("python", f"/{n}.py")), "") for n in range(5)]
    )

    startup.write_notes(learned, key, {})

    assert len(startup.kept(learned, key)) == 2
    assert len(list((learned.run / "ahead").iterdir())) == 2


def test_a_forgotten_environment_leaves_no_record_of_its_starts(learned: Store) -> None:
    key = key_of(learned)
    assert startup.kept(learned, key)

    remove_environment(learned, key)

    assert not [*(learned.run / "starts").iterdir(), *(learned.run / "ahead").iterdir()]

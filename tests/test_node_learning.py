# SPDX-License-Identifier: Apache-2.0
"""Learning from Node programs: what they leave becomes an index, and units that all programs share."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import nodes
from tests.support.running import VELO, Result, clean_environment, start
from tests.support.tree import Tree
from velo_import.errors import StoreLocked, VeloError
from velo_import.format.node import CAPTURED, CRC, UNIT, Index, checksum, index_name
from velo_import.host.locks import exclusive
from velo_import.ingest.node import learning
from velo_import.ingest.node.facts import why_not
from velo_import.ingest.node.interpreters import Node, ask, candidates, find_nodes
from velo_import.ingest.node.learning import NodeSummary, learn_node, published_index
from velo_import.ingest.node.trees import ingest_node, modules_below
from velo_import.ingest.node.units import MOST_PACKS, is_of
from velo_import.store.catalog import Catalog
from velo_import.store.gc import collect, preview
from velo_import.store.gcplan import Wish
from velo_import.store.layout import Store
from velo_import.store.repair import repair
from velo_import.store.roots import roots
from velo_import.store.verify import INDEX, verify


@pytest.fixture(scope="module", params=nodes.versions())
def executable(request: pytest.FixtureRequest) -> Path:
    try:
        return nodes.node(request.param)
    except nodes.Unavailable as reason:
        pytest.skip(f"no Node {request.param}: {reason}")


@pytest.fixture(scope="module")
def node(executable: Path) -> Node:
    return ask(str(executable))


@pytest.fixture
def project(tmp_path: Path) -> Tree:
    return Tree(tmp_path.resolve() / "project").write(
        {
            "app.js": "console.log(require('dep'), require('./data.json').x)",
            "data.json": '{"x": 1}',
            "node_modules/dep/package.json": '{"name": "dep", "main": "lib/main.js"}',
            "node_modules/dep/lib/main.js": "module.exports = require('./other')",
            "node_modules/dep/lib/other.js": "module.exports = 'größer ✓'",
            "node_modules/dep/module.mjs": "export default 1",
        }
    )


Learn = Callable[..., NodeSummary]


@pytest.fixture
def learn(node: Node, project: Tree, store: Store) -> Learn:
    """Leave notes as a program of that folder would, and learn from them."""

    def do(*files: str, units: dict[str, bytes] | None = None, subject: str = "", **more: str) -> NodeSummary:
        subject = subject or str(project.folder)
        name = index_name("start", node.identity, subject)
        leave(store, node, name, subject, [str(project / each) for each in files], units or {}, **more)
        summary = learn_node(name, store)
        assert summary is not None
        return summary

    return do


def leave(
    store: Store, node: Node, name: str, subject: str, files: list[str], units: dict[str, bytes], **more: str
) -> None:
    """FORMAT.md, section 14.4."""
    records = ["velo-node-notes 1", f"identity={node.identity}", f"subject={subject}"]
    records += [f"executable={node.executable}", "mark=0011223344556677"]
    records += [f"file={path}" for path in files] + [f"{key}={value}" for key, value in more.items()]
    store.node_notes.mkdir(mode=0o700, exist_ok=True)
    place = store.node_notes / f"{name}.{os.getpid()}.{os.urandom(4).hex()}"
    data = b""
    for path, unit in units.items():
        records.append(f"unit={len(data)} {len(unit)} {path}")
        data += unit
    place.with_suffix(f"{place.suffix}.units").write_bytes(data)
    place.with_suffix(f"{place.suffix}.notes").write_bytes("".join(f"{each}\0" for each in records).encode())


def index_of(store: Store, summary: NodeSummary) -> Index:
    found = published_index(store, summary.key)
    assert found is not None
    return found


def unit_of(store: Store, found: Index, name: str) -> bytes:
    file = next(each for each in found.files if each.path.endswith(name))
    data = (store.packs / found.packs[file.pack].name).read_bytes()
    return data[file.offset : file.offset + file.length]


def captured(unit: bytes) -> bytes:
    """The same unit as a program hands it over: longer, and marked."""
    words = list(UNIT.unpack_from(unit))
    words[7] |= CAPTURED
    longer = bytearray(UNIT.pack(*words) + unit[UNIT.size :] + bytes(16))
    halves = checksum(bytes(longer[8:]), is_crc=words[1] == CRC)
    longer[:8] = b"".join(half.to_bytes(4, "little") for half in halves)
    return bytes(longer)


# -- learning --


def test_what_a_program_loaded_is_in_its_index(learn: Learn, store: Store, project: Tree) -> None:
    """Files with their units, and where each literal `require` in them leads."""
    summary = learn("app.js", "data.json", "node_modules/dep/lib/main.js", "node_modules/dep/lib/other.js")
    found = index_of(store, summary)

    assert (summary.published, summary.files, summary.compiled, summary.left) == (True, 4, 4, {})
    assert {(each.request, os.path.basename(each.path)) for each in found.resolutions} == {
        ("dep", "main.js"),
        ("./data.json", "data.json"),
        ("./other", "other.js"),
    }
    assert all(each.file >= 0 for each in found.resolutions)
    assert all(found.files[each.file].path == each.path for each in found.resolutions)
    for file in found.files:
        assert is_of(unit_of(store, found, file.path), Path(file.path).read_bytes(), is_foreign=True)
        assert why_not(found, file, store) == ""


def test_the_same_again_changes_nothing(learn: Learn, store: Store) -> None:
    learn("app.js", "data.json")
    before = store.index_path(learn("app.js").key).stat()
    again = learn("app.js", "data.json")

    assert not again.published
    assert store.index_path(again.key).stat() == before
    assert len(list(store.packs.glob("*/*.pack"))) == 1


def test_what_an_earlier_program_taught_stays(learn: Learn, store: Store) -> None:
    learn("app.js", "data.json")
    found = index_of(store, learn("node_modules/dep/lib/main.js", "node_modules/dep/lib/other.js"))

    assert {os.path.basename(each.path) for each in found.files} == {
        "app.js",
        "data.json",
        "main.js",
        "other.js",
    }
    assert {each.request for each in found.resolutions} == {"./data.json", "./other"}


def test_what_no_program_has_loaded_is_not_waited_for(learn: Learn, store: Store, project: Tree) -> None:
    """Who starts reads all of an index: it has what was loaded, and what a program asked for in vain."""
    assert index_of(store, learn("app.js")).resolutions == ()

    found = index_of(store, learn(request=f"{project / 'app.js'}\tdep"))
    assert [each.request for each in found.resolutions] == ["dep"]


def test_an_edited_file_is_forgotten_until_it_is_loaded_again(
    learn: Learn, store: Store, project: Tree
) -> None:
    learn("app.js", "data.json")
    project.write({"app.js": "console.log(2)"})
    found = index_of(store, learn("data.json"))
    assert [os.path.basename(each.path) for each in found.files] == ["data.json"]

    found = index_of(store, learn("app.js"))
    assert b"console.log(2)" in unit_of(store, found, "app.js")


def test_a_request_that_leads_elsewhere_now_is_asked_again(learn: Learn, store: Store, project: Tree) -> None:
    """A package was upgraded; the file that requires it is as it was, and is not looked at."""
    learn("app.js", "node_modules/dep/lib/main.js")
    project.write(
        {
            "node_modules/dep/package.json": '{"name": "dep", "main": "lib/other.js"}',
            "node_modules/dep/lib/main.js": None,
        }
    )
    found = index_of(store, learn("data.json"))

    assert {(each.request, os.path.basename(each.path)) for each in found.resolutions} >= {
        ("dep", "other.js")
    }


def test_the_program_itself_is_found_as_node_finds_it(learn: Learn, store: Store, project: Tree) -> None:
    """`node app`, without a suffix."""
    found = index_of(store, learn("app.js", main=str(project / "app")))

    assert [(each.request, each.path) for each in found.resolutions if each.folder == ""] == [
        (str(project / "app"), str(project / "app.js"))
    ]


def test_what_is_no_commonjs_is_left_to_node(learn: Learn, store: Store, project: Tree) -> None:
    project.write({"esm/package.json": '{"type": "module"}', "esm/a.js": "", "broken.js": "let let"})
    summary = learn("node_modules/dep/module.mjs", "esm/a.js", "broken.js", "data.json")

    assert summary.files == 1
    assert sum(summary.left.values()) == 3


# -- units that programs hand over --


def test_captured_bytecode_takes_the_place_of_compiled(learn: Learn, store: Store, project: Tree) -> None:
    """It has the functions that were called. What was compiled ahead of time never comes back."""
    first = index_of(store, learn("app.js"))
    better = captured(unit_of(store, first, "app.js"))
    summary = learn("app.js", units={str(project / "app.js"): better})
    assert (summary.captured, summary.published) == (1, True)
    assert unit_of(store, index_of(store, summary), "app.js") == better

    again = learn("app.js")
    assert unit_of(store, index_of(store, again), "app.js") == better


@pytest.mark.parametrize("spoil", ["text", "checksum", "length", "nothing"])
def test_a_foreign_unit_is_believed_only_for_that_very_source(
    learn: Learn, store: Store, project: Tree, spoil: str
) -> None:
    """V8 itself looks at nothing but the length of a source."""
    source = (project / "app.js").read_bytes()
    unit = captured(unit_of(store, index_of(store, learn("app.js")), "app.js"))
    spoilt = {
        "text": lambda: captured(unit.replace(b"console", b"CONSOLE")),
        "checksum": lambda: unit[:-1] + b"x",
        "length": lambda: unit[:-16],
        "nothing": lambda: b"",
    }[spoil]()

    assert is_of(unit, source, is_foreign=True)
    assert not is_of(spoilt, source, is_foreign=True)
    summary = learn("app.js", units={str(project / "app.js"): spoilt})
    assert summary.captured == 0
    assert b"CONSOLE" not in unit_of(store, index_of(store, summary), "app.js")


def test_equal_sources_share_one_unit(learn: Learn, store: Store, project: Tree) -> None:
    """Two projects with the same package: its bytecode is in the store once."""
    project.write({"copy/app.js": (project / "app.js").read_bytes()})
    learn("app.js")
    summary = learn("copy/app.js", subject=str(project / "copy"))
    found = index_of(store, summary)

    assert len(list(store.packs.glob("*/*.pack"))) == 1
    assert found.files[0].path == str(project / "copy/app.js")


def test_many_learners_leave_few_packs(learn: Learn, store: Store, project: Tree) -> None:
    """Each pack costs a start some system calls."""
    for number in range(2 * MOST_PACKS):
        project.write({f"module{number}.js": f"exports.x = {number}"})
        summary = learn(f"module{number}.js")
    found = index_of(store, summary)

    assert len(found.files) == 2 * MOST_PACKS
    assert len(found.packs) <= MOST_PACKS
    for file in found.files:
        assert is_of(unit_of(store, found, file.path), Path(file.path).read_bytes(), is_foreign=True)


# -- who learns --


def test_notes_of_others_are_not_mixed_in(node: Node, store: Store, project: Tree) -> None:
    """A name is never believed: identity and subject have to be those that it was made of."""
    name = index_name("start", node.identity, str(project.folder))
    leave(store, node, name, "/somewhere/else", [str(project / "app.js")], {})
    (store.node_notes / f"{name}.1.x.notes").write_bytes(b"velo-node-notes 1\0nonsense\0")
    (store.node_notes / f"{name}.2.x.notes").write_bytes(b"\xff\xfe")

    assert learn_node(name, store) is None
    assert not store.index_path(name).exists()
    assert list(store.node_notes.iterdir()) == []


def test_a_node_that_is_another_one_by_now_teaches_nothing(node: Node, store: Store, project: Tree) -> None:
    other = node._replace(identity=node.identity.replace(f"v{node.version}", "v21.0.0"))
    name = index_name("start", other.identity, str(project.folder))
    leave(store, other, name, str(project.folder), [str(project / "app.js")], {})

    with pytest.raises(VeloError, match="is not the Node"):
        learn_node(name, store)
    assert not store.index_path(name).exists()


def test_a_learner_at_work_finds_what_others_leave(node: Node, store: Store, project: Tree) -> None:
    name = index_name("start", node.identity, str(project.folder))
    leave(store, node, name, str(project.folder), [str(project / "app.js")], {})
    with exclusive(store.run / f"{name}.lock"), pytest.raises(StoreLocked):
        learn_node(name, store)

    (store.node_notes / f"{name}.started").touch()
    leave(store, node, name, str(project.folder), [str(project / "data.json")], {})
    summary = learn_node(name, store)

    assert summary is not None and summary.files == 2
    assert list(store.node_notes.iterdir()) == []


def test_a_tree_that_never_holds_still_is_not_learned(
    learn: Learn, project: Tree, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stamp that is as young as the question says nothing about what comes next."""
    monkeypatch.setattr(learning, "FINE_TICK_NS", 10**18)
    monkeypatch.setattr("velo_import.ingest.node.learning.time.sleep", lambda seconds: None)

    with pytest.raises(VeloError, match="keep changing"):
        learn("node_modules/dep/lib/main.js")


# -- the store --


def test_an_index_protects_what_it_needs(learn: Learn, store: Store) -> None:
    """And no longer, once it is forgotten."""
    summary = learn("app.js", "data.json")
    later = os.stat(store.index_path(summary.key)).st_mtime + 10 * 86400
    assert [root.name for root in roots(store)] == [summary.key]

    report = collect(store, Wish(), now=later)
    assert report.packs.count == 0
    assert [(root.path, root.reason) for root in report.roots] == [(summary.prefix, "")]

    report = collect(store, Wish(forget=(summary.prefix,)), now=later)
    assert report.packs.count == 1
    assert not store.index_path(summary.key).exists()
    assert list(store.packs.glob("*/*.pack")) == []


def test_notes_that_nobody_learned_from_go_after_a_day(store: Store) -> None:
    """Of a store whose learner cannot be started; and our own code, which programs keep again."""
    store.node_notes.mkdir(mode=0o700)
    for name, age in (("old", 25 * 3600), ("young", 3600)):
        for path in (
            store.node_notes / f"start-0123456789abcdef.1.{name}.notes",
            store.run / f"rooms-v20.20.2-{name}.node",
        ):
            path.touch()
            os.utime(path, (time.time() - age, time.time() - age))

    assert store.remove_leftovers() == 2
    assert [path.name for path in store.node_notes.iterdir()] == ["start-0123456789abcdef.1.young.notes"]


def test_unused_indexes_go_first(learn: Learn, store: Store) -> None:
    summary = learn("app.js")
    path = store.index_path(summary.key)
    os.utime(path, (1000, 1000))

    report = preview(store, Wish(unused_for=86400.0))
    assert [root.reason for root in report.roots] == ["unused"]
    assert report.packs.count in (0, 1)  # a pack of this hour is young


def test_a_damaged_index_is_found_and_put_aside(learn: Learn, store: Store) -> None:
    summary = learn("app.js")
    path = store.index_path(summary.key)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(data))

    with Catalog.open(store) as catalog:
        found = verify(store, catalog)
        assert [damage.subject.kind for damage in found.damaged] == [INDEX]
        assert [outcome.is_healed for outcome in repair(store, catalog, found)] == [True]
    assert not path.exists()
    assert learn("app.js").published


def test_a_pack_that_is_lost_is_made_again(learn: Learn, store: Store, project: Tree) -> None:
    first = learn("app.js")
    for path in store.packs.glob("*/*.pack"):
        path.unlink()
    found = index_of(store, first)
    assert why_not(found, found.files[0], store) == "its pack is missing, or was written to"

    again = index_of(store, learn("app.js"))
    assert why_not(again, again.files[0], store) == ""


# -- ahead of time, and the command line --


def test_a_whole_tree_is_learned_ahead_of_time(node: Node, store: Store, project: Tree) -> None:
    """No program runs; a second time only what has changed is looked at."""
    project.write(
        {"node_modules/.bin/tool": "", "node_modules/dep/ran.js": "require('fs').writeFileSync('ran', '')"}
    )
    first = ingest_node(project / "node_modules", node, store, jobs=1)
    found = index_of(store, first)
    assert (first.prefix, first.files) == (str(project.folder), 6)
    assert {each.request for each in found.resolutions} == {"dep", "./data.json", "./other"}
    assert not list(project.folder.rglob("ran"))

    project.write({"app.js": "require('dep')"})
    second = ingest_node(project.folder, node, store, jobs=2)
    assert (second.compiled, second.files) == (1, 6)
    assert ingest_node(project.folder, node, store, jobs=2, force=True).compiled == 6


def test_links_and_hidden_folders_are_not_walked(project: Tree) -> None:
    project.write({".git/hooks/x.js": "", "node_modules/.cache/x.js": "", "node_modules/.pnpm/a/a.js": ""})
    (project / "node_modules/linked").symlink_to("dep")
    (project / "loop").symlink_to(".")
    names = {os.path.relpath(path, project.folder) for path in modules_below(str(project.folder))}

    assert "node_modules/.pnpm/a/a.js" in names
    assert not any("linked" in name or "loop" in name or ".git" in name or ".cache" in name for name in names)


def velo(home: Path, *arguments: str | Path, **variables: str | None) -> Result:
    environment = clean_environment(home.parent, VELO_HOME=str(home), **variables)
    return start([*VELO, *arguments], cwd=home.parent, environment=environment)


def test_the_command_line_knows_node(store: Store, executable: Path, project: Tree) -> None:
    """ingest, status, manifest list, explain, gc."""
    modules, dep = project / "node_modules", project / "node_modules/dep/lib/main.js"
    done = velo(store.home, "ingest", modules, "--node", executable, "--json").json
    assert [each["files"] for each in done["nodes"]] == [5]
    assert "node-" in velo(store.home, "ingest", modules, "--node", executable).stdout

    listed = velo(store.home, "manifest", "list", "--json").json["manifests"]
    status = velo(store.home, "status", "--json").json["manifests"]
    assert [(each["layer"], each["prefix"]) for each in listed] == [("tree", str(project.folder))]
    assert [(each["layer"], each["modules"], each["exists"]) for each in status] == [("tree", 5, True)]
    assert str(project.folder) in velo(store.home, "gc").stdout

    answer = velo(store.home, "explain", dep, "--json").json
    assert [each["served_by"] for each in answer["found"]] == ["velo"]
    dep.write_text("module.exports = 2")
    answer = velo(store.home, "explain", dep)
    assert (answer.code, "the file has changed" in answer.stdout) == (1, True)
    assert velo(store.home, "explain", project / "gone.js").code == 1


def test_refusals_say_what_to_do(store: Store, executable: Path, project: Tree, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, text in (
        (("ingest", tmp_path / "empty", "--node", executable), "has no node_modules"),
        (("ingest", project / "node_modules", "--node", "/bin/true"), "cannot look at modules"),
        (("ingest", project / "node_modules", "--node", "no-such-node"), "cannot run"),
        (("learn", "--node", "../../x"), "not the name of an index"),
    ):
        done = velo(store.home, *arguments)
        assert done.code != 0 and text in done.stderr and "hint: " in done.stderr, done
    none = velo(store.home, "ingest", project / "node_modules", PATH="/nonexistent", HOME=str(tmp_path))
    assert "no Node was found" in none.stderr


def test_nodes_are_found_once_each(executable: Path, tmp_path: Path, node: Node) -> None:
    """On PATH and in the folders of version managers; a shim counts as what it starts."""
    for folder in ("bin", ".nvm/versions/node/v22.0.0/bin", "fnm/node-versions/v22/installation/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".nvm/versions/node/v22.0.0/bin/node").symlink_to(executable)
    (tmp_path / "fnm/node-versions/v22/installation/bin/node").symlink_to("/bin/true")
    shim = tmp_path / "bin/node"
    shim.write_text(f'#!/bin/sh\nexec {executable} "$@"\n')
    shim.chmod(0o755)
    environ = {"PATH": f"{tmp_path}/bin:/nonexistent", "HOME": str(tmp_path), "FNM_DIR": f"{tmp_path}/fnm"}

    assert len(list(candidates(environ))) == 3
    assert find_nodes(environ) == [node]


def test_a_learner_can_be_started_as_node_starts_it(
    learn: Learn, node: Node, store: Store, project: Tree
) -> None:
    """`<run/learner> --node NAME`; how it went is in run/last-learn.json."""
    name = index_name("start", node.identity, str(project.folder))
    leave(store, node, name, str(project.folder), [str(project / "app.js")], {})
    done = subprocess.run(
        [*VELO, "learn", "--node", name],
        env=clean_environment(store.home.parent, VELO_HOME=str(store.home), VELO_DISABLE="1"),
        capture_output=True,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    record = json.loads((store.run / "last-learn.json").read_text())
    assert (record["prefix"], record["summary"]["files"]) == (str(project.folder), 1)


def test_a_learner_that_cannot_use_the_store_takes_its_mark_away(store: Store) -> None:
    """Programs start no other one while it is there."""
    name = "start-0123456789abcdef"
    store.node_notes.mkdir(mode=0o700, exist_ok=True)
    (store.node_notes / f"{name}.started").touch()
    (store.home / "VERSION").write_text("from the future\n")
    done = subprocess.run(
        [*VELO, "learn", "--node", name],
        env=clean_environment(store.home.parent, VELO_HOME=str(store.home), VELO_DISABLE="1"),
        capture_output=True,
    )

    assert (done.returncode != 0, done.stdout, done.stderr) == (True, b"", b"")
    assert list(store.node_notes.iterdir()) == []

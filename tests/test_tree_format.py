# SPDX-License-Identifier: Apache-2.0
"""Tree nodes byte by byte as FORMAT.md, section 7, has them; whole trees, measured, walked and compared."""

from __future__ import annotations

import random
from collections.abc import Mapping

import cbor2
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trees import ONE, TWO, path_sets
from velo_import.errors import StoreCorrupt
from velo_import.format import tree as t
from velo_import.format.tree import EXECUTABLE, FILE, FOLDER, LINK, Entry, Tree

GOLDEN = "c6af4428598010deeafc3669621f3fc77377b24140eaacf6045ea0220228434a"
PATHS = {
    b"bin/run": Entry(EXECUTABLE, ONE, 5),
    b"bin/python": Entry(LINK, target=b"/usr/bin/python3"),
    b"empty": Entry(FOLDER),
    b"lib/\xff\xfe.py": Entry(FILE, TWO, 1 << 40),
    b"lib/a.py": Entry(FILE, ONE, 5),
}


def tree_of(paths: Mapping[bytes, Entry]) -> Tree:
    return t.build(paths.items())[0]


def leaves(tree: Tree) -> dict[bytes, Entry]:
    """Files, links and empty folders: what a tree is made of."""
    return {
        path: entry._replace(digest=b"") if entry.kind == FOLDER else entry
        for path, entry in t.walk(tree)
        if entry.kind != FOLDER or not tree.nodes[entry.digest]
    }


def test_node_has_the_documented_bytes() -> None:
    """The node of one folder with one entry of each kind, and its id, written out by hand."""
    node = {
        b"b": Entry(LINK, target=b"a"),
        b"a": Entry(FILE, ONE, 256),
        b"run": Entry(EXECUTABLE, TWO, 0, mtime_ns=-1),
        b"d": Entry(FOLDER, TWO),
    }
    expected = (
        b"\xa2\x64tree\x01\x67entries\xa4"
        + b"\x41a\x83\x01\x58\x20"
        + ONE
        + b"\x19\x01\x00"
        + b"\x41b\x82\x03\x41a"
        + b"\x41d\x82\x00\x58\x20"
        + TWO
        + b"\x43run\x84\x02\x58\x20"
        + TWO
        + b"\x00\x20"
    )

    assert t.encode_node(node) == expected
    assert t.decode_node(expected) == node
    assert list(t.decode_node(expected)) == sorted(node)
    assert t.node_id(expected) == blake3(expected).digest()


def test_ids_never_change() -> None:
    """They are written into lock files and compared between machines, Pythons and versions of Velo."""
    assert t.build([])[0].root.hex() == "a89d45c9a85c61827771f40ae8e5f068f8908415916f89f5e7ab82f158542998"
    assert tree_of(PATHS).root.hex() == GOLDEN


@given(path_sets(), st.randoms(use_true_random=False))
def test_equal_paths_in_any_order_give_one_id(paths: dict[bytes, Entry], chance: random.Random) -> None:
    """The order in which a file system lists its names does not matter."""
    shuffled = list(paths.items())
    chance.shuffle(shuffled)

    assert t.build(shuffled)[0] == tree_of(paths)


@given(path_sets())
def test_nodes_survive_the_way_through_bytes(paths: dict[bytes, Entry]) -> None:
    """Every node is found under its id, and its bytes mean what was put in."""
    tree, encoded = t.build(paths.items())
    read = Tree(tree.root, {digest: t.decode_node(data) for digest, data in encoded.items()})

    assert all(t.node_id(data) == digest for digest, data in encoded.items())
    assert read == tree
    expected = {
        path: entry
        for path, entry in paths.items()
        if entry.kind != FOLDER or not any(other.startswith(path + b"/") for other in paths)
    }
    assert leaves(read) == expected


@given(path_sets(), path_sets())
def test_diff_finds_what_comparing_all_paths_finds(
    before: dict[bytes, Entry], after: dict[bytes, Entry]
) -> None:
    """The same changes as path by path, though equal folders are never entered."""
    old, new = tree_of(before), tree_of(after)
    changes = list(t.diff(old, new))

    first, second = leaves(old), leaves(new)
    files = {
        path: (first.get(path), second.get(path))
        for path in {*first, *second}
        if first.get(path) != second.get(path)
    }
    # A folder that is empty on one side and filled on the other has not come or gone.
    folders = {
        path[:end] for path in {*first, *second} for end in range(len(path)) if path[end : end + 1] == b"/"
    }
    expected: set[tuple[bytes, bool, bool]] = set()
    for path, sides in files.items():
        for side, entry in enumerate(sides):
            if entry is None or (entry.kind == FOLDER and path in folders):
                continue
            expected.add((path, side == 0, side == 1))
    found: set[tuple[bytes, bool, bool]] = set()
    for change in changes:
        found |= {(change.path, True, False)} if change.before is not None else set()
        found |= {(change.path, False, True)} if change.after is not None else set()
    assert found == expected
    assert bool(changes) == (old.root != new.root)


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"/", b"../x", b"a\0", b"x" * 256], ids=lambda name: repr(name[:8])
)
def test_hostile_names_are_refused_by_writer_and_reader(name: bytes) -> None:
    """A name that leads elsewhere never gets into a tree, nor out of one."""
    with pytest.raises(StoreCorrupt, match="cannot be a name"):
        t.encode_node({name: Entry(FILE, ONE, 1)})
    hostile = cbor2.dumps({"tree": 1, "entries": {name: [1, ONE, 1]}}, canonical=True)
    with pytest.raises(StoreCorrupt, match="cannot be a name"):
        t.decode_node(hostile)
    if name != b"x" * 256:
        with pytest.raises(StoreCorrupt):
            t.build([(b"dir/" + name + b"/file", Entry(FILE, ONE, 1)), (b"dir", Entry(FILE, ONE, 1))])


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [1],
        [1, ONE],
        [1, ONE[:31], 1],
        [1, ONE, -1],
        [1, ONE, 1 << 63],
        [1, ONE, 1.0],
        [1, ONE, True],
        [True, ONE, 1],
        [False, ONE],
        [1, ONE, 1, 1 << 63],
        [1, ONE, 1, 2, 3],
        [1, ONE.hex(), 1],
        [0, ONE, 0],
        [0, b""],
        [3, b""],
        [3, b"a\0b"],
        [3, b"x" * 4096],
        [3, "text"],
        [4, ONE, 1],
        {"kind": 1},
        None,
    ],
    ids=repr,
)
def test_entries_that_make_no_sense_are_refused(fields: object) -> None:
    """Wrong types, lengths, kinds and numbers, each in a node that is canonical otherwise."""
    with pytest.raises(StoreCorrupt, match="makes no sense"):
        t.decode_node(cbor2.dumps({"tree": 1, "entries": {b"a": fields}}, canonical=True))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"tree": 1},
        {"tree": 2, "entries": {}},
        {"tree": True, "entries": {}},
        {"tree": 1, "entries": []},
        {"tree": 1, "entries": {"text": [3, b"x"]}},
        {"tree": 1, "entries": {}, "later": 1},
        [1],
    ],
    ids=repr,
)
def test_other_records_are_no_nodes(record: object) -> None:
    """Another version, unknown keys, names that are text."""
    with pytest.raises(StoreCorrupt):
        t.decode_node(cbor2.dumps(record, canonical=True))


def test_a_second_spelling_of_a_node_is_refused() -> None:
    """Otherwise one folder could have two ids."""
    entry = b"\x82\x03\x41x"
    for spelling in (
        b"\xa2\x64tree\x01\x67entries\xa2\x41b" + entry + b"\x41a" + entry,  # not sorted
        b"\xa2\x64tree\x01\x67entries\xa2\x41a" + entry + b"\x41a" + entry,  # twice
        b"\xa2\x64tree\x01\x67entries\xbf\x41a" + entry + b"\xff",  # no length
        b"\xa2\x64tree\x18\x01\x67entries\xa1\x41a" + entry,  # a longer number
        b"\xa2\x67entries\xa1\x41a" + entry + b"\x64tree\x01",
        t.encode_node({b"a": Entry(LINK, target=b"x")}) + b"\0",
    ):
        with pytest.raises(StoreCorrupt):
            t.decode_node(spelling)


@settings(max_examples=300)
@given(st.data())
def test_damaged_nodes_are_refused_or_are_other_nodes(data: st.DataObject) -> None:
    """Whatever the bytes: StoreCorrupt, or a node that these very bytes are the encoding of."""
    raw = bytearray(t.encode_node({b"a": Entry(FILE, ONE, 9, mtime_ns=5), b"l": Entry(LINK, target=b"a")}))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    try:
        node = t.decode_node(bytes(raw))
    except StoreCorrupt:
        return
    assert t.encode_node(node) == bytes(raw)


@pytest.mark.parametrize(
    "paths",
    [
        [b"a", b"a"],
        [b"a", b"a/b"],
        [b"a/b", b"a"],
        [b"/a"],
        [b"a/"],
        [b"a//b"],
        [b"a/../b"],
        [b"./a"],
        [b""],
    ],
    ids=repr,
)
def test_paths_that_contradict_each_other_are_refused(paths: list[bytes]) -> None:
    """One name is one thing; a path is made of names."""
    with pytest.raises(StoreCorrupt):
        t.build([(path, Entry(FILE, ONE, number)) for number, path in enumerate(paths)])


def test_measure_counts_paths_not_nodes() -> None:
    """The root is a folder too; equal folders are one node and counted at each place."""
    tree = tree_of({**PATHS, b"copy/bin/run": PATHS[b"bin/run"], b"other/bin/run": PATHS[b"bin/run"]})

    assert t.measure(tree) == (8, 5, 1, (1 << 40) + 4 * 5, 3)
    assert sum(entry.kind == FOLDER for _, entry in t.walk(tree)) == 7
    assert len(tree.nodes) == 6


def test_a_tree_bomb_is_refused_at_once() -> None:
    """Forty nodes, each naming the next twice, are 2^40 files: counted without walking them."""
    node: t.Node = {b"a": Entry(FILE, ONE, 1), b"b": Entry(FILE, ONE, 1)}
    nodes = {}
    for _ in range(40):
        digest = t.node_id(t.encode_node(node))
        nodes[digest] = node
        node = {b"a": Entry(FOLDER, digest), b"b": Entry(FOLDER, digest)}

    with pytest.raises(StoreCorrupt, match="too many paths"):
        t.measure(Tree(digest, nodes))


@pytest.mark.parametrize("shared", [False, True], ids=["in a row", "met before"])
def test_a_tree_that_is_too_deep_is_refused(shared: bool) -> None:
    """Deeper than any path of the kernel, whichever way down was counted first."""
    node: t.Node = {}
    nodes = {}
    for depth in range(t.DEPTH_LIMIT + 1):
        digest = t.node_id(t.encode_node(node))
        nodes[digest] = node
        node = {b"d": Entry(FOLDER, digest)}
        if shared and depth == 1000:
            node[b"a"] = Entry(FOLDER, digest)

    with pytest.raises(StoreCorrupt, match="too deep"):
        t.measure(Tree(digest, nodes))


def test_deep_trees_need_no_deep_stack() -> None:
    """2,000 folders in each other are built, measured, walked and compared."""
    deep = b"/".join([b"d"] * 2000)
    old, new = tree_of({deep + b"/a": Entry(FILE, ONE, 1)}), tree_of({deep + b"/a": Entry(FILE, TWO, 1)})

    assert t.measure(old).height == 2001
    assert sum(1 for _ in t.walk(old)) == 2001
    assert [change.path for change in t.diff(old, new)] == [deep + b"/a"]

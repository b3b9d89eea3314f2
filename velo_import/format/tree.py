# SPDX-License-Identifier: Apache-2.0
"""Merkle trees: what a folder holds, named by content, so that equal folders have one id on every machine.

Knows names, kinds and the bytes of a node (FORMAT.md, section 7); reads no file and no store. Its surprise:
one node may stand in many places, so a small tree can describe more paths than any disk holds. Whoever got
one from elsewhere measures it before walking it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt
from . import cbor

VERSION = 1
FOLDER, FILE, EXECUTABLE, LINK = range(4)
KIND_NAMES = ("folder", "file", "executable", "link")

NODE_LIMIT = 64 << 20  # bytes: some 900,000 names in one folder
NAME_LIMIT = 255  # bytes, as in every file system of Linux
TARGET_LIMIT = 4095  # bytes: a longer link cannot be made
DEPTH_LIMIT = 2048  # what a path of 4,095 bytes can reach
PATHS_LIMIT = 1 << 28  # as in a manifest


class Entry(NamedTuple):
    """What one name stands for."""

    kind: int
    digest: bytes = b""  # Of a file's content; the id of a folder's node; empty for a link.
    size: int = 0  # Of a file's content, in bytes.
    target: bytes = b""  # Of a link, as it was written.
    mtime_ns: int | None = None  # Of a file, in trees that keep times.


Node = Mapping[bytes, Entry]


class Tree(NamedTuple):
    """A folder and all below it: the id of its node, and every node by id."""

    root: bytes
    nodes: Mapping[bytes, Node]


class Totals(NamedTuple):
    """What walking a tree would meet; `height` is the number of folders on the longest way down."""

    folders: int = 0
    files: int = 0
    links: int = 0
    bytes: int = 0
    height: int = 0


class Change(NamedTuple):
    """One path that differs between two trees; None on the side where it is not."""

    path: bytes
    before: Entry | None
    after: Entry | None


def check_name(name: bytes) -> None:
    """Refuse what is not the name of one entry of one folder.

    Raises:
        StoreCorrupt: it could lead elsewhere, or no file system takes it.
    """
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > NAME_LIMIT:
        raise StoreCorrupt(f"{name[:40]!r} cannot be a name in a tree")


# -- nodes -----------------------------------------------------------------------------------------


def encode_node(node: Node) -> bytes:
    """The bytes of one node; its id is their digest.

    Raises:
        StoreCorrupt: a name, link or number is not possible; nothing is written that could not be read.
    """
    entries = {name: _fields(name, entry) for name, entry in node.items()}
    data = cbor.encode({"tree": VERSION, "entries": entries})
    if len(data) > NODE_LIMIT:
        raise StoreCorrupt(f"a folder with {len(node)} names is too large for a tree")
    return data


def decode_node(data: bytes) -> dict[bytes, Entry]:
    """The entries of one node, sorted by name.

    Raises:
        StoreCorrupt: the bytes are not a node, not canonical, or say something impossible.
    """
    record = cbor.decode(data, limit=NODE_LIMIT)
    # No unknown keys: what this Velo cannot see it could not bring back.
    if set(record) != {"tree", "entries"} or type(record["tree"]) is not int or record["tree"] != VERSION:
        raise StoreCorrupt("not a tree of this version")
    entries = record["entries"]
    if type(entries) is not dict or not all(type(name) is bytes for name in entries):
        raise StoreCorrupt("tree node has no entries")
    return {name: _entry(name, entries[name]) for name in sorted(entries)}


def node_id(data: bytes) -> bytes:
    return blake3(data).digest()


def _fields(name: bytes, entry: Entry) -> list[Any]:
    if entry.kind == LINK:
        fields: list[Any] = [LINK, entry.target]
    elif entry.kind == FOLDER:
        fields = [FOLDER, entry.digest]
    else:
        times = () if entry.mtime_ns is None else (entry.mtime_ns,)
        fields = [entry.kind, entry.digest, entry.size, *times]
    _entry(name, fields)
    return fields


def _entry(name: bytes, fields: Any) -> Entry:
    check_name(name)
    match fields:
        case [int(kind), bytes(target)] if kind == LINK:
            if 0 < len(target) <= TARGET_LIMIT and b"\0" not in target:
                return Entry(LINK, target=target)
        case [int(kind), bytes(digest)] if kind == FOLDER and type(kind) is int:
            if len(digest) == 32:
                return Entry(FOLDER, digest)
        case [int(kind), bytes(digest), int(size), *times] if kind in (FILE, EXECUTABLE):
            numbers = (kind, size, *times)
            if (
                len(digest) == 32
                and len(times) <= 1
                and all(type(number) is int and -(1 << 63) <= number < 1 << 63 for number in numbers)
                and size >= 0
            ):
                return Entry(kind, digest, size, mtime_ns=times[0] if times else None)
    raise StoreCorrupt(f"tree entry {name[:40]!r} makes no sense")


# -- whole trees -----------------------------------------------------------------------------------


def build(entries: Iterable[tuple[bytes, Entry]]) -> tuple[Tree, dict[bytes, bytes]]:
    """The tree of these relative paths, and the bytes of its nodes by id.

    Folders above a path need not be named; a folder's entry needs no digest.

    Raises:
        StoreCorrupt: a name is not possible, or a path is two things at once.
    """
    folders: dict[bytes, dict[bytes, Entry]] = {b"": {}}
    for path, entry in entries:
        if path.startswith(b"/"):
            raise StoreCorrupt(f"{path!r} cannot be a path in a tree")
        if entry.kind == FOLDER:
            _open_folder(folders, path)
            continue
        parent, _, name = path.rpartition(b"/")
        node = _open_folder(folders, parent)
        if node.setdefault(name, entry) is not entry:
            raise StoreCorrupt(f"{path!r} occurs twice in one tree")
    nodes: dict[bytes, Node] = {}
    encoded: dict[bytes, bytes] = {}
    root = b""
    # Deepest first, so that a folder's id is known when its parent is encoded.
    for path in sorted(folders, key=lambda path: path.count(b"/") if path else -1, reverse=True):
        data = encode_node(folders[path])
        root = node_id(data)
        encoded[root] = data
        nodes[root] = dict(sorted(folders[path].items()))
        if path:
            parent, _, name = path.rpartition(b"/")
            if name in folders[parent]:
                raise StoreCorrupt(f"{path!r} is a file and a folder in one tree")
            folders[parent][name] = Entry(FOLDER, root)
    return Tree(root, nodes), encoded


def _open_folder(folders: dict[bytes, dict[bytes, Entry]], path: bytes) -> dict[bytes, Entry]:
    node = folders.get(path)
    if node is None:
        node = folders[path] = {}
        above = path.rpartition(b"/")[0]
        while above not in folders:
            folders[above] = {}
            above = above.rpartition(b"/")[0]
    return node


def measure(tree: Tree) -> Totals:
    """What a walk would meet, without walking: the time grows with the nodes, not with the paths.

    Raises:
        StoreCorrupt: it is deeper, or has more paths, than a tree may have.
    """
    known: dict[bytes, Totals] = {}
    pending = [(tree.root, _folders_in(tree, tree.root))]
    while pending:
        digest, below = pending[-1]
        child = next((child for child in below if child not in known), None)
        if child is not None:
            pending.append((child, _folders_in(tree, child)))
        else:
            known[digest] = _sum(tree.nodes[digest], known)
            pending.pop()
        total = known.get(digest, Totals())
        if max(len(pending), total.height) > DEPTH_LIMIT:
            raise StoreCorrupt(f"tree:{tree.root.hex()} is too deep")
        if total.folders + total.files + total.links > PATHS_LIMIT:
            raise StoreCorrupt(f"tree:{tree.root.hex()} has too many paths")
    return known[tree.root]


def _folders_in(tree: Tree, digest: bytes) -> Iterator[bytes]:
    return (entry.digest for entry in tree.nodes[digest].values() if entry.kind == FOLDER)


def _sum(node: Node, known: Mapping[bytes, Totals]) -> Totals:
    folders, files, links, size, height = 1, 0, 0, 0, 0
    for entry in node.values():
        if entry.kind == FOLDER:
            below = known[entry.digest]
            folders += below.folders
            files += below.files
            links += below.links
            size += below.bytes
            height = max(height, below.height)
        elif entry.kind == LINK:
            links += 1
        else:
            files += 1
            size += entry.size
    return Totals(folders, files, links, size, height + 1)


def walk(tree: Tree) -> Iterator[tuple[bytes, Entry]]:
    """Every path below the root, a folder before what it holds, names sorted bytewise."""
    pending = [(b"", iter(tree.nodes[tree.root].items()))]
    while pending:
        prefix, entries = pending[-1]
        following = next(entries, None)
        if following is None:
            pending.pop()
            continue
        name, entry = following
        yield prefix + name, entry
        if entry.kind == FOLDER:
            pending.append((prefix + name + b"/", iter(tree.nodes[entry.digest].items())))


def diff(before: Tree, after: Tree) -> Iterator[Change]:
    """The files, links and empty folders that differ, by path; equal folders are skipped by their ids.

    A file that became a folder is two changes: it went, and what is in the folder came.
    """
    pending = [_unequal(b"", before.nodes[before.root], after.nodes[after.root])]
    while pending:
        following = next(pending[-1], None)
        if following is None:
            pending.pop()
            continue
        path, first, second = following
        old, new = _node_of(before, first), _node_of(after, second)
        if old is None and new is None:
            yield following
            continue
        # On one side a folder. What stood there instead has gone or come; so has the folder if it is empty.
        if first is not None and (old is None or (not old and new is None)):
            yield Change(path, first, None)
        if second is not None and (new is None or (not new and old is None)):
            yield Change(path, None, second)
        pending.append(_unequal(path + b"/", old or {}, new or {}))


def _unequal(prefix: bytes, old: Node, new: Node) -> Iterator[Change]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield Change(prefix + name, old.get(name), new.get(name))


def _node_of(tree: Tree, entry: Entry | None) -> Node | None:
    return tree.nodes[entry.digest] if entry is not None and entry.kind == FOLDER else None

# SPDX-License-Identifier: Apache-2.0
"""Trees that stay in the store after the folder they were made from has changed or gone.

Knows that nodes are content like any other, and that a tree is worth nothing without all that it names: it is
kept whole or not at all, and protected until somebody drops it.
"""

from __future__ import annotations

import os

from ..errors import StoreCorrupt, StoreMissing
from ..format import tree as t
from .catalog import Catalog
from .packs import PackWriter
from .reading import Reader
from .roots import protect
from .trees import Grown

NODES_LIMIT = 1 << 20  # folders with different content; more is no tree of ours
_FILES = (t.FILE, t.EXECUTABLE)


def keep(grown: Grown, catalog: Catalog, reader: Reader) -> None:
    """Store the nodes of a tree, durably, and protect them and all content that they name. Hold the shared
    lease, from before the catalogue was opened: one that is made again meanwhile would not know the nodes.

    Raises:
        StoreMissing: the store does not have all of that content.
    """
    store = catalog.store
    tree = grown.tree
    require_content(tree, reader)
    with PackWriter(store, label=f"tree:{tree.root.hex()}", kind="content") as writer:
        present = catalog.has_blobs(grown.encoded)
        for digest, data in grown.encoded.items():
            if digest not in present:
                writer.add(data, digest=digest)
        sealed = writer.seal()
    if sealed is not None:
        with catalog.write() as writing:
            writing.put_pack(sealed)
    protect(store, f"tree:{tree.root.hex()}", (), {*grown.encoded, *content_of(tree)})


def load(root: bytes, reader: Reader) -> t.Tree:
    """A tree that is in the store, every node verified.

    Raises:
        StoreMissing: a node is not there.
        StoreCorrupt: a node is damaged, is no node, or there are too many.
    """
    nodes: dict[bytes, t.Node] = {}
    pending = [root]
    while pending:
        digest = pending.pop()
        if digest in nodes:
            continue
        if len(nodes) >= NODES_LIMIT:
            raise StoreCorrupt(f"tree:{root.hex()} has too many folders", hint="it was not made by Velo")
        nodes[digest] = node = t.decode_node(reader.read(digest))
        pending += [entry.digest for entry in node.values() if entry.kind == t.FOLDER]
    return t.Tree(root, nodes)


def content_of(tree: t.Tree) -> set[bytes]:
    """The digests of all files of a tree."""
    return {entry.digest for node in tree.nodes.values() for entry in node.values() if entry.kind in _FILES}


def require_content(tree: t.Tree, reader: Reader) -> None:
    """Raise StoreMissing, with the first path of them, unless the store has the content of every file."""
    missing = reader.missing(content_of(tree))
    if missing:
        t.measure(tree)  # before walking it
        paths = (path for path, entry in t.walk(tree) if entry.kind in _FILES and entry.digest in missing)
        first = os.fsdecode(next(paths))
        raise StoreMissing(
            f"the store does not have the content of {len(missing)} files, {first} the first of them",
            hint="run `velo ingest` on that folder: what was only learned, or left out, has no content here",
        )

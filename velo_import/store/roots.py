# SPDX-License-Identifier: Apache-2.0
"""Roots: what protects the content of the store, and when it was last used (FORMAT.md, sections 6, 9 and 14).

Knows environments (the manifests of the store, and the indexes of Node programs) and registered roots
(manifests that were written elsewhere, trees that are kept).
What nothing here needs is garbage; collecting it is gc.py's. Its surprise: a manifest that cannot be read is
an error and no empty answer, because what it protects would be thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt, StoreLocked
from ..format.node import SUFFIX, is_index_name
from ..format.references import References, references
from ..format.root import RegisteredRoot, decode_root, encode_root
from ..host import locks
from ..host.files import Stamp, flush_all, open_quietly, publish, read_file, remove_quietly, stamp_of
from .layout import Store

ENVIRONMENT, REGISTERED = "environment", "registered"


class Root(NamedTuple):
    """Something that needs packs and blobs.

    `name` is the key of an environment, the name of an index, the path that a manifest was written to, or the
    id of a tree that is kept. `last_use` is in seconds since the epoch; of a registered root, when it became
    one.
    """

    kind: str
    name: str
    files: tuple[tuple[Path, Stamp], ...]
    last_use: float
    bytes: int


def roots(store: Store) -> list[Root]:
    """Everything that protects something now."""
    return [*_environments(store), *_indexes(store), *_registered(store)]


@contextmanager
def needs(root: Root) -> Iterator[tuple[set[bytes], Iterator[list[bytes]]]]:
    """The ids of the packs that a root needs, and step by step the digests of its blobs.

    Raises:
        StoreCorrupt: one of its files cannot be read for what it needs.
    """
    packs: set[bytes] = set()
    steps: list[Iterator[list[bytes]]] = []
    opened: list[int] = []
    try:
        for path, _ in root.files:
            with suppress(FileNotFoundError):  # replaced or dropped meanwhile: whoever looks again will see
                if root.kind == REGISTERED:
                    registered = _decoded(path)
                    packs.update(registered.packs)
                    steps.append(registered.steps())
                else:
                    opened.append(open_quietly(path))
                    asked = _asked(path, opened[-1])
                    packs.update(_ids(asked.packs))
                    steps.append(asked.steps)
        yield packs, (step for digests in steps for step in digests)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def prefix_of(root: Root) -> str:
    """The folder of an environment, or what starts a Node program; empty for a registered root, and for what
    cannot be read.
    """
    for path, _ in root.files if root.kind == ENVIRONMENT else ():
        with suppress(OSError, StoreCorrupt):
            descriptor = open_quietly(path)
            try:
                return _asked(path, descriptor).prefix
            finally:
                os.close(descriptor)
    return ""


def register(store: Store, written: Path) -> None:
    """Protect what the manifest in that file needs, wherever the file goes, until `unregister`.

    Raises:
        StoreCorrupt: the file is no manifest.
    """
    store.require_writable()
    status = os.stat(written)
    stranger = Root(ENVIRONMENT, str(written), ((written, stamp_of(status)),), 0.0, 0)
    with needs(stranger) as (packs, steps):
        protect(store, str(written), packs, (digest for step in steps for digest in step))


def protect(store: Store, name: str, packs: Iterable[bytes], digests: Iterable[bytes]) -> None:
    """Protect these packs and blobs under a name, until `unregister`."""
    store.require_writable()
    data = encode_root(name, packs, digests)
    place = _place(store, name)
    with suppress(OSError):
        if read_file(place) == data:
            return
    publish(place, [data])


def unregister(store: Store, path: str) -> None:
    """What was written to that path needs nothing any more."""
    store.require_writable()
    remove_quietly(_place(store, path))


def remove_environment(store: Store, key: str) -> None:
    """Forget all that is published for an environment. Hold the exclusive lease."""
    store.require_writable()
    if is_index_name(key):
        remove_quietly(store.index_path(key))
        flush_all([store.indexes])
    else:
        folder = store.manifest_folder(key)
        for path in sorted(folder.glob("*")):
            remove_quietly(path)
        with suppress(OSError):
            folder.rmdir()
        flush_all([store.manifests])  # what it needed goes next, and must not go before it
    for suffix in ("vain", "shadow", "shadow.old"):
        remove_quietly(store.run / f"{key}.{suffix}")
    for start in (store.run / "starts").glob(f"{key}.*"):
        remove_quietly(store.run / "ahead" / start.suffix[1:])
        remove_quietly(start)
    # Nobody may find the lock free on one inode while we hold it on another: so it goes while we have it.
    lock = store.run / f"{key}.lock"
    with suppress(OSError, StoreLocked):
        if lock.exists():
            with locks.exclusive(lock):
                lock.unlink()


def _environments(store: Store) -> Iterator[Root]:
    try:
        keys = sorted(entry.name for entry in os.scandir(store.manifests) if entry.is_dir())
    except FileNotFoundError:
        return
    for key in keys:
        files = []
        uses = []
        size = 0
        for path in sorted((store.manifests / key).glob("*.velo")):
            with suppress(FileNotFoundError):
                status = os.stat(path)
                files.append((path, stamp_of(status)))
                uses += [status.st_atime, status.st_mtime]
                size += status.st_blocks * 512
        with suppress(OSError):
            uses.append(os.stat(store.run / f"{_readable_name(key)}.used").st_mtime)
        if files:
            yield Root(ENVIRONMENT, key, tuple(files), max(uses), size)


def _indexes(store: Store) -> Iterator[Root]:
    for path in sorted(store.indexes.glob(f"*{SUFFIX}")):
        with suppress(FileNotFoundError):
            status = os.stat(path)
            files = ((path, stamp_of(status)),)
            used = max(status.st_atime, status.st_mtime)
            yield Root(ENVIRONMENT, path.name.removesuffix(SUFFIX), files, used, status.st_blocks * 512)


def _readable_name(key: str) -> str:
    """The middle of `<cache tag>-<name>-<hex>`; a cache tag has one hyphen."""
    return "-".join(key.split("-")[2:-1])


def _registered(store: Store) -> Iterator[Root]:
    for path in sorted(store.roots.glob("*.root")):
        with suppress(FileNotFoundError):
            status = os.stat(path)
            name = _decoded(path).path
            yield Root(REGISTERED, name, ((path, stamp_of(status)),), status.st_mtime, status.st_blocks * 512)


def _decoded(path: Path) -> RegisteredRoot:
    try:
        return decode_root(read_file(path))
    except StoreCorrupt as error:
        raise StoreCorrupt(
            f"{path}: {error.message}, so what it protects is unknown",
            hint="remove that file, then write the manifest again with `velo ingest -o FILE`",
        ) from error


def _asked(path: Path, descriptor: int) -> References:
    def read(offset: int, length: int) -> bytes:
        return os.pread(descriptor, length, offset)

    try:
        return references(read, os.fstat(descriptor).st_size)
    except StoreCorrupt as error:
        raise StoreCorrupt(
            f"{path}: {error.message}, so what it protects is unknown",
            hint="run `velo ingest` for that environment again, or remove that file",
        ) from error


def _ids(names: list[str]) -> Iterator[bytes]:
    for name in names:
        with suppress(ValueError):  # no pack of ours has such a name, so there is nothing to protect
            yield bytes.fromhex(Path(name).stem)


def _place(store: Store, path: str) -> Path:
    return store.roots / f"{blake3(os.fsencode(path)).hexdigest(16)}.root"

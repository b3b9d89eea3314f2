# SPDX-License-Identifier: Apache-2.0
"""Published environments without interpreters: content goes into the store as an ingest would put it there,
under a lease, and a manifest that names it is published. No assertions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.support.stores import digest_of
from velo_import.format.manifest import Build, FileRecord, Manifest, PackRecord, encode
from velo_import.host.files import publish
from velo_import.store import leases
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack

BUILD = Build("cpython-312", bytes.fromhex("cb0d0d0a"), 0, "", (".py",))


def content(number: int) -> bytes:
    """Some kilobytes that no other number gives."""
    return b"content %d\n" % number * (1 + number % 300)


def manifest_of(numbers: Iterable[int], packs: Iterable[SealedPack] = (), prefix: str = "/env") -> bytes:
    """A manifest whose files have these contents, and whose bytecode is in these packs."""
    files = [
        FileRecord(f"/p/{number}", digest_of(content(number)), len(content(number)), 1, 2, 3, 0o100644, 0)
        for number in sorted(set(numbers))
    ]
    records = [
        PackRecord(f"{pack.id[:2]}/{pack.id}.pack", pack.label, pack.stamp.size, *pack.stamp[1:])
        for pack in packs
    ]
    return encode(Manifest(BUILD, prefix, [], [], files, records))


def put_content(store: Store, numbers: Iterable[int], *, loose: bool = False) -> SealedPack | None:
    """Content that the store does not have yet, in one new pack or in files of its own."""
    with Catalog.open(store) as catalog:
        wanted = {digest_of(content(number)): content(number) for number in numbers}
        missing = {digest: wanted[digest] for digest in wanted.keys() - catalog.has_blobs(wanted)}
        if loose:
            for data in missing.values():
                source = store.home.with_name("source")
                source.write_bytes(data)
                blob = Blobs(store).put_file(source)
                with catalog.write() as writing:
                    writing.put_loose(blob.digest, blob.size)
            return None
        writer = PackWriter(store, label="content", kind="content")
        for digest, data in sorted(missing.items()):
            writer.add(data, digest=digest)
        sealed = writer.seal()
        if sealed is not None:
            with catalog.write() as writing:
                writing.put_pack(sealed)
        return sealed


def publish_environment(
    store: Store, key: str, numbers: Iterable[int], packs: Iterable[SealedPack] = ()
) -> Path:
    """Put the content into the store and publish the environment that names it."""
    numbers = list(numbers)
    path = store.manifest_folder(key) / "base.velo"
    with leases.shared(store):
        put_content(store, numbers)
        publish(path, [manifest_of(numbers, packs, f"/{key}")])
    return path


def used(path: Path, ago: float, now: float) -> None:
    """As if the manifest had last been written and read that many seconds ago."""
    os.utime(path, (now - ago, now - ago))


def is_there(store: Store, number: int) -> bool:
    """Whether that content is found, and is what it should be."""
    digest = digest_of(content(number))
    with Catalog.open(store) as catalog:
        if digest not in catalog.has_blobs([digest]):
            return False
        location = catalog.locations([digest])[digest]
    if location.pack_id == bytes(32):
        return Blobs(store).read(digest) == content(number)
    from velo_import.store.packs import open_pack

    with open_pack(store.pack_path(location.pack_id.hex())) as file:
        entry = file.find(digest)
        return entry is not None and file.read(entry) == content(number)

# SPDX-License-Identifier: Apache-2.0
"""The catalogue made again: the same rows as before, whatever became of the old one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stores import BUILD, bytecode_pack, digest_of, flip_bit, payload, run, source
from velo_import.store import rebuild
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import LOOSE, Catalog, Location
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack


def content_pack(store: Store, numbers: range, *, compress: bool = False) -> SealedPack:
    writer = PackWriter(store, label=f"{numbers}", kind="content", compress=compress)
    for number in numbers:
        writer.add(payload(number))
    sealed = writer.seal()
    assert sealed is not None
    return sealed


def fill(store: Store, tmp_path: Path) -> set[bytes]:
    """Some of everything, recorded as an ingest would; returns the digests."""
    large = tmp_path / "large"
    large.write_bytes(b"large" * 1000)
    packs = [
        bytecode_pack(store, range(300)),
        content_pack(store, range(200, 500)),
        content_pack(store, range(500, 600), compress=True),
    ]
    blob = Blobs(store).put_file(large)
    with Catalog.open(store) as catalog, catalog.write() as writing:
        for pack in packs:
            writing.put_pack(pack)
        writing.put_loose(blob.digest, blob.size)
    return {digest_of(payload(number)) for number in range(600)} | {blob.digest}


@pytest.mark.parametrize("step", [1, 100, 1_000_000])
def test_rows_are_as_before(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    digests = fill(store, tmp_path)
    sources = [source(number) for number in range(300)]
    with Catalog.open(store) as catalog:
        before = catalog.locations(digests), catalog.variants_of(sources, BUILD, 0), catalog.counts()
    monkeypatch.setattr(rebuild, "_STEP", step)

    with Catalog.rebuild(store) as catalog:
        after = catalog.locations(digests), catalog.variants_of(sources, BUILD, 0), catalog.counts()
        assert catalog.has_blobs(digests) == digests
        assert {record.kind for record in catalog.packs().values()} == {"bytecode", "content"}

    places, variants, counts = before
    # A payload that is in two packs may be found in either.
    assert {digest: place.size for digest, place in after[0].items()} == {
        digest: place.size for digest, place in places.items()
    }
    assert (after[1], after[2]) == (variants, counts)


def test_one_source_in_two_packs_is_one_variant(store: Store) -> None:
    packs = {
        bytecode_pack(store, numbers, label).id for numbers, label in ((range(60), "a"), (range(40, 99), "b"))
    }

    with Catalog.rebuild(store) as catalog:
        found = catalog.variants_of([source(number) for number in range(99)], BUILD, 0)

    assert len(found) == 99
    assert {variant.pack_id for variant in found.values()} == packs


def test_a_loose_copy_is_preferred(store: Store, tmp_path: Path) -> None:
    """Whoever needs a file should not have to make one."""
    (tmp_path / "file").write_bytes(payload(7))
    content_pack(store, range(10))
    Blobs(store).put_file(tmp_path / "file")

    with Catalog.rebuild(store) as catalog:
        size = len(payload(7))
        found = catalog.locations([digest_of(payload(7))])
        assert found == {digest_of(payload(7)): Location(LOOSE, 0, bytes(32), 0, size, size)}


def test_what_is_no_pack_and_no_blob_is_left_out(store: Store, tmp_path: Path) -> None:
    digests = fill(store, tmp_path)
    damaged = content_pack(store, range(1000, 1100))
    flip_bit(damaged.path, -1)
    (store.packs / "ab").mkdir(exist_ok=True)
    (store.packs / "ab" / "notes.pack").write_text("mine")
    (store.loose / "ab" / "cd").mkdir(parents=True, exist_ok=True)
    (store.loose / "ab" / "cd" / "notes").write_text("mine")
    (store.loose / "ab" / "cd" / ("ff" * 32)).write_text("in another folder than its name says")

    with Catalog.rebuild(store) as catalog:
        assert len(catalog.packs()) == 3
        assert catalog.counts()["blobs"] == len(digests)


def test_progress_comes_to_its_end(store: Store, tmp_path: Path) -> None:
    fill(store, tmp_path)
    seen: list[tuple[str, int, int]] = []
    Catalog.rebuild(store, lambda *step: seen.append(step)).close()

    assert [step for step in seen if step[0] == "packs"] == [("packs", number, 3) for number in range(3)]
    # One record for each source of the first pack, and for each content of the others (three are equal).
    assert seen[-1] == ("blobs", 300 + 298 + 100, 698)


def test_memory_stays_bounded(store: Store) -> None:
    """The rows of 100,000 entries are some 30 MB; a twentieth of them is held at a time."""
    code = """
    from velo_import.store import rebuild
    for start in range(0, 100_000, 10_000):
        writer = PackWriter(store, label=str(start), kind="content")
        for number in range(start, start + 10_000):
            writer.add(b"%d" % number)
        writer.seal()
    rebuild._STEP = 5_000
    Catalog.rebuild(store).close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = 0
    for batch in rebuild.batches(store):
        held = max(held, len(batch.rows))
    print(held, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    held, grown = map(int, run(code, store.home).split())
    assert held <= 5_500
    assert grown < 10_000  # KiB

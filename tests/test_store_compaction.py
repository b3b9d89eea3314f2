# SPDX-License-Identifier: Apache-2.0
"""The catalogue gives back what it does not use, and nobody who uses it is disturbed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.stores import BUILD, bytecode_pack, digest_of, run, source
from velo_import.store import compaction, leases
from velo_import.store.catalog import MARK, Catalog
from velo_import.store.compaction import compact
from velo_import.store.layout import Store

MANIFEST = {"prefix": "/venv", "build": BUILD}


@pytest.fixture
def sparse(store: Store) -> Store:
    """A store whose catalogue is mostly free pages: many blobs came, and most of them went."""
    with Catalog.open(store) as catalog:
        with catalog.write() as changes:
            changes.put_pack(bytecode_pack(store, range(50)))
            changes.put_manifest("venv", MANIFEST)
            for number in range(20_000):
                changes.put_loose(digest_of(b"%d" % number), number)
        with catalog.write() as changes:
            changes.remove_blobs(digest_of(b"%d" % number) for number in range(100, 20_000))
    return store


def size(store: Store) -> int:
    return (store.catalogue / "data.mdb").stat().st_size


def known(catalog: Catalog) -> tuple[object, ...]:
    digests = [digest_of(b"%d" % number) for number in range(200)]
    variants = catalog.variants_of(map(source, range(50)), BUILD, 0)
    return catalog.counts(), catalog.locations(digests), variants, catalog.manifests()


def test_free_pages_are_given_back_and_nothing_is_forgotten(sparse: Store) -> None:
    with Catalog.open(sparse) as catalog:
        before = known(catalog)
    large = size(sparse)

    given = compact(sparse)

    assert given > 1 << 20
    assert size(sparse) == large - given
    with Catalog.open(sparse) as catalog:
        assert known(catalog) == before
        assert catalog.free_bytes()[0] < large / 10
        with catalog.write() as changes:
            changes.put_loose(digest_of(b"later"), 5)
    with Catalog.open(sparse) as catalog:
        assert catalog.locations([digest_of(b"later")])
    assert sorted(os.listdir(sparse.catalogue)) == ["data.mdb", "lock.mdb", MARK]
    assert not sparse.spare_catalogue.exists()


def test_a_catalogue_that_is_mostly_used_stays_as_it_is(store: Store) -> None:
    with Catalog.open(store) as catalog, catalog.write() as changes:
        for number in range(20_000):
            changes.put_loose(digest_of(b"%d" % number), number)
    before = (store.catalogue / "data.mdb").stat().st_ino

    assert compact(store) == 0
    assert (store.catalogue / "data.mdb").stat().st_ino == before


def test_whoever_reads_meanwhile_goes_on(sparse: Store) -> None:
    """Also in another process, which has pages of the old file mapped, and its lock."""
    with Catalog.open(sparse) as catalog:
        before = known(catalog)
        said = run("from velo_import.store.compaction import compact\nprint(compact(store))", sparse.home)
        assert int(said) > 1 << 20
        assert known(catalog) == before
    with Catalog.open(sparse) as catalog:
        assert known(catalog) == before


@pytest.mark.parametrize("lease", [leases.shared, leases.maintenance])
def test_while_others_write_nothing_is_done(sparse: Store, lease) -> None:
    """What an ingest, a learner or a collection writes to the old catalogue would be lost."""
    before = size(sparse)
    with lease(sparse):
        assert compact(sparse) == 0
    assert size(sparse) == before


@pytest.mark.parametrize("why", ["full disk", "no exchange", "no flush"])
def test_what_cannot_be_done_changes_nothing(
    sparse: Store, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog.open(sparse) as catalog:
        before = known(catalog)

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no")

    if why == "full disk":
        monkeypatch.setattr(Catalog, "copy_to", fail)
    else:
        monkeypatch.setattr(compaction, "exchange" if why == "no exchange" else "flush_all", fail)
    assert compact(sparse) == 0
    assert not sparse.spare_catalogue.exists()
    with Catalog.open(sparse) as catalog:
        assert known(catalog) == before


def test_what_a_killed_one_left_is_removed(sparse: Store) -> None:
    sparse.spare_catalogue.mkdir()
    (sparse.spare_catalogue / "data.mdb").write_bytes(b"half")

    assert Store.open(sparse.home, create=True)
    assert compact(sparse) > 0
    assert not sparse.spare_catalogue.exists()


def test_receipts_hold_after_it_and_not_after_a_rebuild(sparse: Store) -> None:
    """A catalogue that was compacted knows what it knew; one that was made again does not."""

    def mark() -> int:
        return Path(sparse.catalogue, MARK).stat().st_ino

    first = mark()
    assert compact(sparse) > 0
    assert mark() == first
    Catalog.rebuild(sparse).close()
    assert mark() != first

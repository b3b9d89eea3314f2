# SPDX-License-Identifier: Apache-2.0
"""Repack: content moves between files, packs and compressed packs, and is the same wherever it is."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.support.stores import bytecode_pack, digest_of, flip_bit, start, temporaries
from velo_import.errors import StoreCorrupt, StoreLocked, VeloError
from velo_import.format import pack
from velo_import.format.manifest import Build, FileRecord, Manifest, PackRecord, encode
from velo_import.host.files import publish
from velo_import.store import leases
from velo_import.store import repack as repack_module
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import LOOSE, Catalog
from velo_import.store.gc import Wish, collect
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack
from velo_import.store.reading import Reader
from velo_import.store.repack import FILE_FROM, MANY_PACKS, Report, repack
from velo_import.store.verify import verify

DAY = 86400.0
TEXTS = [f"line {number} of some source\n".encode() * (number % 40 + 5) for number in range(200)]
NOISE = random.Random(3).randbytes(9000)
LARGE = b"native code, or something like it. " * 20_000
assert len(LARGE) > FILE_FROM


def packed(
    store: Store, catalog: Catalog, contents: list[bytes], *, age: float = 60 * DAY, compress: bool = False
) -> SealedPack:
    """A recorded content pack, written so many seconds ago; not compressed, as an older Velo left it."""
    writer = PackWriter(store, label="tree", kind="content", compress=compress)
    for content in contents:
        writer.add(content)
    sealed = writer.seal()
    assert sealed is not None
    with catalog.write() as writing:
        writing.put_pack(sealed)
    grow_old(sealed.path, age)
    return sealed


def loose(store: Store, catalog: Catalog, content: bytes, *, age: float = 60 * DAY) -> Path:
    origin = store.home.parent / "origin"
    origin.write_bytes(content)
    blob = Blobs(store).put_file(origin)
    with catalog.write() as writing:
        writing.put_loose(blob.digest, blob.size)
    grow_old(store.loose_path(blob.digest), age)
    return store.loose_path(blob.digest)


def grow_old(path: Path, age: float) -> None:
    os.utime(path, (time.time() - age,) * 2)


def used(
    store: Store, contents: list[bytes], *, age: float = 0.0, packs: tuple[SealedPack, ...] = ()
) -> Path:
    """An environment that names this content and was used so many seconds ago."""
    records = [
        FileRecord(f"/tree/{number:05}", digest_of(content), len(content), 1, 1, 1, 0o100644, 0)
        for number, content in enumerate(contents)
    ]
    named = [PackRecord(f"{each.id[:2]}/{each.id}.pack", each.label, *each.stamp) for each in packs]
    build = Build("cpython-312", bytes.fromhex("cb0d0d0a"), 0, "", (".py",))
    path = store.manifest_folder("cpython-312-venv") / "base.velo"
    publish(path, [encode(Manifest(build, "/venv", [], [], records, named))])
    grow_old(path, age)
    return path


def repacked(store: Store, catalog: Catalog, **options: object) -> Report:
    with leases.maintenance(store):
        report = repack(store, catalog, wait=0, **options)  # type: ignore[arg-type]
    assert temporaries(store.home) == []
    return report


def everything(catalog: Catalog, contents: list[bytes]) -> None:
    """All of it is there, each under its own id; and the store is sound."""
    with Reader(catalog) as reader:
        assert reader.missing(map(digest_of, contents)) == set()
        for content in contents:
            assert reader.read(digest_of(content)) == content
    assert verify(catalog.store, catalog).damaged == []


def codecs(catalog: Catalog, contents: list[bytes]) -> set[int]:
    return {place.codec for place in catalog.locations(map(digest_of, contents)).values()}


def test_cold_content_is_compressed(store: Store, catalog: Catalog) -> None:
    old = packed(store, catalog, [*TEXTS, NOISE, b""])
    size = old.stamp.size

    report = repacked(store, catalog, jobs=2)

    assert (report.packs_removed, report.packs_made, report.cooled) == (1, 1, len(TEXTS) + 2)
    assert (report.bytes_removed, report.damaged) == (size, [])
    assert report.bytes_made < size / 2
    assert not old.path.exists() and old.id not in catalog.packs()
    assert codecs(catalog, TEXTS) == {pack.ZSTD}
    assert codecs(catalog, [NOISE, b""]) == {pack.PLAIN}
    everything(catalog, [*TEXTS, NOISE, b""])


def test_nothing_is_done_twice(store: Store, catalog: Catalog) -> None:
    """Also what does not shrink is settled: nobody tries it again every night."""
    packed(store, catalog, [*TEXTS, NOISE])
    repacked(store, catalog)
    for path in store.packs.glob("??/*.pack"):
        grow_old(path, 60 * DAY)

    assert repacked(store, catalog) == Report()


@pytest.mark.parametrize("age", [0.0, 29 * DAY])
def test_files_that_an_environment_uses_stay_files(store: Store, catalog: Catalog, age: float) -> None:
    file = loose(store, catalog, LARGE)
    used(store, [LARGE], age=age)

    assert repacked(store, catalog) == Report()
    assert file.exists()


def test_packs_of_an_older_velo_are_compressed_even_if_they_are_used(store: Store, catalog: Catalog) -> None:
    """No program maps content that lies in a pack: it need not be as it was."""
    old = packed(store, catalog, TEXTS, age=DAY)
    used(store, TEXTS)

    assert repacked(store, catalog).cooled == len(TEXTS)
    assert not old.path.exists()
    assert codecs(catalog, TEXTS) == {pack.ZSTD}
    everything(catalog, TEXTS)


def test_files_that_no_environment_has_used_for_long_are_cold(store: Store, catalog: Catalog) -> None:
    file = loose(store, catalog, LARGE)
    manifest = used(store, [LARGE], age=31 * DAY)

    assert repacked(store, catalog).cooled == 1
    assert manifest.exists() and not file.exists()
    everything(catalog, [LARGE])


def test_what_is_young_stays(store: Store, catalog: Catalog) -> None:
    """It may belong to an ingest that has not published yet, or to a manifest that comes tomorrow."""
    packed(store, catalog, TEXTS, age=60.0)
    loose(store, catalog, LARGE, age=29 * DAY)

    assert repacked(store, catalog) == Report()
    assert repacked(store, catalog, cold_after=28 * DAY).cooled == 1


def test_packs_that_are_mostly_as_they_should_be_stay(store: Store, catalog: Catalog) -> None:
    """One large file that is used again is not worth writing all the others once more."""
    packed(store, catalog, [LARGE, LARGE[1:], LARGE[2:]])
    repacked(store, catalog)
    for path in store.packs.glob("??/*.pack"):
        grow_old(path, DAY)
    used(store, [LARGE])

    assert repacked(store, catalog) == Report()


def test_large_content_comes_back_when_it_is_used_again(store: Store, catalog: Catalog) -> None:
    """What was a file is one again: what programs map is never unpacked twice."""
    packed(store, catalog, TEXTS)
    file = loose(store, catalog, LARGE)
    first = repacked(store, catalog)
    assert (first.packed, file.exists()) == (1, False)
    everything(catalog, [*TEXTS, LARGE])
    for path in store.packs.glob("??/*.pack"):
        grow_old(path, 2 * DAY)
    used(store, [*TEXTS, LARGE])

    report = repacked(store, catalog)

    assert (report.warmed, report.unpacked, report.cooled) == (1, 1, 0)
    assert file.read_bytes() == LARGE
    assert file.stat().st_mode & 0o777 == 0o444
    places = catalog.locations(map(digest_of, [*TEXTS, LARGE]))
    assert places[digest_of(LARGE)].where == LOOSE
    assert codecs(catalog, TEXTS) == {pack.ZSTD}
    everything(catalog, [*TEXTS, LARGE])


def test_loose_blobs_that_cannot_gain_stay_loose(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    """Noise does not shrink; a file that a tree shares by hard link would free nothing."""
    noise = loose(store, catalog, random.Random(5).randbytes(FILE_FROM))
    noise_behind_text = loose(store, catalog, random.Random(6).randbytes(3 << 20))
    linked = loose(store, catalog, LARGE)
    os.link(linked, tmp_path / "exported")

    assert repacked(store, catalog) == Report()
    assert noise.exists() and noise_behind_text.exists() and linked.exists()


def test_bytecode_is_never_touched(store: Store, catalog: Catalog) -> None:
    """It is mapped by programs; and a pack that any manifest names stays, whatever is in it."""
    code = bytecode_pack(store, range(50))
    content = packed(store, catalog, TEXTS)
    with catalog.write() as writing:
        writing.put_pack(code)
    grow_old(code.path, 60 * DAY)
    used(store, [], age=60 * DAY, packs=(code, content))

    assert repacked(store, catalog) == Report()
    assert code.path.exists() and content.path.exists()


def test_many_small_packs_become_one(store: Store, catalog: Catalog) -> None:
    """Each ingest leaves one; nobody wants to open thousands."""
    step = len(TEXTS) // MANY_PACKS
    for first in range(0, step * (MANY_PACKS - 1), step):
        packed(store, catalog, TEXTS[first : first + step], age=DAY, compress=True)
    used(store, TEXTS)
    assert repacked(store, catalog) == Report()
    packed(store, catalog, TEXTS[step * (MANY_PACKS - 1) :], age=DAY, compress=True)

    report = repacked(store, catalog)

    assert (report.packs_removed, report.packs_made, report.cooled) == (MANY_PACKS, 1, 0)
    everything(catalog, TEXTS)


def test_content_that_is_also_elsewhere_is_not_copied(store: Store, catalog: Catalog) -> None:
    packed(store, catalog, TEXTS[:150])
    other = packed(store, catalog, TEXTS[100:], compress=True)  # what both have is recorded here

    report = repacked(store, catalog)

    assert (report.packs_removed, report.cooled) == (1, 100)
    assert other.path.exists()
    everything(catalog, TEXTS)


def test_rounds_bound_the_space(store: Store, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old files go as soon as some have been replaced, not when all have."""
    monkeypatch.setattr(repack_module, "_ROUND_BYTES", 1)
    monkeypatch.setattr(repack_module, "_BATCH_BYTES", 5000)
    for first in range(0, 200, 50):
        packed(store, catalog, TEXTS[first : first + 50])
    loose(store, catalog, LARGE)

    report = repacked(store, catalog)

    assert (report.packs_removed, report.packs_made) == (4, 5)
    everything(catalog, [*TEXTS, LARGE])


def test_progress_comes_to_its_end(store: Store, catalog: Catalog) -> None:
    packed(store, catalog, TEXTS)
    loose(store, catalog, LARGE)
    seen: list[tuple[str, int, int]] = []
    repacked(store, catalog, progress=lambda *step: seen.append(step))

    assert seen == [("packs", 0, 2), ("files", 1, 2), ("", 2, 2)]


# -- what may go wrong -----------------------------------------------------------------------------


def test_damaged_content_stays_where_it_is(store: Store, catalog: Catalog) -> None:
    """Moving it would give it a right name; `velo verify` knows what to do with it."""
    old = packed(store, catalog, TEXTS)
    file = loose(store, catalog, LARGE)
    flip_bit(old.path, max(old.entries, key=lambda entry: entry.offset).offset)
    flip_bit(file, 5)
    grow_old(old.path, 60 * DAY)
    grow_old(file, 60 * DAY)

    report = repacked(store, catalog)

    assert set(report.damaged) == {old.path, file}
    assert old.path.exists() and file.exists()


def test_a_root_that_cannot_be_read_stops_it(store: Store, catalog: Catalog) -> None:
    old = packed(store, catalog, TEXTS)
    flip_bit(used(store, TEXTS), 40)

    with pytest.raises(StoreCorrupt):
        repacked(store, catalog)
    assert old.path.exists()


def test_old_files_stay_while_somebody_relies_on_them(store: Store, catalog: Catalog) -> None:
    old = packed(store, catalog, TEXTS)
    with leases.shared(store), pytest.raises(StoreLocked):
        repacked(store, catalog)

    assert old.path.exists()
    assert temporaries(store.home) == []
    everything(catalog, TEXTS)
    assert repacked(store, catalog).cooled == len(TEXTS)
    everything(catalog, TEXTS)


def test_a_full_disk_loses_nothing(store: Store, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    old = packed(store, catalog, TEXTS)

    def full(descriptor: int, data: object) -> None:
        raise OSError(28, "injected")

    with monkeypatch.context() as patch:
        patch.setattr("velo_import.store.packs.write_all", full)
        with pytest.raises(VeloError, match="no space left"):
            repacked(store, catalog)
    assert old.path.exists()
    assert temporaries(store.home) == []
    everything(catalog, TEXTS)


def test_a_pack_that_changed_meanwhile_is_kept(
    store: Store, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = packed(store, catalog, TEXTS)
    exclusive = leases.exclusive

    def late(store: Store, *, wait: float) -> object:
        os.utime(old.path)
        return exclusive(store, wait=wait)

    monkeypatch.setattr(leases, "exclusive", late)
    report = repacked(store, catalog)

    assert (report.packs_removed, report.packs_made) == (0, 1)
    assert old.path.exists()
    everything(catalog, TEXTS)


REPACK_FOREVER = """
import itertools, time
from velo_import.store import leases, repack
repack._ROUND_BYTES = 50_000
repack._BATCH_BYTES = 20_000
future = time.time() + 10 * repack.COLD_AFTER
print("ready", flush=True)
for turn in itertools.count(int(sys.argv[2])):
    with leases.maintenance(store, wait=10), Catalog.open(store) as catalog:
        # All is cold, then all is warm.
        repack.repack(store, catalog, now=future, cold_after=(1 + turn % 2 * 1000) * repack.COLD_AFTER)
"""


def test_kill_at_any_moment_loses_nothing(store: Store) -> None:
    """Everything is where the catalogue says, whatever was on its way."""
    contents = [text * 10 for text in TEXTS] + [LARGE, LARGE[:-1], LARGE[1:]]
    with Catalog.open(store) as catalog:
        for first in range(0, 200, 40):
            packed(store, catalog, contents[first : first + 40])
        for content in contents[200:]:
            loose(store, catalog, content)
    used(store, contents)
    chance = random.Random(11)
    seen: set[int] = set()
    for turn in range(64):
        child = start(REPACK_FOREVER, store.home, str(turn))
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.5))
        child.kill()
        child.communicate(timeout=60)
        with Catalog.open(store) as catalog:
            everything(catalog, contents)
            seen |= codecs(catalog, contents)
        if turn >= 7 and len(seen) == 2:  # It did work meanwhile, if only slowly.
            break
    assert seen == {pack.PLAIN, pack.ZSTD}


def test_gc_and_repack_agree(store: Store, catalog: Catalog) -> None:
    """What repack has moved is protected by the same manifests, and is garbage when they are gone."""
    packed(store, catalog, TEXTS)
    loose(store, catalog, LARGE)
    used(store, [*TEXTS[:100], LARGE], age=40 * DAY)
    repacked(store, catalog)
    catalog.close()
    later = time.time() + 2 * 3600

    collect(store, Wish(), now=later)
    with Catalog.open(store) as opened:
        everything(opened, [*TEXTS[:100], LARGE])
    collect(store, Wish(unused_for=30 * DAY), now=later)

    assert list(store.packs.glob("??/*.pack")) == []
    with Catalog.open(store) as opened:
        assert opened.has_blobs(map(digest_of, TEXTS)) == set()

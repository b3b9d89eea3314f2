# SPDX-License-Identifier: Apache-2.0
"""Verification finds what is damaged, and repair brings back all that exists anywhere else."""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.stores import (
    BUILD,
    bytecode_pack,
    digest_of,
    flip_bit,
    replace,
    source,
    start,
    temporaries,
)
from velo_import.format import manifest as manifests
from velo_import.format.contents import Contents, encode_contents
from velo_import.format.distributions import Table as Distributions
from velo_import.format.distributions import encode_distributions
from velo_import.format.images import Image, Images, encode_images, stamped_header
from velo_import.format.manifest import Build, FileRecord, Manifest, PackRecord, encode
from velo_import.format.remembered import Table, encode_table
from velo_import.format.root import encode_root
from velo_import.host import files
from velo_import.host.files import Stamp, make_folders, publish, stamp_of
from velo_import.store import leases, quarantine
from velo_import.store import verify as verify_module
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import LOOSE, PACKED, Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack, open_pack
from velo_import.store.quarantine import quarantined
from velo_import.store.reading import Reader
from velo_import.store.repair import Outcome, repair
from velo_import.store.twins import executable_twin
from velo_import.store.verify import (
    BLOB,
    INDEX,
    MANIFEST,
    PACK,
    ROOT,
    TABLE,
    TWIN,
    Subject,
    Verification,
    due,
    verify,
)

TEXTS = [b"text %d\n" % number * (number % 50 + 1) for number in range(120)]
DIGESTS = [digest_of(text) for text in TEXTS]


def content_pack(
    store: Store, catalog: Catalog, numbers: range, *, compress: bool = False, label: str = "tree"
) -> SealedPack:
    """A recorded pack of some of the texts."""
    writer = PackWriter(store, label=label, kind="content", compress=compress)
    for number in numbers:
        writer.add(TEXTS[number])
    sealed = writer.seal()
    assert sealed is not None
    with catalog.write() as writing:
        writing.put_pack(sealed)
    return sealed


def code_pack(store: Store, catalog: Catalog, numbers: range) -> SealedPack:
    sealed = bytecode_pack(store, numbers)
    with catalog.write() as writing:
        writing.put_pack(sealed)
    return sealed


def loose_blob(store: Store, catalog: Catalog, origin: Path, data: bytes) -> Path:
    origin.parent.mkdir(parents=True, exist_ok=True)
    origin.write_bytes(data)
    blob = Blobs(store).put_file(origin)
    with catalog.write() as writing:
        writing.put_loose(blob.digest, blob.size)
    return store.loose_path(blob.digest)


def published(
    store: Store,
    files_: dict[Path, bytes],
    packs: tuple[SealedPack, ...] = (),
    *,
    key: str = "cpython-312-venv",
) -> Path:
    """A manifest that names these files (by content) and packs."""
    records = [
        FileRecord(str(path), digest_of(data), len(data), 1, 1, 1, 0o100644, 0)
        for path, data in sorted(files_.items())
    ]
    named = [PackRecord(f"{pack.id[:2]}/{pack.id}.pack", pack.label, *pack.stamp) for pack in packs]
    build = Build("cpython-312", bytes.fromhex("cb0d0d0a"), 0, "", (".py",))
    path = store.manifest_folder(key) / "base.velo"
    publish(path, [encode(Manifest(build, "/venv", [], [], records, named))])
    return path


def written(folder: Path) -> dict[Path, bytes]:
    """A source tree with all of the texts."""
    folder.mkdir()
    paths = {folder / f"{number:03}.txt": text for number, text in enumerate(TEXTS)}
    for path, text in paths.items():
        path.write_bytes(text)
    return paths


def repaired(store: Store, catalog: Catalog) -> tuple[Verification, list[Outcome]]:
    with leases.maintenance(store):
        found = verify(store, catalog)
        return found, repair(store, catalog, found, wait=0)


def everything(catalog: Catalog) -> None:
    """Each text is in the store, and is itself."""
    with Reader(catalog) as reader:
        for digest, text in zip(DIGESTS, TEXTS, strict=True):
            assert reader.read(digest) == text


def is_sound(store: Store, catalog: Catalog) -> bool:
    found = verify(store, catalog)
    return not found.damaged and not found.outdated


# -- finding ---------------------------------------------------------------------------------------


def test_a_sound_store_is_said_to_be_sound(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    code_pack(store, catalog, range(20))
    content_pack(store, catalog, range(20), compress=True)
    loose_blob(store, catalog, tmp_path / "large", b"large")
    published(store, {})
    seen: list[tuple[int, int]] = []

    found = verify(store, catalog, jobs=2, progress=lambda *step: seen.append(step))

    assert found.sound == {PACK: 2, BLOB: 1, TWIN: 0, MANIFEST: 1, ROOT: 0, TABLE: 0, INDEX: 0}
    assert (found.damaged, found.left, found.outdated, found.skipped) == ([], [], [], 0)
    assert seen[0] == (0, found.bytes) and seen[-1] == (found.bytes, found.bytes)


def test_every_kind_of_file_is_looked_at(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    packed = content_pack(store, catalog, range(20))
    loose = loose_blob(store, catalog, tmp_path / "large", b"large")
    manifest = published(store, {tmp_path / "x": b"x"})
    root = store.roots / "ab.root"
    publish(root, [b"VELOROOT and nothing more"])
    for path, place in ((packed.path, 200), (loose, 2), (manifest, 40)):
        flip_bit(path, place)

    found = verify(store, catalog)

    assert {(damage.subject.kind, damage.subject.path) for damage in found.damaged} == {
        (PACK, str(packed.path)),
        (BLOB, str(loose)),
        (MANIFEST, str(manifest)),
        (ROOT, str(root)),
    }
    assert packed.path.exists() and loose.exists()  # finding changes nothing


def test_a_file_of_a_later_velo_is_left_alone(store: Store, catalog: Catalog) -> None:
    """Missing for us, and not damaged: what its roots protect stays protected."""
    packed = content_pack(store, catalog, range(3))
    manifest = published(store, {})
    root = store.roots / f"{'0' * 32}.root"
    make_folders(root.parent)
    publish(root, [encode_root("/somewhere/app.velo", [], [])])
    table = store.manifest_folder("cpython-312-venv") / "remembered.table"
    publish(table, [encode_table(Table(b"who", {}))])
    written = [packed.path, manifest, root, table]
    for path in written:
        flip_bit(path, 8, 4)  # version 17 or 18

    found, outcomes = repaired(store, catalog)

    assert (found.damaged, outcomes) == ([], [])
    assert {damage.subject.path for damage in found.left} == {str(path) for path in written}
    assert all("version 1" in damage.reason for damage in found.left)
    assert all(path.exists() for path in written)


def test_a_failing_disk_is_damage_and_a_closed_door_is_not(
    store: Store, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = loose_blob(store, catalog, tmp_path / "large", b"large")
    for number, damaged in ((errno.EIO, True), (errno.EACCES, False)):

        def refuse(path: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(verify_module, "open_quietly", refuse)
            found = verify(store, catalog)
        assert [bool(found.damaged), bool(found.left)] == [damaged, not damaged]
    assert loose.exists()


def test_a_file_that_is_replaced_meanwhile_is_not_judged(
    store: Store, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = content_pack(store, catalog, range(20))
    flip_bit(packed.path, 200)
    judge = verify_module._judge

    def slowly(subject: Subject) -> object:
        verdict = judge(subject)
        content_pack(store, catalog, range(20))  # somebody stores the same again, which heals it
        return verdict

    monkeypatch.setattr(verify_module, "_judge", slowly)
    assert verify(store, catalog).damaged == []


# -- the cheap check -------------------------------------------------------------------------------


def test_what_was_verified_is_not_read_again(
    store: Store, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stamp answers; that is what makes a nightly check of a big store possible."""
    content_pack(store, catalog, range(20))
    loose_blob(store, catalog, tmp_path / "large", b"large")
    verify(store, catalog)
    read: list[str] = []
    judge = verify_module._judge
    monkeypatch.setattr(
        verify_module, "_judge", lambda subject, rest: (read.append(subject.kind), judge(subject, rest))[1]
    )

    found = verify(store, catalog, sample=0)

    assert (read, found.skipped) == ([], 2)


@pytest.mark.parametrize("kind", [PACK, BLOB])
def test_what_was_written_to_is_read_in_any_sample(
    store: Store, catalog: Catalog, tmp_path: Path, kind: str
) -> None:
    """Even if size and mtime are put back: nobody can put back a ctime."""
    paths = {
        PACK: content_pack(store, catalog, range(20)).path,
        BLOB: loose_blob(store, catalog, tmp_path / "large", b"large"),
    }
    verify(store, catalog)
    before = paths[kind].stat()
    flip_bit(paths[kind], 2)
    paths[kind].chmod(0o444)
    os.utime(paths[kind], ns=(before.st_atime_ns, before.st_mtime_ns))

    found = verify(store, catalog, sample=0)

    assert [damage.subject.kind for damage in found.damaged] == [kind]


def test_a_flipped_bit_in_the_paths_of_a_manifest_is_found(
    store: Store, catalog: Catalog, tmp_path: Path
) -> None:
    """At the first verification, whoever wrote it: the tables of paths have a checksum of their own."""
    path = published(store, {tmp_path / "x": b"x"})
    flip_bit(path, path.read_bytes().index(digest_of(b"x")))

    found = verify(store, catalog)

    assert [damage.subject.path for damage in found.damaged] == [str(path)]
    assert "checksum of the path tables" in found.damaged[0].reason


def test_records_of_what_has_gone_are_dropped(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    packed = content_pack(store, catalog, range(20))
    file = loose_blob(store, catalog, tmp_path / "large", b"large")
    manifest = published(store, {})
    verify(store, catalog)
    assert len(catalog.verified()) == 3
    for path in (packed.path, file, manifest):
        path.unlink()

    verify(store, catalog)

    assert catalog.verified() == {}


def test_a_sample_takes_what_was_verified_longest_ago() -> None:
    subjects = [Subject(BLOB, f"{number:064x}", "", Stamp(100, 0, 0, number)) for number in range(10)]
    now = 0
    known: dict[tuple[int, bytes], verify_module.Verified] = {}
    seen: list[int] = []
    for _ in range(5):
        chosen = due(subjects, known, 20)
        assert len(chosen) == 2
        for subject in chosen:
            now += 1
            seen.append(subject.stamp.ino)
            known[LOOSE, bytes.fromhex(subject.name)] = verify_module.Verified(subject.stamp, now)
    assert sorted(seen) == list(range(10))


def test_a_sample_is_a_share_of_the_bytes() -> None:
    subjects = [Subject(PACK, f"{number:064x}", "", Stamp(1, 0, 0, 1)) for number in range(99)]
    subjects.append(Subject(PACK, "ff" * 32, "", Stamp(901, 0, 0, 1)))

    assert len(due(subjects, {}, 5)) == 50
    assert len(due(subjects, {}, 0)) == 0
    assert len(due(subjects, {}, 100)) == 100


def test_new_stamps_are_recorded(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    """After a restore from backup, one verification is enough; nobody verifies the same pack twice."""
    packed = content_pack(store, catalog, range(20))
    copy = tmp_path / "copy"
    shutil.copy(packed.path, copy)
    os.replace(copy, packed.path)

    verify(store, catalog)

    record = catalog.packs()[packed.id]
    assert record.stamp == stamp_of(packed.path.stat()) != packed.stamp
    assert catalog.verified()[PACKED, bytes.fromhex(packed.id)].stamp == record.stamp


def test_manifests_learn_the_new_stamps(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    """Otherwise a restored store would serve nothing until everything is ingested again."""
    packed = code_pack(store, catalog, range(20))
    other = content_pack(store, catalog, range(3))
    path = published(store, {tmp_path / "x": b"x"}, (packed, other))
    os.utime(path, (1000, 2000))
    before = manifests.decode(path.read_bytes())
    copy = tmp_path / "copy"
    shutil.copy(packed.path, copy)
    os.replace(copy, packed.path)

    found, outcomes = repaired(store, catalog)

    assert ([subject.name for subject in found.outdated], outcomes) == (["cpython-312-venv/base.velo"], [])
    after = manifests.decode(path.read_bytes())
    assert after.packs[0][2:] == stamp_of(packed.path.stat())
    assert after._replace(packs=before.packs) == before
    assert path.stat().st_mtime == 2000  # a repair is no use: `velo gc --unused-for` goes on counting
    assert is_sound(store, catalog)


def test_readonly_stores_are_read(store: Store) -> None:
    with Catalog.open(store) as catalog:
        packed = content_pack(store, catalog, range(20))
    flip_bit(packed.path, 200)
    shared = Store.open(store.home, readonly=True)
    with Catalog.open(shared) as readonly:
        assert [damage.subject.name for damage in verify(shared, readonly).damaged] == [packed.id]


# -- repair of packs -------------------------------------------------------------------------------


def in_the_payload(pack: SealedPack) -> int:
    return max(entry.offset for entry in pack.entries)


def in_an_entry_header(pack: SealedPack) -> int:
    return max(entry.offset for entry in pack.entries) - 90


def in_the_index(pack: SealedPack) -> int:
    return pack.stamp.size - 400


def in_the_tail(pack: SealedPack) -> int:
    return pack.stamp.size - 60


def in_the_header(pack: SealedPack) -> int:
    return 3


Place = Callable[[SealedPack], int]
INSIDE: list[Place] = [in_the_payload, in_an_entry_header]
OUTSIDE: list[Place] = [in_the_index, in_the_tail, in_the_header]


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "zstd"])
@pytest.mark.parametrize("place", INSIDE)
def test_a_pack_comes_back_as_it_was(
    store: Store, catalog: Catalog, tmp_path: Path, place: Place, compress: bool
) -> None:
    """The payload is found in the tree it came from, so the pack keeps its id and its bytes."""
    packed = content_pack(store, catalog, range(len(TEXTS)), compress=compress)
    manifest = published(store, written(tmp_path / "tree"), (packed,))
    before = packed.path.read_bytes()
    flip_bit(packed.path, place(packed))

    _, (outcome,) = repaired(store, catalog)

    assert outcome.restored and outcome.is_healed
    assert (outcome.lost, outcome.affected) == ([], [])
    assert packed.path.read_bytes() == before
    assert os.stat(packed.path).st_mode & 0o777 == 0o444
    assert catalog.packs()[packed.id].stamp == stamp_of(packed.path.stat())
    # The manifest goes on being served from it.
    assert manifests.decode(manifest.read_bytes()).packs[0][2:] == stamp_of(packed.path.stat())
    assert [path.name.partition("-")[2] for path in quarantined(store)] == [packed.path.name]
    everything(catalog)
    assert is_sound(store, catalog)
    assert temporaries(store.home) == []


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "zstd"])
@pytest.mark.parametrize("place", OUTSIDE)
def test_a_pack_without_its_end_is_read_from_the_front(
    store: Store, catalog: Catalog, place: Place, compress: bool
) -> None:
    """No other copy is needed: every payload is whole, and stands behind a header that names it."""
    packed = content_pack(store, catalog, range(len(TEXTS)), compress=compress)
    before = packed.path.read_bytes()
    flip_bit(packed.path, place(packed))

    _, (outcome,) = repaired(store, catalog)

    assert (outcome.restored, outcome.lost) == (True, [])
    assert packed.path.read_bytes() == before
    assert len(quarantined(store)) == 1
    everything(catalog)
    assert is_sound(store, catalog)


def test_a_pack_that_nobody_knows_is_salvaged(store: Store) -> None:
    """Neither its end nor the catalogue says what it was for: it gets another label, and so another id."""
    writer = PackWriter(store, label="tree", kind="content")
    for text in TEXTS:
        writer.add(text)
    packed = writer.seal()
    assert packed is not None
    flip_bit(packed.path, in_the_tail(packed))
    with Catalog.open(store) as catalog:
        _, (outcome,) = repaired(store, catalog)

        assert (outcome.restored, outcome.is_healed, outcome.moved) == (False, True, len(TEXTS))
        everything(catalog)
        (record,) = catalog.packs().values()
        assert record.label == "salvaged"
        assert is_sound(store, catalog)
    assert not packed.path.exists()


@pytest.mark.parametrize("length", [0, 63, 64, 3000, 9001])
def test_a_pack_that_was_cut_is_refilled(store: Store, catalog: Catalog, tmp_path: Path, length: int) -> None:
    packed = content_pack(store, catalog, range(len(TEXTS)))
    published(store, written(tmp_path / "tree"))
    replace(packed.path, packed.path.read_bytes()[:length])

    _, (outcome,) = repaired(store, catalog)

    assert (outcome.lost, outcome.is_healed) == ([], True)
    everything(catalog)
    assert is_sound(store, catalog)


def test_another_pack_and_a_loose_blob_are_copies_too(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    loose_blob(store, catalog, tmp_path / "seven", TEXTS[7])
    content_pack(store, catalog, range(8, 20), label="other")
    packed = content_pack(store, catalog, range(7, 20))
    for entry in packed.entries:
        flip_bit(packed.path, entry.offset)

    _, (outcome,) = repaired(store, catalog)

    assert outcome.restored
    with open_pack(packed.path) as file:
        assert file.damaged() == []


def test_lost_content_is_named_and_the_rest_survives(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    """Its source has changed since: nothing is invented, nothing else is lost with it."""
    packed = content_pack(store, catalog, range(len(TEXTS)))
    tree = written(tmp_path / "tree")
    published(store, tree)
    victim = next(entry for entry in packed.entries if entry.digest == DIGESTS[9])
    (tmp_path / "tree" / "009.txt").write_bytes(b"edited")
    flip_bit(packed.path, victim.offset)

    _, (outcome,) = repaired(store, catalog)

    assert (outcome.restored, outcome.is_healed, outcome.moved) == (False, False, len(TEXTS) - 1)
    assert outcome.lost == [DIGESTS[9]]
    assert outcome.affected == [str(tmp_path / "tree" / "009.txt")]
    assert catalog.has_blobs(DIGESTS) == {*DIGESTS} - {DIGESTS[9]}
    assert is_sound(store, catalog)


def test_bytecode_that_is_lost_is_compiled_again(store: Store, catalog: Catalog) -> None:
    """It needs no copy; the environments that used the pack are named."""
    packed = code_pack(store, catalog, range(50))
    published(store, {}, (packed,))
    victim = next(entry for entry in packed.entries if entry.source == source(33))
    flip_bit(packed.path, victim.offset)

    _, (outcome,) = repaired(store, catalog)

    assert (outcome.forgotten, outcome.lost, outcome.is_healed) == (1, [], True)
    assert outcome.affected == ["/venv"]
    found = catalog.variants_of(map(source, range(50)), BUILD, 0)
    assert {*map(source, range(50))} - set(found) == {source(33)}
    assert is_sound(store, catalog)


def test_bytecode_without_an_index_keeps_what_its_headers_tell(store: Store, catalog: Catalog) -> None:
    """The build is in the catalogue. That two sources gave one payload is in the index alone."""
    with PackWriter(store, label="demo-1.0", kind="bytecode", build=BUILD) as writer:
        for number in range(50):
            writer.add(b"code %d" % (number % 49), source=source(number))
        packed = writer.seal()
    assert packed is not None
    with catalog.write() as writing:
        writing.put_pack(packed)
    flip_bit(packed.path, in_the_tail(packed))

    _, (outcome,) = repaired(store, catalog)

    assert (outcome.restored, outcome.is_healed, outcome.moved) == (False, True, 49)
    assert set(catalog.variants_of(map(source, range(50)), BUILD, 0)) == {*map(source, range(49))}


def test_nobody_knows_the_build(store: Store) -> None:
    """Neither index nor catalogue: bytecode of an unknown build is never guessed at."""
    packed = bytecode_pack(store, range(50))
    flip_bit(packed.path, in_the_tail(packed))
    with Catalog.open(store) as catalog:
        _, (outcome,) = repaired(store, catalog)
        assert catalog.counts()["variants"] == 0

    assert (outcome.moved, outcome.lost) == (0, [])
    assert not packed.path.exists()


# -- repair of everything else ---------------------------------------------------------------------


@pytest.mark.parametrize("copy", ["tree", "pack"])
def test_a_loose_blob_comes_back(store: Store, catalog: Catalog, tmp_path: Path, copy: str) -> None:
    origin = tmp_path / "tree" / "large"
    loose = loose_blob(store, catalog, origin, TEXTS[5])
    if copy == "tree":
        published(store, {origin: TEXTS[5]})
    else:
        content_pack(store, catalog, range(10))
        with catalog.write() as writing:
            writing.put_loose(DIGESTS[5], len(TEXTS[5]))
    flip_bit(loose, 2)

    _, (outcome,) = repaired(store, catalog)

    assert outcome.restored
    assert loose.read_bytes() == TEXTS[5]
    assert os.stat(loose).st_mode & 0o777 == 0o444
    assert os.stat(loose).st_ino != os.stat(origin).st_ino
    assert catalog.locations([DIGESTS[5]])[DIGESTS[5]].where == LOOSE
    assert len(quarantined(store)) == 1
    assert is_sound(store, catalog)


def test_a_loose_blob_that_is_nowhere_else_is_missing(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    origin = tmp_path / "tree" / "large"
    loose = loose_blob(store, catalog, origin, b"large")
    published(store, {origin: b"large"})
    origin.unlink()
    os.mkfifo(origin)  # never waited for
    flip_bit(loose, 2)

    _, (outcome,) = repaired(store, catalog)

    assert (outcome.restored, outcome.lost, outcome.affected) == (False, [digest_of(b"large")], [str(origin)])
    assert not loose.exists()
    assert catalog.has_blobs([digest_of(b"large")]) == set()


def test_an_executable_twin_is_made_again(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    """Its blob is all it takes. Who has linked the damaged one keeps it; nobody new gets it."""
    loose_blob(store, catalog, tmp_path / "tool", b"#!/bin/sh")
    twin = executable_twin(store, digest_of(b"#!/bin/sh"))
    assert twin is not None
    assert is_sound(store, catalog)
    flip_bit(twin, 3)

    _, (outcome,) = repaired(store, catalog)

    assert (outcome.damage.subject.kind, outcome.is_healed, outcome.lost) == (TWIN, True, [])
    assert not twin.exists()
    assert executable_twin(store, digest_of(b"#!/bin/sh")) == twin
    assert twin.read_bytes() == b"#!/bin/sh"
    assert is_sound(store, catalog)


def test_a_damaged_manifest_is_put_aside(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    """Nothing can bring it back but an ingest; until then its programs run as without Velo."""
    path = published(store, {tmp_path / "x": b"x"})
    with catalog.write() as writing:
        writing.put_manifest("cpython-312-venv", {"prefix": "/the/venv"})
    flip_bit(path, 40)

    _, (outcome,) = repaired(store, catalog)

    assert (outcome.is_healed, outcome.affected) == (False, ["/the/venv"])
    assert not path.exists()
    assert is_sound(store, catalog)


@pytest.mark.parametrize("name", ["remembered.table", "images.table", "metadata.table", "contents.table"])
def test_a_damaged_table_is_put_aside_and_made_again(store: Store, catalog: Catalog, name: str) -> None:
    """Programs work without what was kept of their starts, and the next learner keeps it again."""
    whole = {
        "remembered.table": encode_table(Table(b"who", {b"Pkey": b"value"})),
        "images.table": stamped_images(),
        "metadata.table": encode_distributions(Distributions(b"who", ())),
        "contents.table": encode_contents(Contents(b"who", ())),
    }
    path = store.manifest_folder("cpython-312-venv") / name
    publish(path, [whole[name]])
    assert is_sound(store, catalog)
    flip_bit(path, len(whole[name]) - 1 if name == "images.table" else 30)

    found, (outcome,) = repaired(store, catalog)

    assert [damage.subject.kind for damage in found.damaged] == [TABLE]
    assert (outcome.is_healed, outcome.affected) == (True, [])
    assert not path.exists()
    assert is_sound(store, catalog)


def stamped_images() -> bytes:
    image = Image(b"d" * 32, b"", b"", b"", b"", 0, b"m", ())
    data = encode_images(Images(b"who", (1, 2, 3, 0), {(1, 2): image}))
    header = stamped_header(data, 0, 0)
    return header + bytes(data[len(header) :])


def test_what_was_replaced_since_is_not_put_aside(store: Store, catalog: Catalog) -> None:
    packed = content_pack(store, catalog, range(20))
    flip_bit(packed.path, in_the_payload(packed))
    with leases.maintenance(store):
        found = verify(store, catalog)
        content_pack(store, catalog, range(20))  # heals it
        outcomes = repair(store, catalog, found, wait=0)

    assert outcomes == []
    assert is_sound(store, catalog)
    assert quarantined(store) == []


def test_repair_waits_for_those_who_rely_on_the_store(store: Store, catalog: Catalog) -> None:
    packed = content_pack(store, catalog, range(20))
    flip_bit(packed.path, in_the_payload(packed))
    with leases.maintenance(store):
        found = verify(store, catalog)
        with leases.shared(store), pytest.raises(leases.StoreLocked):
            repair(store, catalog, found, wait=0)

    assert packed.path.exists()
    assert temporaries(store.home) == []


def test_a_failed_flush_leaves_the_damaged_file(
    store: Store, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = content_pack(store, catalog, range(20))
    published(store, written(tmp_path / "tree"))
    flip_bit(packed.path, in_the_payload(packed))

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "injected")

    with leases.maintenance(store):
        found = verify(store, catalog)
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", fsync)
            with pytest.raises(OSError, match="injected"):
                repair(store, catalog, found, wait=0)
        assert packed.path.exists()
        (outcome,) = repair(store, catalog, found, wait=0)
    assert outcome.restored
    assert temporaries(store.home) == []


REPAIR_ONCE = """
from velo_import.store import leases
from velo_import.store.repair import repair
from velo_import.store.verify import verify
with Catalog.open(store) as catalog, leases.maintenance(store, wait=10):
    print("ready", flush=True)
    repair(store, catalog, verify(store, catalog), wait=10)
"""


def test_killed_repair_is_finished_by_the_next(store: Store, tmp_path: Path) -> None:
    """What the first has put aside and not refilled counts as missing; the content is stored again from its
    source by whoever needs it. What it did not reach is repaired by the second."""
    tree = written(tmp_path / "tree")
    with Catalog.open(store) as catalog:
        packs = [content_pack(store, catalog, range(start_, start_ + 20)) for start_ in range(0, 120, 20)]
    published(store, tree, tuple(packs))
    chance = random.Random(5)
    for _ in range(6):
        for path in store.packs.glob("??/*.pack"):
            flip_bit(path, 64 + 96 + 2)
        child = start(REPAIR_ONCE, store.home)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.08))
        child.kill()
        child.communicate(timeout=60)

        with Catalog.open(store) as catalog:
            _, outcomes = repaired(store, catalog)
            assert all(outcome.is_healed for outcome in outcomes)
            with Reader(catalog) as reader:
                present = reader.missing(DIGESTS)
                assert len(present) in (0, 20)  # at most the one pack that was on its way
                for digest in {*DIGESTS} - present:
                    assert reader.read(digest) == TEXTS[DIGESTS.index(digest)]
            for pack in packs:
                if not pack.path.exists():
                    content_pack(store, catalog, range(20 * packs.index(pack), 20 * packs.index(pack) + 20))
            repaired(store, catalog)  # the manifest learns the stamps of those
            everything(catalog)
            assert is_sound(store, catalog)


# -- quarantine ------------------------------------------------------------------------------------


def test_quarantine_is_bounded_and_keeps_the_newest(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MOST_FILES", 3)
    monkeypatch.setattr(quarantine, "MOST_BYTES", 100)
    for number in range(6):
        (tmp_path / f"file-{number}").write_bytes(bytes(10))
        quarantine.put_aside(store, tmp_path / f"file-{number}")
    assert [path.name.partition("-")[2] for path in quarantined(store)] == ["file-3", "file-4", "file-5"]

    (tmp_path / "big").write_bytes(bytes(1000))
    quarantine.put_aside(store, tmp_path / "big")
    assert [path.name.partition("-")[2] for path in quarantined(store)] == ["big"]

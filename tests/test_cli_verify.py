# SPDX-License-Identifier: Apache-2.0
"""`velo verify`, `velo rebuild` and `velo store repack`: what a user sees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.running import VELO, Result, clean_environment, start
from tests.support.stores import BUILD, bytecode_pack, digest_of, flip_bit, source
from velo_import.format import pack
from velo_import.store import leases
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import Catalog
from velo_import.store.index import BlobIndex, write_index
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter
from velo_import.store.reading import Reader
from velo_import.store.verify import KINDS


def velo(home: Path, *arguments: str, **variables: str) -> Result:
    environment = clean_environment(home.parent, VELO_HOME=str(home), **variables)
    return start([*VELO, *arguments], cwd=home.parent, environment=environment)


def test_rebuild_finds_everything_again(store: Store) -> None:
    bytecode_pack(store, range(50))  # and the catalogue was never told
    Catalog.open(store).close()

    text = velo(store.home, "rebuild")
    document = velo(store.home, "rebuild", "--json").json

    assert "50 bytecode variants, 1 packs" in text.stdout
    assert (document["variants"], document["packs"], document["blobs"]) == (50, 1, 50)
    with Catalog.open(store) as catalog:
        assert len(catalog.variants_of(map(source, range(50)), BUILD, 0)) == 50


def test_rebuild_needs_a_store(tmp_path: Path) -> None:
    result = velo(tmp_path / "none", "rebuild")

    assert result.code == 10
    assert result.stderr.startswith("error: there is no store in ")
    assert not (tmp_path / "none").exists()


def test_rebuild_of_a_store_that_is_only_read(store: Store) -> None:
    result = velo(store.home, "rebuild", VELO_READONLY="1")

    assert result.code == 1
    assert "reading only" in result.stderr and "VELO_READONLY" in result.stderr


def test_rebuild_waits_for_nobody_forever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another maintenance is at work: that is said, with the exit code for it."""
    with leases.maintenance(store):
        result = velo(store.home, "rebuild", "--wait", "0")

    assert result.code == 11
    assert "hint: " in result.stderr


def recorded(store: Store) -> Path:
    """A pack of bytecode that the catalogue knows; returns its file."""
    packed = bytecode_pack(store, range(50))
    with Catalog.open(store) as catalog, catalog.write() as writing:
        writing.put_pack(packed)
    return packed.path


def test_verify_of_a_sound_store(store: Store) -> None:
    recorded(store)

    first = velo(store.home, "verify")
    document = velo(store.home, "verify", "--sample", "0%", "--json").json

    assert (first.code, first.stderr) == (0, "")
    assert first.stdout.splitlines()[0] == "sound    1 packs"
    assert (document["damaged"], document["left"], document["skipped"]) == ([], [], 1)
    assert document["sound"] == dict.fromkeys(KINDS, 0)


def test_verify_repairs(store: Store) -> None:
    """Bytecode needs no copy: what is lost of it is compiled again, and nobody has to do anything."""
    path = recorded(store)
    flip_bit(path, path.stat().st_size // 2)

    looked = velo(store.home, "verify", "--dry-run")
    document = velo(store.home, "verify", "--json").json
    again = velo(store.home, "verify")

    assert looked.code == 12
    assert "fail  pack " in looked.stdout and "hint: `velo verify` repairs it" in looked.stdout
    (damaged,) = document["damaged"]
    assert damaged["kind"] == "pack" and damaged["path"] == str(path)
    assert damaged["healed"] and damaged["forgotten"] == 1
    assert Path(damaged["quarantine"]).parent == store.quarantine
    assert (again.code, again.stdout.splitlines()[2]) == (0, "damaged  0 files")


def test_verify_says_what_is_lost(store: Store, tmp_path: Path) -> None:
    origin = tmp_path / "large"
    origin.write_bytes(b"large")
    blob = Blobs(store).put_file(origin)
    Catalog.open(store).close()
    flip_bit(store.loose_path(blob.digest), 2)

    result = velo(store.home, "verify")

    assert result.code == 12
    assert f"fail  blob {blob.digest.hex()}: its content is not what its name says; 1 lost" in result.stdout
    assert "hint: `velo ingest` stores it again" in result.stdout
    assert velo(store.home, "verify").code == 0


def test_verify_repairs_nothing_in_a_store_that_is_only_read(store: Store) -> None:
    path = recorded(store)
    flip_bit(path, 300)

    result = velo(store.home, "verify", VELO_READONLY="1")

    assert result.code == 12
    assert path.exists() and not store.quarantine.exists()


@pytest.mark.parametrize("share", ["101%", "-1", "many", "nan"])
def test_verify_wants_a_part_of_a_hundred(store: Store, share: str) -> None:
    result = velo(store.home, "verify", f"--sample={share}")

    assert result.code == 2
    assert "no part of a hundred" in result.stderr


def test_doctor_lists_what_is_in_quarantine(store: Store) -> None:
    path = recorded(store)
    flip_bit(path, 300)
    velo(store.home, "verify")

    document = json.loads(velo(store.home, "doctor", "--json").stdout)

    (found,) = [check for check in document["checks"] if check["name"] == "quarantine"]
    assert found["mark"] == "warn"
    assert path.name in found["text"]


def test_repack_compresses_what_is_cold(store: Store) -> None:
    texts = [b"some source that nobody has read for long\n" * number for number in range(1, 50)]
    with PackWriter(store, label="tree", kind="content") as writer:
        for text in texts:
            writer.add(text)
        sealed = writer.seal()
    assert sealed is not None
    with Catalog.open(store) as catalog, catalog.write() as writing:
        writing.put_pack(sealed)
    write_index(store)
    os.utime(sealed.path, (0, 0))

    text = velo(store.home, "store", "repack", "--cold-after", "90d")
    document = velo(store.home, "store", "repack", "--json").json

    assert text.stdout.startswith("compressed  49 blobs, 0 of them had been files\n")
    assert (document["cooled"], document["packs_removed"], document["damaged"]) == (0, 0, [])
    with BlobIndex(store) as index:
        place = index.find(digest_of(texts[7]))
        assert place is not None and place.codec == pack.ZSTD
    with Catalog.open(store) as catalog, Reader(catalog) as reader:
        assert [reader.read(digest_of(text)) for text in texts] == texts


def test_repack_wants_a_time(store: Store) -> None:
    result = velo(store.home, "store", "repack", "--cold-after", "long")

    assert result.code == 2
    assert "a time like" in result.stderr

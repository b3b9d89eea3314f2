# SPDX-License-Identifier: Apache-2.0
"""The blob index: its bytes are what FORMAT.md says; C and Python find the same in it, hostile or not."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from blake3 import blake3

from tests.support.stores import flip_bit
from velo_import.errors import StoreCorrupt, StoreMissing
from velo_import.format import blobindex, pack
from velo_import.format.blobindex import Place
from velo_import.store.index import NAME, BlobIndex, forget_gone, write_index
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack

HEADER = Path(__file__).parents[1] / "velo_import" / "_native"
DRIVER = Path(__file__).parent / "support" / "blobindex_driver.c"
COMPILER = shutil.which(os.environ.get("CC", "cc"))
PAYLOADS = [b"payload %d " % number * (number % 50 + 1) for number in range(200)]


def seal(store: Store, payloads: list[bytes], label: str = "demo") -> SealedPack:
    writer = PackWriter(store, label=label, kind="content")
    for payload in payloads:
        writer.add(payload)
    sealed = writer.seal()
    assert sealed is not None
    return sealed


@pytest.fixture
def filled(store: Store) -> Store:
    seal(store, PAYLOADS[:120], "first")
    seal(store, PAYLOADS[100:], "second")
    assert write_index(store) == len(PAYLOADS)
    return store


def digest_of(payload: bytes) -> bytes:
    return blake3(payload).digest()


def u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def test_bytes_are_those_of_the_specification(filled: Store) -> None:
    """Header, packs, fan and entries, sliced by the offsets of FORMAT.md."""
    data = (filled.packs / NAME).read_bytes()
    packs, entries, bits = u64(data, 24), u64(data, 32), u64(data, 40)

    assert data[:16] == b"VELOBIDX" + bytes([1, 0, 0, 0, 0, 0, 0, 0])
    assert (u64(data, 16), packs, entries, bits) == (len(data), 2, 200, 7)
    assert data[48:64] == bytes(16)
    assert data[64:96] == blake3(data[:64] + data[96:160]).digest()
    assert {data[96:128].hex(), data[128:160].hex()} == {path.stem for path in filled.packs.glob("*/*.pack")}
    fan_at, fan_size = 160, 4 * (2**7 + 1)
    entries_at = fan_at + -(-fan_size // 64) * 64
    assert len(data) == entries_at + 64 * entries
    digests = [data[at : at + 32] for at in range(entries_at, len(data), 64)]
    assert digests == sorted(map(digest_of, PAYLOADS))
    for number, digest in enumerate(digests):
        slot = fan_at + 4 * (digest[0] >> 1)
        first, end = (int.from_bytes(data[at : at + 4], "little") for at in (slot, slot + 4))
        assert first <= number < end


def test_every_blob_is_found_and_read(filled: Store) -> None:
    """By digest, from whichever pack, as a view that needs no copy."""
    with BlobIndex(filled) as index:
        for payload in PAYLOADS:
            view = index.get(digest_of(payload))
            assert view is not None
            assert bytes(view) == payload
            assert view.readonly
            view.release()
        assert index.find(digest_of(b"never stored")) is None
        assert index.get(bytes(32)) is None
        assert index.get(b"\xff" * 32) is None


def test_compressed_blobs_are_read_too(store: Store) -> None:
    """Whoever asks need not know how a blob is stored; a damaged frame is a miss."""
    with PackWriter(store, label="small", kind="content", compress=True) as writer:
        for payload in PAYLOADS:
            writer.add(payload)
        sealed = writer.seal()
    assert sealed is not None
    write_index(store)
    packed = {entry.digest: entry for entry in sealed.entries if entry.codec == pack.ZSTD}
    assert len(packed) > len(PAYLOADS) / 2
    with BlobIndex(store) as index:
        for payload in PAYLOADS:
            view = index.get(digest_of(payload), verify=False)
            assert view is not None
            assert bytes(view) == payload
    digest, entry = packed.popitem()
    flip_bit(sealed.path, entry.offset + 1)
    with BlobIndex(store) as index:
        assert index.get(digest) is None


def test_what_is_not_in_the_packs_any_more_is_a_miss(filled: Store) -> None:
    """A pack that is gone, cut short or changed: None, never other bytes."""
    packs = sorted(filled.packs.glob("*/*.pack"))
    packs[0].unlink()
    second = packs[1].read_bytes()
    packs[1].chmod(0o600)
    packs[1].write_bytes(bytes(len(second)))
    with BlobIndex(filled) as index:
        assert [index.get(digest_of(payload)) for payload in PAYLOADS] == [None] * len(PAYLOADS)
    packs[1].write_bytes(second[:100])
    with BlobIndex(filled) as index:
        assert [index.get(digest_of(payload)) for payload in PAYLOADS] == [None] * len(PAYLOADS)


def test_a_store_without_packs_has_an_empty_index(store: Store) -> None:
    assert write_index(store) == 0
    with BlobIndex(store) as index:
        assert index.find(bytes(32)) is None


def test_no_index_is_said(store: Store) -> None:
    with pytest.raises(StoreMissing, match="not there"):
        BlobIndex(store)
    (store.packs / NAME).touch()
    with pytest.raises(StoreMissing):
        BlobIndex(store)


@pytest.mark.parametrize(
    ("offset", "value"), [(0, 1), (8, 2), (12, 1), (16, 1), (24, 9), (32, 9), (40, 60), (100, 1)]
)
def test_a_changed_header_is_refused(filled: Store, offset: int, value: int) -> None:
    path = filled.packs / NAME
    data = bytearray(path.read_bytes())
    data[offset] ^= value
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="blob index"):
        BlobIndex(filled)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """blobindex.h in a program of its own, with every warning an error and both sanitizers."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    target = tmp_path_factory.mktemp("driver") / "driver"
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsanitize=address,undefined"]
    command = [COMPILER, *flags, "-fno-sanitize-recover=all", f"-I{HEADER}", str(DRIVER), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def in_c(driver: Path, path: Path, digests: list[bytes]) -> list[Place | None] | None:
    done = subprocess.run([driver, path], input=b"".join(digests), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    if lines == ["refused"]:
        return None
    return [None if line == "none" else Place(*map(int, line.split())) for line in lines]


def in_python(data: bytes, digests: list[bytes]) -> list[Place | None] | None:
    """What the twin finds, without the checksum, which C leaves to whoever maps the file."""
    body = bytearray(data)
    if len(body) >= 96:
        packs = min(u64(data, 24), len(body))
        body[64:96] = blake3(body[:64] + body[96 : 96 + 32 * packs]).digest()
    try:
        layout = blobindex.decode_header(body, len(body))
    except StoreCorrupt:
        return None
    return [blobindex.find(memoryview(body), layout, digest) for digest in digests]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 200])
def test_c_and_python_find_the_same(driver: Path, tmp_path: Path, count: int) -> None:
    """On sound files of every small shape, for digests that are there and that are not."""
    digests = sorted(digest_of(payload) for payload in PAYLOADS[:count])
    entries = [(digest, Place(0, 0, 2, 160 + n, n, n)) for n, digest in enumerate(digests)]
    data = blobindex.encode([bytes(32)], entries)
    path = tmp_path / "index"
    path.write_bytes(data)
    asked = [*digests, bytes(32), b"\xff" * 32, digest_of(b"no")]

    found = in_c(driver, path, asked)

    assert found == in_python(data, asked)
    assert found == [place for _, place in entries] + [None] * 3


def test_hostile_bytes_are_read_alike_and_never_outside(driver: Path, tmp_path: Path) -> None:
    """Flipped bytes, cut and lengthened files: C refuses what Python refuses and finds what it finds."""
    dice = random.Random(8)
    digests = sorted(digest_of(payload) for payload in PAYLOADS[:40])
    sound = blobindex.encode([bytes(32)] * 2, [(digest, Place(1, 0, 2, 160, 5, 5)) for digest in digests])
    path = tmp_path / "index"
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(dice.choice((1, 1, 2, 8))):
            place = dice.choice((dice.randrange(96), dice.randrange(160, 450), dice.randrange(len(data))))
            data[place] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        if dice.random() < 0.2:
            data = data[: dice.randrange(len(data))]
        elif dice.random() < 0.1:
            data += bytes(64)
        path.write_bytes(data)
        assert in_c(driver, path, digests) == in_python(bytes(data), digests)


# -- packs that go -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_what_is_in_packs_that_have_gone_is_forgotten_and_nothing_else(store: Store, kept: int) -> None:
    """Also where the index is larger than the pieces in which it is written."""
    groups = [[b"%d in %d" % (number, pack) for number in range(4000)] for pack in range(8)]
    sealed = [seal(store, group, str(number)) for number, group in enumerate(groups)]
    write_index(store)
    for each in sealed[kept:]:
        each.path.unlink()

    assert forget_gone(store) == 8 - kept

    with BlobIndex(store) as index:
        assert sorted(index.packs) == sorted(each.id for each in sealed[:kept])
        for number, group in enumerate(groups):
            for payload in group:
                found = index.get(digest_of(payload))
                assert (found == payload) if number < kept else found is None
                if found is not None:
                    found.release()
    assert forget_gone(store) == 0


def test_an_index_that_cannot_be_read_is_removed_and_none_is_made(store: Store, filled: Store) -> None:
    flip_bit(filled.packs / NAME, 20)
    assert forget_gone(filled) == 0
    assert not (filled.packs / NAME).exists()
    assert forget_gone(filled) == 0
    assert not (filled.packs / NAME).exists()

# SPDX-License-Identifier: Apache-2.0
"""Compressed payloads in packs (FORMAT.md, section 4.2): equal content, fewer bytes, hostile frames out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3

from tests.support.stores import BUILD, digest_of, flip_bit, replace
from tests.test_pack_format import poke, u32, u64
from velo_import.errors import StoreCorrupt
from velo_import.format import codec, pack
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack, open_pack

TEXT = b"def answer() -> int:\n    return 42\n\n" * 40
NOISE = bytes(range(256)) + blake3(b"noise").digest(500)


@pytest.fixture
def sealed(store: Store) -> SealedPack:
    writer = PackWriter(store, label="cold", kind="content", compress=True)
    for payload in (TEXT, NOISE, b""):
        writer.add(payload)
    found = writer.seal()
    assert found is not None
    return found


def is_sound(path: Path) -> bool:
    try:
        with open_pack(path) as file:
            return not file.damaged()
    except StoreCorrupt:
        return False


def test_content_comes_out_as_it_went_in(sealed: SealedPack) -> None:
    with open_pack(sealed.path) as file:
        assert file.damaged() == []
        for payload, kind in ((TEXT, pack.ZSTD), (NOISE, pack.PLAIN), (b"", pack.PLAIN)):
            entry = file.find(digest_of(payload))
            assert entry is not None
            assert (entry.codec, entry.size) == (kind, len(payload))
            assert file.read(entry) == payload


def test_bytes_are_as_specified(sealed: SealedPack) -> None:
    data = sealed.path.read_bytes()
    first = data[64:160]
    length = u64(first, 64)
    frame = data[160 : 160 + length]

    assert u32(data, 12) == 1
    assert first[0:32] == digest_of(TEXT)
    assert (u64(first, 72), first[80], first[83:88]) == (len(TEXT), 1, bytes(5))
    assert first[88:96] == blake3(frame).digest()[:8]
    assert zstandard.frame_content_size(frame) == len(TEXT)
    assert zstandard.ZstdDecompressor().decompress(frame) == TEXT
    second = data[160 + (length + 15) // 16 * 16 :][:96]
    assert (second[80], second[83:96]) == (0, bytes(13))


def test_packs_without_compression_need_no_feature(store: Store) -> None:
    """So that an older Velo goes on reading them."""
    writer = PackWriter(store, label="warm", kind="content")
    writer.add(TEXT)
    plain = writer.seal()
    assert plain is not None

    assert u32(plain.path.read_bytes(), 12) == 0


def test_every_flipped_bit_is_found(sealed: SealedPack) -> None:
    data = sealed.path.read_bytes()
    for place, byte in enumerate(data):
        changed = bytearray(data)
        changed[place] = byte ^ 1 << place % 8
        replace(sealed.path, bytes(changed))
        assert not is_sound(sealed.path), f"a flipped bit in byte {place} went unseen"
    replace(sealed.path, data)
    assert is_sound(sealed.path)


def test_all_bits_of_a_frame_header_are_covered(sealed: SealedPack) -> None:
    """zstd ignores one of them; the content would be right, and the bytes wrong all the same."""
    for bit in range(8):
        flip_bit(sealed.path, 164, bit)
        assert not is_sound(sealed.path)
        flip_bit(sealed.path, 164, bit)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"no frame",
        zstandard.ZstdCompressor(write_content_size=False).compress(TEXT),
        zstandard.ZstdCompressor().compress(TEXT + b"x"),
        zstandard.ZstdCompressor().compress(TEXT)[:-1],
        zstandard.ZstdCompressor().compress(TEXT) + b"x",
    ],
    ids=["empty", "noise", "no size", "another size", "cut", "more behind"],
)
def test_hostile_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        codec.expanded(frame, pack.ZSTD, len(TEXT))


def test_a_frame_that_promises_gigabytes_is_refused_unread() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(pack.MAX_EXPANDED + 1))

    assert len(bomb) < 10_000
    with pytest.raises(StoreCorrupt):
        codec.expanded(bomb, pack.ZSTD, pack.MAX_EXPANDED + 1)


def test_bytecode_is_never_compressed(store: Store) -> None:
    """It is mapped. A pack that says otherwise is none."""
    writer = PackWriter(store, label="x", kind="bytecode", build=BUILD)
    writer.add(TEXT, source=bytes(31) + b"\1")
    sealed = writer.seal()
    assert sealed is not None
    data = bytearray(sealed.path.read_bytes())
    index = u64(data[-96:], 8)
    poke(12, 1, 4)(data)
    poke(index + 80, len(TEXT) + 9)(data)
    poke(index + 88, 1, 1)(data)
    pack_id = blake3(bytes(data[:64]) + bytes(data[index:-96])).digest()
    data[-48:-16] = pack_id
    path = sealed.path.with_name(f"{pack_id.hex()}.pack")
    path.write_bytes(data)

    with pytest.raises(StoreCorrupt, match="codec"):
        open_pack(path)


@pytest.mark.parametrize("features", [zstandard.backend_features, frozenset()], ids=["batch", "singly"])
def test_many_at_once_are_as_one_after_the_other(
    features: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, whatever the library offers and however many threads help."""
    contents = [TEXT, b"", NOISE, TEXT * 3, b"x", TEXT[1:]]
    one_by_one = [codec.compressed(content) for content in contents]
    monkeypatch.setattr(zstandard, "backend_features", features)

    assert codec.compressed_all(contents) == codec.compressed_all(contents, threads=3) == one_by_one
    assert [frame is None for frame in one_by_one] == [False, True, True, False, True, False]
    assert codec.compressed_all([]) == []


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(4096)], ids=["empty", "one byte", "noise"])
def test_what_does_not_shrink_stays_as_it_is(data: bytes) -> None:
    assert codec.compressed(data) is None

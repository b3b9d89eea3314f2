# SPDX-License-Identifier: Apache-2.0
"""What protects: the registered root's bytes as FORMAT.md, section 9, says, and what a manifest needs."""

from __future__ import annotations

import struct

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.test_manifest_format import example
from velo_import.errors import StoreCorrupt
from velo_import.format import manifest, root
from velo_import.format.references import references

PACKS = [b"\x01" * 32, b"\x02" * 32]
DIGESTS = [b"\x0b" * 32, b"\x0a" * 32, b"\x0c" * 32]
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
IDS = st.lists(st.binary(min_size=32, max_size=32), max_size=9)


def reader(data: bytes):  # type: ignore[no-untyped-def]
    return lambda offset, length: data[offset : offset + length]


def test_root_has_the_documented_bytes() -> None:
    data = root.encode_root("/mnt/app.velo", PACKS, DIGESTS)

    assert data[0:8] == b"VELOROOT"
    assert struct.unpack_from("<IIQQ", data, 8) == (1, 13, 2, 3)
    assert data[32:64] == blake3(b"13 2 " + data[64:]).digest()
    assert data[64:77] == b"/mnt/app.velo"
    assert data[77:141] == b"".join(PACKS)
    assert data[141:] == b"".join(sorted(DIGESTS))


@given(NAMES, IDS, IDS)
def test_what_is_registered_comes_back(path: str, packs: list[bytes], digests: list[bytes]) -> None:
    read = root.decode_root(root.encode_root(path, packs, digests))

    assert (read.path, list(read.packs)) == (path, sorted(set(packs)))
    assert [digest for step in read.steps(2) for digest in step] == sorted(set(digests))


@given(st.data())
def test_damage_is_noticed(data: st.DataObject) -> None:
    whole = root.encode_root("/mnt/app.velo", PACKS, DIGESTS)
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:place] + bytes([whole[place] ^ 1 << data.draw(st.integers(0, 7))]) + whole[place + 1 :]

    for damaged in (flipped, whole[:place], whole + b"x"):
        with pytest.raises(StoreCorrupt):
            root.decode_root(damaged)


def test_borders_between_path_and_ids_cannot_move() -> None:
    whole = bytearray(root.encode_root("/mnt/app.velo", PACKS, DIGESTS))
    struct.pack_into("<QQ", whole, 16, 1, 4)

    with pytest.raises(StoreCorrupt):
        root.decode_root(bytes(whole))


def test_what_a_manifest_needs_is_what_it_names() -> None:
    data = manifest.encode(example())
    prefix, packs, steps = references(reader(data), len(data))

    decoded = manifest.decode(data)
    assert prefix == decoded.prefix
    assert packs == [pack.name for pack in decoded.packs]
    assert [digest for step in steps for digest in step] == [
        record.digest for record in decoded.files if record.digest != manifest.NO_DIGEST
    ]


@pytest.mark.parametrize("place", [0, 8, 12, 16, 24, 32, 40, 60, 230])
def test_a_damaged_manifest_needs_nothing_that_one_could_know(place: int) -> None:
    data = bytearray(manifest.encode(example()))
    data[place] ^= 0xFF

    for damaged in (bytes(data), bytes(data[:place])):
        with pytest.raises(StoreCorrupt):
            references(reader(damaged), len(damaged))

# SPDX-License-Identifier: Apache-2.0
"""The bytes of a pack are what FORMAT.md says, offsets typed from that page; hostile bytes are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.stores import BUILD, digest_of, replace, source
from velo_import.errors import StoreCorrupt
from velo_import.format import cbor, pack
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack, open_pack

PAYLOADS = [b"", b"x", b"sixteen bytes ok", b"a longer payload " * 9]


def u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


@pytest.fixture
def sealed(store: Store) -> SealedPack:
    """A bytecode pack: four payloads, and one more source for the second."""
    writer = PackWriter(store, label="demo-1.0", kind="bytecode", build=BUILD, optimisation=2)
    for number, payload in enumerate(PAYLOADS):
        writer.add(payload, source=source(number))
    writer.add(PAYLOADS[1], source=source(9))
    pack_ = writer.seal()
    assert pack_ is not None
    return pack_


def test_header(sealed: SealedPack) -> None:
    data = sealed.path.read_bytes()

    assert data[0:8] == b"VELOPACK"
    assert [u32(data, offset) for offset in (8, 12, 16, 20)] == [1, 0, 0, 16]
    assert data[24] == 1
    assert data[25:64] == bytes(39)


def test_content_pack_has_its_own_kind(store: Store) -> None:
    writer = PackWriter(store, label="files", kind="content")
    writer.add(b"text")
    sealed = writer.seal()
    assert sealed is not None
    data = sealed.path.read_bytes()

    assert data[24] == 2
    assert data[64 + 81] == 2
    assert data[64 + 32 : 64 + 64] == bytes(32)


def test_entries_follow_each_other_without_gaps(sealed: SealedPack) -> None:
    data = sealed.path.read_bytes()
    place = 64
    for number, payload in enumerate(PAYLOADS):
        entry = data[place : place + 96]
        assert entry[0:32] == digest_of(payload)
        assert entry[32:64] == source(number)
        assert u64(entry, 64) == u64(entry, 72) == len(payload)
        assert (entry[80], entry[81], entry[82]) == (0, 1, 2)
        assert entry[83:96] == bytes(13)
        place += 96
        assert data[place : place + len(payload)] == payload
        end = place + len(payload)
        place = (end + 15) // 16 * 16
        assert data[end:place] == bytes(place - end)

    assert place == u64(data[-96:], 8)


def test_index_metadata_and_tail(sealed: SealedPack) -> None:
    data = sealed.path.read_bytes()
    tail = data[-96:]
    index_offset, records, metadata_offset, metadata_length, size = (u64(tail, 8 + 8 * i) for i in range(5))
    assert tail[0:8] == b"VELOTAIL"
    assert tail[80:96] == bytes(16)
    assert size == len(data)
    assert records == 5
    assert metadata_offset == index_offset + 96 * records
    assert metadata_offset + metadata_length + 96 == size

    found = {}
    for number in range(records):
        record = data[index_offset + 96 * number :][:96]
        offset, length = u64(record, 64), u64(record, 72)
        assert offset % 16 == 0
        assert offset >= 160
        assert u64(record, 80) == length
        assert (record[88], record[89], record[90], record[91:96]) == (0, 1, 2, bytes(5))
        assert digest_of(data[offset : offset + length]) == record[0:32]
        found[record[0:32], record[32:64]] = offset
    assert list(found) == sorted(found)
    assert found[digest_of(PAYLOADS[1]), source(1)] == found[digest_of(PAYLOADS[1]), source(9)]

    described = data[metadata_offset:][:metadata_length]
    metadata = cbor2.loads(described)
    assert metadata.pop("by").startswith("velo ")
    assert metadata == {"label": "demo-1.0", "build": BUILD, "optimisation": 2}

    pack_id = blake3(data[:64] + data[index_offset : metadata_offset + metadata_length]).digest()
    assert tail[48:80] == pack_id
    assert sealed.path.parts[-3:] == ("v1", pack_id.hex()[:2], pack_id.hex() + ".pack")


def test_every_flipped_bit_is_found(sealed: SealedPack) -> None:
    data = sealed.path.read_bytes()
    sealed.path.chmod(0o600)
    with open(sealed.path, "r+b", buffering=0) as file:
        for place, byte in enumerate(data):
            os.pwrite(file.fileno(), bytes((byte ^ 1 << place % 8,)), place)
            assert not is_sound(sealed.path), f"a flipped bit in byte {place} went unseen"
            os.pwrite(file.fileno(), bytes((byte,)), place)
    assert is_sound(sealed.path)


def test_every_truncation_is_found(sealed: SealedPack) -> None:
    data = sealed.path.read_bytes()
    for length in range(0, len(data), 7):
        replace(sealed.path, data[:length])
        with pytest.raises(StoreCorrupt):
            open_pack(sealed.path)


def test_bytes_after_the_end_are_found(sealed: SealedPack) -> None:
    replace(sealed.path, sealed.path.read_bytes() + b"\0")
    with pytest.raises(StoreCorrupt):
        open_pack(sealed.path)


def is_sound(path: Path) -> bool:
    try:
        with open_pack(path) as file:
            return not file.damaged()
    except StoreCorrupt:
        return False


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_packs_never_give_wrong_payloads(sealed: SealedPack, data: st.DataObject) -> None:
    """Whatever is written over a pack: StoreCorrupt, or the right bytes; no other error, no other bytes."""
    original = sealed.path.read_bytes()
    place = data.draw(st.integers(0, len(original)))
    junk = data.draw(st.binary(max_size=40))
    kept = data.draw(st.integers(0, 40))
    replace(sealed.path, original[:place] + junk + original[place + kept :])
    try:
        with open_pack(sealed.path) as file:
            for entry in file.entries:
                try:
                    assert file.read(entry) in PAYLOADS
                except StoreCorrupt:
                    pass
    except StoreCorrupt:
        pass
    finally:
        replace(sealed.path, original)


# -- lies that carry a right checksum ---------------------------------------------------------------


def forge(
    store: Store,
    *,
    header: Callable[[bytearray], None] = lambda data: None,
    index: Callable[[bytearray], None] = lambda data: None,
    metadata: bytes | None = None,
    tail: Callable[[list[int]], None] = lambda fields: None,
) -> Path:
    """A pack of two payloads by somebody who knows the format and means harm."""
    writer = PackWriter(store, label="forged", kind="bytecode", build=BUILD)
    writer.add(b"first payload", source=source(1))
    writer.add(b"second payload", source=source(2))
    honest = writer.seal()
    assert honest is not None
    data = honest.path.read_bytes()
    index_offset, records, metadata_offset, metadata_length, _ = (
        u64(data[-96:], 8 + 8 * i) for i in range(5)
    )
    head = bytearray(data[:64])
    header(head)
    table = bytearray(data[index_offset:metadata_offset])
    index(table)
    described = data[metadata_offset:][:metadata_length] if metadata is None else metadata
    pack_id = blake3(bytes(head) + bytes(table) + described).digest()
    size = index_offset + len(table) + len(described) + 96
    fields = [index_offset, records, index_offset + len(table), len(described), size]
    tail(fields)
    end = b"VELOTAIL" + b"".join(field.to_bytes(8, "little") for field in fields) + pack_id + bytes(16)
    path = store.pack_path(pack_id.hex())
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.chmod(0o600)
    path.write_bytes(bytes(head) + data[64:index_offset] + bytes(table) + described + end)
    return path


def poke(offset: int, value: int, width: int = 8) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset : offset + width] = value.to_bytes(width, "little")

    return change


def set_field(number: int, value: int) -> Callable[[list[int]], None]:
    def change(fields: list[int]) -> None:
        fields[number] = value

    return change


def swap_records(data: bytearray) -> None:
    data[:] = data[96:] + data[:96]


def repeat_record(data: bytearray) -> None:
    data[96:] = data[:96]


def test_the_forger_can_make_an_honest_pack(store: Store) -> None:
    assert is_sound(forge(store))


@pytest.mark.parametrize(
    "lie",
    [
        {"header": poke(8, 2, 4)},
        {"header": poke(12, 2, 4)},
        {"header": poke(20, 8, 4)},
        {"header": poke(24, 3, 1)},
        {"header": poke(24, 2, 1)},
        {"header": poke(40, 1, 1)},
        {"index": poke(64, 0)},
        {"index": poke(64, 161)},
        {"index": poke(64, 1 << 40)},
        {"index": poke(64, (1 << 64) - 16)},
        {"index": poke(72, 1 << 63)},
        {"index": poke(80, 1 << 63)},
        {"index": poke(88, 1, 1)},
        {"index": poke(89, 2, 1)},
        {"index": swap_records},
        {"index": repeat_record},
        {"metadata": b""},
        {"metadata": b"\xa0\xa0"},
        {"metadata": b"\x81" * 100_000},
        {"metadata": b"\xbf\xff"},
        {"metadata": b"\xa1\x01\x02"},
        {"metadata": b"\xbb" + b"\xff" * 8},
        {"metadata": cbor.encode({"label": 1})},
        {"metadata": cbor.encode({"build": "b" * 65})},
        {"metadata": cbor.encode({"optimisation": 300})},
        {"metadata": cbor.encode({"optimisation": -1})},
        {"metadata": cbor.encode({"optimisation": "1"})},
        {"tail": set_field(0, 0)},
        {"tail": set_field(0, (1 << 64) - 16)},
        {"tail": set_field(1, 1 << 60)},
        {"tail": set_field(2, 0)},
        {"tail": set_field(3, 1 << 63)},
        {"tail": set_field(4, 1 << 63)},
    ],
    ids="+".join,
)
def test_lies_with_a_right_checksum_are_refused_at_opening(store: Store, lie: dict[str, Any]) -> None:
    path = forge(store, **lie)

    with pytest.raises(StoreCorrupt) as caught:
        open_pack(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_optional_features_are_ignored(store: Store) -> None:
    """A later Velo may add what an earlier one need not know."""
    with open_pack(forge(store, header=poke(16, 0xFF, 4))) as file:
        assert file.read(file.entries[0]) in (b"first payload", b"second payload")


def test_later_metadata_keys_are_ignored(store: Store) -> None:
    metadata = cbor.encode({"label": "x", "new": [1, 2, {"a": None}]})
    with open_pack(forge(store, metadata=metadata)) as file:
        assert (file.label, file.build, file.optimisation) == ("x", "", 0)


def test_pack_under_another_name_is_refused(sealed: SealedPack) -> None:
    other = sealed.path.with_name("0" * 64 + ".pack")
    os.rename(sealed.path, other)

    with pytest.raises(StoreCorrupt, match="name of another"):
        open_pack(other)


def test_sizes_of_the_records() -> None:
    assert (pack.HEADER.size, pack.ENTRY.size, pack.RECORD.size, pack.TAIL.size) == (64, 96, 96, 96)


def test_cbor_is_canonical() -> None:
    assert (
        cbor.encode({"bb": 1, "a": 2}) == cbor.encode({"a": 2, "bb": 1}) == bytes.fromhex("a2616102626262 01")
    )
    with pytest.raises(StoreCorrupt):
        cbor.decode(bytes.fromhex("a262626201616102"))  # keys in the wrong order
    with pytest.raises(StoreCorrupt):
        cbor.decode(bytes.fromhex("a161611802"))  # 2 in two bytes
    with pytest.raises(StoreCorrupt):
        cbor.decode(bytes(2 << 20))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_cbor_give_a_map_or_a_refusal(data: bytes) -> None:
    try:
        assert cbor.encode(cbor.decode(data)) == data
    except StoreCorrupt:
        pass

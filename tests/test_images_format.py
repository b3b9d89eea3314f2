# SPDX-License-Identifier: Apache-2.0
"""The file of images, sliced by the offsets of FORMAT.md, section 13; and what is kept in it."""

from __future__ import annotations

import _imp
from struct import unpack_from

import pytest

from velo_import.errors import StoreCorrupt
from velo_import.format.images import Image, Images, decode_images, encode_images, places, stamped_header
from velo_import.ingest import imaging

FIRST = Image(b"d" * 32, b"aaaa", b"bbbbcccc", b"", b"hhhhhhhhhhhh", 2, b"marshalled", (b"name", b"other"))
SECOND = Image(b"e" * 48, b"", b"", b"bodybody", b"", 0, b"m", (b"other",))
HIGH = 7 << 32
KEPT = Images(b"who\x00version", (184, 24, 33, 92), {(1, HIGH + 2): FIRST, (3, 4): None, (5, 4): SECOND})


def whole() -> bytes:
    data = encode_images(KEPT)
    header = stamped_header(data, 1234567890123456789, 42)
    return header + bytes(data[len(header) :])


def test_offsets() -> None:
    """Header, slots, chunks and data are where the specification says."""
    data = whole()

    magic, version, features, size, check, length, slots, count, names, begin = unpack_from(
        "<8sIIQQQQQQQ", data
    )
    assert (magic, version, features, size, length) == (b"VELOIMAG", 3, 0, len(data), 11)
    assert unpack_from("<qQ4I", data, 80) == (1234567890123456789, 42, 184, 24, 33, 92)
    assert data[128:139] == b"who\x00version"
    assert check.to_bytes(8, "little") == _imp.source_hash(0x56454C4F, data[32:slots])
    assert (names, begin % 4096, count & (count - 1)) == (1, 0, 0)  # Only one of the names is needed twice.
    found = {}
    for number in range(count):
        upper, at = unpack_from("<II", data, slots + 8 * number)
        if at:
            source, bytecode = unpack_from("<QQ", data, 8 * at + 40)
            assert bytecode >> 32 == upper
            found[source, bytecode] = 8 * at, begin + 16 * unpack_from("<I", data, 8 * at + 36)[0]
    assert set(found) == set(KEPT.images)
    at, place = found[1, HIGH + 2]
    assert unpack_from("<9I", data, at) == (32, 1, 2, 2, 0, 1, 9, 2, 10)
    rest = data[at + 72 : at + 72 + 4 + 8 + 12 + 16 + 9 + 10]
    assert rest == b"aaaabbbbcccchhhhhhhhhhhh" + rest[24:40] + b"nameothermarshalled"
    assert unpack_from("<4I", rest, 24) == (2**32 - 1, 4, 0, 5)
    checks = unpack_from("<QQ", data, at + 56)
    assert checks[0].to_bytes(8, "little") == _imp.source_hash(0x56454C4F, data[at : at + 56] + rest)
    assert checks[1].to_bytes(8, "little") == _imp.source_hash(0x56454C4F, data[place : place + 32])
    assert data[place : place + 32] == b"d" * 32 and place % 16 == 0 and place >= begin
    assert unpack_from("<I", data, found[3, 4][0]) == (0,)
    assert places(data) == (begin, {(1, HIGH + 2): (place, 32), (5, 4): (found[5, 4][1], 48)})
    assert decode_images(data) == KEPT


def test_damage_is_found() -> None:
    """No prefix is a file of images, and no changed byte of what counts goes unnoticed."""
    data = whole()
    slots, count, _, begin = unpack_from("<QQQQ", data, 40)
    for length in [*range(slots + 8 * count), len(data) - 1]:
        with pytest.raises(StoreCorrupt):
            decode_images(data[:length])
    for at in [*range(slots), *range(begin, len(data))]:
        with pytest.raises(StoreCorrupt):
            decode_images(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    for at in range(slots, begin):
        damaged = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        try:
            found = decode_images(damaged).images
        except StoreCorrupt:
            continue
        # Another key is another module's; what is found under a key is what was kept somewhere.
        assert set(found.values()) <= {*KEPT.images.values()}


def test_oldest_images_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit, and what was made last stays."""
    monkeypatch.setattr(imaging, "MOST_BYTES", 60)

    assert list(imaging.newest(KEPT.images)) == [(3, 4), (5, 4)]

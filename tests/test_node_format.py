# SPDX-License-Identifier: Apache-2.0
"""Indexes of Node modules: the bytes are where FORMAT.md says, and hostile bytes are refused."""

from __future__ import annotations

import random
from itertools import pairwise
from struct import Struct
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velo_import.errors import StoreCorrupt
from velo_import.format.manifest import PackRecord
from velo_import.format.node import (
    ABSENT,
    CRC,
    EXPLICIT,
    FRAMES,
    SAME,
    SCRIPT,
    UNCHANGED,
    Fact,
    File,
    Frame,
    Index,
    Resolution,
    Stamp,
    Tree,
    build_tag,
    checksum,
    decode_index,
    encode,
    fold,
    has_checksum,
    index_name,
    is_index_name,
    pack_names,
)
from velo_import.format.references import references

STAMP = Stamp(1_700_000_000_000_000_001, -5, 1 << 62, 42)
PACK = PackRecord("ab/abc.pack", "", 1000, 11, 12, 13)


def index(subject: str = "/p/app.js") -> Index:
    facts = (
        Fact("/p", SAME, 4, 0, Stamp(0, 0, 7, 0)),
        Fact("/p/node_modules", ABSENT, above=0),
        Fact("/p/node_modules/a", UNCHANGED, 4, 1, STAMP, above=0),
    )
    return Index(
        "node\nv22.1.0\nx64\n\n.js,.json,.node",
        subject,
        "/usr/bin/node",
        Stamp(1, 2, 3, 4),
        True,
        tuple(Frame(f"node:internal/{number}", number, 10 + number) for number in range(FRAMES)),
        (Tree("/", 0), Tree("/p/node_modules", 1, (2,))),
        (PACK,),
        facts,
        (
            Resolution("", "/p/app.js", "/p/app.js", 0, (0,)),
            Resolution("/p", "a", "/p/node_modules/a/index.js", 1, (1, 2)),
            Resolution("/p", "./big.node", "/p/big.node", -1, ()),
        ),
        (
            File("/p/app.js", SCRIPT, 0, STAMP, (1,), 0, 160, 320),
            File("/p/node_modules/a/index.js", EXPLICIT, 1, STAMP, (), 0, 480, 64),
        ),
    )


def section(data: bytes, number: int) -> bytes:
    at, length = Struct("<II").unpack_from(data, 32 + 8 * number)
    return data[at : at + length]


def test_what_is_written_is_read() -> None:
    assert decode_index(encode(index())) == index()
    assert decode_index(encode(index("/größe/app.js"))) == index("/größe/app.js")
    assert decode_index(encode(index("/日本/😀.js"))) == index("/日本/😀.js")


def test_the_header_is_where_the_format_says() -> None:
    """FORMAT.md, section 14.3."""
    data = encode(index())
    word = Struct("<I").unpack_from

    assert data[:8] == b"VELONODE"
    assert (word(data, 8)[0], word(data, 12)[0], word(data, 16)[0], word(data, 20)[0]) == (
        2,
        0,
        len(data),
        10,
    )
    assert Struct("<II").unpack_from(data, 24) == checksum(data[32:], is_crc=True) == (crc32(data[32:]), CRC)
    assert all(Struct("<II").unpack_from(data, 32 + 8 * number)[0] % 8 == 0 for number in range(10))
    offsets = [offset for (offset,) in Struct("<I").iter_unpack(section(data, 8))]
    text = section(data, 9).decode("latin-1")
    strings = [text[start:end] for start, end in pairwise(offsets)]
    assert strings[word(data, 112)[0]] == index().identity
    assert strings[word(data, 116)[0]] == "/p/app.js"
    assert strings[word(data, 120)[0]] == "/usr/bin/node"
    assert Struct("<qqqq").unpack_from(section(data, 0), 32 * word(data, 124)[0]) == (1, 2, 3, 4)
    frame = Struct("<III").unpack_from(data, 128 + 12)
    assert (strings[frame[0]], *frame[1:]) == ("node:internal/1", 1, 11)
    assert encode(index("/日本"))[12] == 1


def test_rows_are_where_the_format_says() -> None:
    data = encode(index())
    offsets = [offset for (offset,) in Struct("<I").iter_unpack(section(data, 8))]
    text = section(data, 9).decode("latin-1")
    strings = [text[start:end] for start, end in pairwise(offsets)]
    lists = [number for (number,) in Struct("<I").iter_unpack(section(data, 7))]
    facts = list(Struct("<4I").iter_unpack(section(data, 3)))
    folders = list(Struct("<5I").iter_unpack(section(data, 4)))
    resolutions = list(Struct("<4I").iter_unpack(section(data, 5)))
    files = list(Struct("<8I").iter_unpack(section(data, 6)))

    assert lists[0] == 0
    assert [strings[row[0]] for row in facts] == ["/p", "/p/node_modules", "/p/node_modules/a"]
    assert [row[1] for row in facts] == [0, 1, 1]
    assert facts[2][2] == UNCHANGED | 4 << 4 | 1 << 8
    assert [strings[row[0]] for row in folders] == ["", "/p", "/p/node_modules/a"]
    assert [row[1:] for row in folders] == [(0, 1, 0, 0), (1, 2, 0, 1), (3, 0, 1, 1)]
    assert [strings[row[0]] for row in resolutions] == ["/p/app.js", "a", "./big.node"]
    assert [row[2] for row in resolutions] == [1, 2, 0]
    assert lists[resolutions[1][3] : resolutions[1][3] + 3] == [2, 1, 2]
    assert (strings[files[1][0]], files[1][1], files[1][2]) == ("index.js", 2, EXPLICIT | 1 << 8)
    assert files[1][5:] == (0, 30, 64)


def test_fold_makes_the_names_of_the_runtime() -> None:
    """The same in JavaScript: tests/e2e would find no index otherwise."""
    name = index_name("start", "node\nv20.20.2\nx64\n\n.js,.json,.node", "/p")

    assert is_index_name(name) and not is_index_name("cpython-312-venv-0123456789abcdef")
    assert fold(b"") == fold(bytes(0)) != fold(bytes(8))
    assert build_tag("v20.20.2", "x64", "0badcafe", 5, 6).startswith("node-20.20.2-x64-0badcafe-")
    assert len(build_tag("v20.20.2", "riscv64", "0badcafe", 5, 6)) <= 64


@given(st.binary(min_size=8, max_size=400), st.integers(0), st.integers(1, 0xFFFFFFFF), st.booleans())
def test_one_changed_word_is_always_seen(data: bytes, place: int, change: int, is_crc: bool) -> None:
    data = data[: len(data) // 4 * 4]
    at = place % (len(data) // 4) * 4
    word = int.from_bytes(data[at : at + 4], "little") ^ change
    changed = data[:at] + word.to_bytes(4, "little") + data[at + 4 :]

    assert checksum(data, is_crc=is_crc) != checksum(changed, is_crc=is_crc)
    assert has_checksum(data, *checksum(data, is_crc=is_crc))
    assert not has_checksum(changed, *checksum(data, is_crc=is_crc))


def test_what_an_index_needs_is_asked_as_of_a_manifest() -> None:
    data = encode(index())
    asked = references(lambda offset, length: data[offset : offset + length], len(data))

    assert (asked.prefix, asked.packs, list(asked.steps)) == ("/p/app.js", ["ab/abc.pack"], [])
    assert pack_names(data) == ("/p/app.js", ["ab/abc.pack"])


def repaired(data: bytearray) -> bytes:
    """With a checksum that is right again: damage that somebody made on purpose."""
    data[24:32] = Struct("<II").pack(*checksum(bytes(data[32:]), is_crc=True))
    return bytes(data)


@pytest.mark.parametrize("seed", range(20))
def test_hostile_bytes_are_refused_or_make_an_index(seed: int) -> None:
    """No other error than ours, whatever stands where."""
    dice = random.Random(seed)
    sound = encode(index())
    for _ in range(100):
        data = bytearray(sound)
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(32, len(data) // 4) * 4 % len(data)
            data[at : at + 4] = dice.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", bytes(dice.randrange(256) for _ in range(4)))
            )
        try:
            decode_index(repaired(data))
        except StoreCorrupt:
            pass


def test_cut_and_flipped_bytes_are_refused() -> None:
    sound = encode(index())
    for data in (b"", sound[:31], sound[:-8], sound + bytes(8), b"X" + sound[1:]):
        with pytest.raises(StoreCorrupt):
            decode_index(data)
    for at in range(0, len(sound), 7):
        flipped = bytearray(sound)
        flipped[at] ^= 1
        with pytest.raises(StoreCorrupt):
            decode_index(bytes(flipped))

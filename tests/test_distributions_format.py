# SPDX-License-Identifier: Apache-2.0
"""The table of distributions: the bytes that FORMAT.md describes, sliced by its offsets."""

from __future__ import annotations

import _imp
import os
from pathlib import Path

import pytest

from velo_import.errors import StoreCorrupt
from velo_import.format.distributions import (
    ANY_SIZE,
    Distribution,
    Root,
    Table,
    decode_distributions,
    encode_distributions,
)
from velo_import.hook import answers as hook
from velo_import.hook import mapping

IDENTITY = b"who it is"
POINTS = ("group", "name", "value")
KNOWN = Distribution("demo-1.dist-info", "demo", "Demo", "1.0", (1, -2, 3, 4), (5, 6, 7, 8), POINTS)
PLAIN = Distribution("old.egg-info", "old", "", "", (0, 0, 0, 0), (9, 10, 11, ANY_SIZE), ())
TABLE = Table(
    IDENTITY, (Root("/site", 1, False, -12, 13, 14, (KNOWN, PLAIN)), Root("/left", 0, True, 1, 2, 3, ()))
)


def number(data: bytes, at: int, size: int = 8) -> int:
    return int.from_bytes(data[at : at + size], "little")


def check(data: bytes) -> int:
    return int.from_bytes(_imp.source_hash(0x56454C4F, data), "little")


def test_header() -> None:
    data = encode_distributions(TABLE)
    first = 64 + 16  # nine bytes of identity, filled up

    assert data[:8] == b"VELOMETA"
    assert (number(data, 8, 4), number(data, 12, 4), number(data, 16)) == (1, 0, len(data))
    assert number(data, 24) == check(data[32:first])
    assert (number(data, 32), number(data, 40), data[48:64]) == (len(IDENTITY), 2, bytes(16))
    assert data[64:first] == IDENTITY + bytes(7)


def test_root() -> None:
    data = encode_distributions(TABLE)[64 + 16 :]
    size = number(data, 0)
    texts_at = 7 * 8 + 2 * 9 * 8
    texts = data[texts_at : texts_at + number(data, 24, 4)]

    assert number(data, 8) == check(data[16:size])
    assert (number(data, 16), number(data, 28, 4)) == (2, 1)  # distributions, check
    assert [number(data, at) for at in (32, 40, 48)] == [(1 << 64) - 12, 13, 14]
    words = [number(data, at) for at in range(56, texts_at, 8)]
    assert words == [1, (1 << 64) - 2, 3, 4, 5, 6, 7, 8, 1, 0, 0, 0, 0, 9, 10, 11, (1 << 64) - 1, 0]
    assert texts.split(b"\0") == [
        b"/site",
        *(b"demo-1.dist-info", b"old.egg-info", b"demo", b"old", b"Demo", b"", b"1.0", b""),
        *(b"group", b"name", b"value", b""),
    ]
    assert number(data[size:], 28, 4) == 1 << 8  # the next one is left to Python


def test_what_is_written_is_read() -> None:
    assert decode_distributions(encode_distributions(TABLE)) == TABLE
    odd = KNOWN._replace(name="caf\N{LATIN SMALL LETTER E WITH ACUTE} \udc80", entry_points=("", "", ""))
    table = Table(b"", (Root("/\udcff", 0, False, 0, 0, 0, (odd,)),))
    assert decode_distributions(encode_distributions(table)).roots[0].distributions[0] == odd
    for wrong in (Table(b"", [Root("/a\0b", 0, False, 0, 0, 0, ())]), Table(b"", TABLE.roots * 129)):
        with pytest.raises(ValueError, match=r"NUL|too many"):
            encode_distributions(wrong)


def test_the_hook_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "metadata.table"
    path.write_bytes(encode_distributions(TABLE))
    path.chmod(0o600)

    table = hook.Table(str(path), IDENTITY, mapping, None)

    site, left = table.root("/site"), table.root("/left")
    assert site is not None
    assert left is not None
    assert (site.check, site.is_left, site.mtime, site.ctime, site.ino) == (1, False, -12, 13, 14)
    assert left.is_left
    assert list(site.children) == ["demo-1.dist-info", "old.egg-info"]
    assert site.normalized == ["demo", "old"]
    demo, old = site.known(0), site.known(1)
    assert (site.child("old.egg-info"), site.child("absent")) == (old, None)
    assert (demo.normalized, demo.name, demo.version, demo.points) == ("demo", "Demo", "1.0", list(POINTS))
    assert (demo.metadata, demo.beside) == ([1, -2, 3, 4], [5, 6, 7, 8])
    assert (demo.source(), old.source()) == (
        "/site/demo-1.dist-info/entry_points.txt",
        "/site/old.egg-info",
    )
    assert table.root("/sit") is table.root("/absent") is None
    with pytest.raises(hook.Unusable, match="build"):
        hook.Table(str(path), b"another", mapping, None)
    path.chmod(0o622)
    with pytest.raises(hook.Unusable, match="owner"):
        hook.Table(str(path), IDENTITY, mapping, None)


def test_every_cut_and_flip_is_refused(tmp_path: Path) -> None:
    """Neither reader takes a table of which a byte is missing or wrong. The hook checks root by root, and
    does not know one whose path has changed.
    """
    good = encode_distributions(TABLE)
    path = tmp_path / "metadata.table"
    damaged = [good[:at] for at in range(len(good))]
    damaged += [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in range(len(good))]
    for data in damaged:
        with pytest.raises(StoreCorrupt):
            decode_distributions(data)
        path.write_bytes(data)
        os.chmod(path, 0o600)
        try:
            table = hook.Table(str(path), IDENTITY, mapping, None)
            assert None in (table.root("/site"), table.root("/left"))
        except (hook.Unusable, ValueError, IndexError):
            pass

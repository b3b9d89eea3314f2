# SPDX-License-Identifier: Apache-2.0
"""The table of what distributions contain: the bytes that FORMAT.md describes, sliced by its offsets."""

from __future__ import annotations

import _imp
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from velo_import.errors import StoreCorrupt
from velo_import.format.contents import (
    FILES,
    MESSAGE,
    NO_STAMP,
    TOPS,
    Contents,
    Page,
    decode_contents,
    encode_contents,
)
from velo_import.format.distributions import ANY_SIZE
from velo_import.hook import answers as hook_answers
from velo_import.hook import contents as hook
from velo_import.hook import mapping

IDENTITY = b"who it is"
PLACE = "/site/demo-1.dist-info"
HEADERS = ("the body\n", "Name", "demo", "Version", "1\n 2")
MADE = Page(MESSAGE, PLACE, (1, -2, 3, 4), NO_STAMP, HEADERS)
ROWS = Page(FILES, PLACE, (5, 6, 7, 8), NO_STAMP, ("+demo/a.py", "sha256=x", "12", "-b.py", "", ""))
NAMES = Page(TOPS, PLACE, (9, 10, 11, ANY_SIZE), (5, 6, 7, 8), ("+demo/a.py", "-b.py"))
CONTENTS = Contents(IDENTITY, (MADE, ROWS, NAMES))


def number(data: bytes, at: int, size: int = 8) -> int:
    return int.from_bytes(data[at : at + size], "little")


def check(data: bytes) -> int:
    return int.from_bytes(_imp.source_hash(0x56454C4F, data), "little")


def test_header_and_index() -> None:
    data = encode_contents(CONTENTS)
    index = 64 + 16  # nine bytes of identity, filled up
    first = index + 3 * 24

    assert data[:8] == b"VELOINFO"
    assert (number(data, 8, 4), number(data, 12, 4), number(data, 16)) == (1, 0, len(data))
    assert number(data, 24) == check(data[32:first])
    assert (number(data, 32), number(data, 40), data[48:64]) == (len(IDENTITY), 3, bytes(16))
    assert data[64:index] == IDENTITY + bytes(7)
    entries = [tuple(number(data, index + 24 * each + 8 * word) for word in range(3)) for each in range(3)]
    assert [entry[0] for entry in entries] == sorted(check((kind + PLACE).encode()) for kind in "MFT")
    at = first
    for _, offset, length in sorted(entries, key=lambda entry: entry[1]):
        assert offset == at
        at += length
    assert at == len(data)


def test_page() -> None:
    data = encode_contents(Contents(IDENTITY, (NAMES,)))[64 + 16 + 24 :]
    size = number(data, 72)

    assert number(data, 0) == check(data[8:])
    assert [number(data, at) for at in range(8, 72, 8)] == [9, 10, 11, (1 << 64) - 1, 5, 6, 7, 8]
    assert data[80 : 80 + size] == b"T/site/demo-1.dist-info\0+demo/a.py\0-b.py\0"
    assert not any(data[80 + size :])
    assert len(data) == (80 + size + 7) // 8 * 8


def test_what_is_written_is_read() -> None:
    assert decode_contents(encode_contents(CONTENTS)) == CONTENTS
    odd = Page(
        MESSAGE, "/caf\N{LATIN SMALL LETTER E WITH ACUTE}\udc80", (1, -1, 2, 3), NO_STAMP, ("", "", "")
    )
    assert decode_contents(encode_contents(Contents(b"", (odd,)))) == Contents(b"", (odd,))
    assert decode_contents(encode_contents(Contents(b"", ()))).pages == ()
    with pytest.raises(ValueError, match="NUL"):
        encode_contents(Contents(b"", (odd._replace(texts=("a\0b",)),)))


def opened(path: Path) -> Any:
    """The table as the hook opens it, for a version of which nothing is known."""
    mapped = hook_answers.mapped_table(
        str(path), hook_answers.START_OF_CONTENTS, IDENTITY, mapping, hook_answers.ENTRY_SIZE
    )
    nothing = property(lambda self: None)
    answers: Any = SimpleNamespace(
        names={"Distribution": object},
        getters={"metadata": nothing, "files": nothing},
        stock_functions={},
        codes_of=hook_answers.Answers.codes_of,
    )
    return hook.Contents(answers, mapped)


def test_the_hook_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "contents.table"
    path.write_bytes(encode_contents(CONTENTS))
    path.chmod(0o600)

    table = opened(path)

    for page in CONTENTS.pages:
        found = table.page(page.kind, page.path)
        second = [-1 if each == ANY_SIZE else each for each in page.first]
        assert (found.first, found.second, tuple(found.texts)) == (second, list(page.second), page.texts)
    assert table.page(MESSAGE, PLACE + "x") is table.page("X", PLACE) is None
    assert not table.parses
    assert not table.infers


def test_every_cut_and_flip_is_refused(tmp_path: Path) -> None:
    """Neither reader takes a table of which a byte is missing or wrong; the hook checks page by page."""
    good = encode_contents(CONTENTS)
    path = tmp_path / "contents.table"
    damaged = [good[:at] for at in range(len(good))]
    damaged += [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in range(len(good))]
    for data in damaged:
        with pytest.raises(StoreCorrupt):
            decode_contents(data)
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises((hook_answers.Unusable, ValueError, IndexError)):
            table = opened(path)
            raise (
                ValueError
                if None in [table.page(each.kind, each.path) for each in CONTENTS.pages]
                else KeyError
            )

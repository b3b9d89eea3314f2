# SPDX-License-Identifier: Apache-2.0
"""Buckets give back what was put in, whether it fits into memory, onto the disk, or only into memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velo_import.store.buckets import COUNT, Buckets

RECORDS = st.lists(st.lists(st.binary(min_size=5, max_size=5), max_size=30), max_size=8)


def expected(chunks: list[list[bytes]], number: int) -> list[bytes]:
    return sorted(record for chunk in chunks for record in chunk if record[0] == number)


def taken(buckets: Buckets, number: int) -> list[bytes]:
    data = buckets.take(number)
    return sorted(data[at : at + 5] for at in range(0, len(data), 5))


@settings(max_examples=50)
@given(RECORDS, st.sampled_from([0, 40, 1 << 20]))
def test_what_went_in_comes_out(tmp_path_factory: pytest.TempPathFactory, chunks: list, limit: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    with Buckets(folder, limit=limit) as buckets:
        for chunk in chunks:
            buckets.add(chunk)
        for number in range(COUNT):
            assert taken(buckets, number) == expected(chunks, number) == taken(buckets, number)


def test_memory_is_bounded_and_the_file_has_no_name(tmp_path: Path) -> None:
    with Buckets(tmp_path, limit=1000) as buckets:
        for number in range(1000):
            buckets.add([number.to_bytes(4, "little")] * 10)
            assert sum(map(len, buckets._recent)) <= 1040
        assert list(tmp_path.iterdir()) == []
        assert sum(len(buckets.take(number)) for number in range(COUNT)) == 40_000


@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_full_disk_costs_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    written = 0
    write = os.pwrite

    def pwrite(file: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += 1
        if written > fails_at:
            raise OSError(errno.ENOSPC, "full")
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    chunks = [[bytes([number, 0, 0, 0, step]) for number in range(COUNT)] for step in range(5)]
    with Buckets(tmp_path, limit=100) as buckets:
        for chunk in chunks:
            buckets.add(chunk)
        assert all(taken(buckets, number) == expected(chunks, number) for number in range(COUNT))


def test_a_folder_that_cannot_be_written_costs_memory_only(tmp_path: Path) -> None:
    with Buckets(tmp_path / "not there", limit=0) as buckets:
        buckets.add([b"abcde"])
        assert buckets.take(ord("a")) == b"abcde"

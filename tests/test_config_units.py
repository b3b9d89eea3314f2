# SPDX-License-Identifier: Apache-2.0
"""Sizes and times as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_config import load
from velo_import.config.units import parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1500", 1500),
        ("20 GB", 20 * 10**9),
        ("20gb", 20 * 10**9),
        ("1.5k", 1500),
        (" 4GiB ", 4 * 2**30),
        ("3T", 3 * 10**12),
        ("7 B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 30 * 86400), ("12 h", 43200), ("90min", 5400), ("1h30m", 5400), ("2w", 14 * 86400), ("0s", 0)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1 XB", "1e3", "1GB 2GB", "1,5 GB", "nan", "inf", "\u0663 GB", "9" * 400]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size like"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "d", "30", "-30d", "30 parsecs", "1h 30", "1..5h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a time like"):
        parse_duration(text)


@pytest.mark.parametrize("written", ['"2 GB"', "2000000000"])
def test_the_limit_of_the_store(tmp_path: Path, written: str) -> None:
    assert load(tmp_path).max_size is None
    (tmp_path / "velo.toml").write_text(f"[store]\nmax_size = {written}\n")

    assert load(tmp_path).max_size == 2 * 10**9

# SPDX-License-Identifier: Apache-2.0
"""Amounts as people write them: `20 GB`, `30d`, `1h30m`. Sizes are decimal unless they say so (`GiB`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

_BYTES = {"": 1, "b": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("kmgt", 1)
    for ending, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PART = r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*"


def parse_size(text: str) -> int:
    """Bytes; ValueError says what is wanted."""
    return int(_sum(text, _PART, _BYTES, "a size like 500MB, 20 GB or 4GiB"))


def parse_duration(text: str) -> float:
    """Seconds; ValueError says what is wanted."""
    return _sum(text, f"(?:{_PART})+", _SECONDS, "a time like 90min, 12h or 30d")


def _sum(text: str, form: str, units: Mapping[str, int], wanted: str) -> float:
    if re.fullmatch(form, text, re.ASCII):
        parts = [(float(number), unit.lower()) for number, unit in re.findall(_PART, text, re.ASCII)]
        if all(unit in units for _, unit in parts):
            return sum(number * units[unit] for number, unit in parts)
    raise ValueError(f"must be {wanted}")

# SPDX-License-Identifier: Apache-2.0
"""Statistics of repeated timings: pure functions on plain numbers.

The statistic that stands for an arm is the *lower quartile*. On a shared machine disturbances only ever add
time, so the lower part of the distribution says more about the program than the mean; the minimum would be
one lucky run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict


class Spread(TypedDict):
    """One arm's timings in one cell, in the unit of the values."""

    runs: int
    minimum: float
    p10: float
    lower_quartile: float
    median: float
    p90: float


class Ratio(TypedDict):
    """How many times faster an arm is than plain; above 1 is a gain."""

    ratio: float
    low: float  # 90 % bootstrap interval
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, linear between neighbours."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def lower_quartile(values: Sequence[float]) -> float:
    return percentile(values, 0.25)


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    if not logarithms:
        raise ValueError("no values")
    return math.exp(math.fsum(logarithms) / len(logarithms))


def spread(values: Sequence[float], digits: int = 6) -> Spread:
    return {
        "runs": len(values),
        "minimum": round(min(values), digits),
        "p10": round(percentile(values, 0.10), digits),
        "lower_quartile": round(lower_quartile(values), digits),
        "median": round(percentile(values, 0.50), digits),
        "p90": round(percentile(values, 0.90), digits),
    }


def speedup(plain: Sequence[float], other: Sequence[float], *, resamples: int = 500) -> Ratio:
    """Ratio of the lower quartiles, with a bootstrap interval (fixed seed: same data, same interval)."""
    dice = random.Random(20)
    resampled = [
        lower_quartile(dice.choices(plain, k=len(plain))) / lower_quartile(dice.choices(other, k=len(other)))
        for _ in range(resamples)
    ]
    return {
        "ratio": round(lower_quartile(plain) / lower_quartile(other), 4),
        "low": round(percentile(resampled, 0.05), 4),
        "high": round(percentile(resampled, 0.95), 4),
    }


def times(ratio: float) -> str:
    """`1.25x`; a loss that two digits would round to `1.00x` gets more of them."""
    return f"{ratio:.4f}x" if 0.995 <= ratio < 1 else f"{ratio:.2f}x"


def losses(ratios: Mapping[str, Ratio]) -> list[str]:
    """The programs that an arm made slower, slowest first."""
    return sorted(
        (name for name in ratios if ratios[name]["ratio"] < 1.0), key=lambda name: ratios[name]["ratio"]
    )

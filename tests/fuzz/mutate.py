# SPDX-License-Identifier: Apache-2.0
"""Bytes made worse: flipped, cut, grown, joined with others, numbers replaced by those that parsers fear.

Knows no format. The surprise: most changes are small and few, because what is wrong everywhere is refused at
the first check.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_NUMBERS = [0, 1, 2, 15, 16, 17, 95, 96, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 32]
_NUMBERS += [1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def mutated(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """A few changes of `data`, parts of `others` among them."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 9))):
        at = chance.randrange(len(changed) + 1)
        size = chance.choice((1, 1, 2, 4, 8, 16, 32, 96, 200))
        kind = chance.randrange(9)
        if kind <= 1 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 2 and at < len(changed):
            changed[at] = chance.randrange(256)
        elif kind <= 5:
            _set_number(changed, at, chance)
        elif kind == 6:
            del changed[at : at + size]
        elif kind == 7:
            source = chance.choice([*others, changed])
            start = chance.randrange(len(source) + 1)
            end = at + (size if chance.random() < 0.5 else 0)
            changed[at:end] = source[start : start + size]
        elif chance.random() < 0.5:
            del changed[at:]
        else:
            changed += bytes(size) if chance.random() < 0.5 else chance.randbytes(size)
    return bytes(changed)


def _set_number(changed: bytearray, at: int, chance: random.Random) -> None:
    """Overwrite one number, mostly where tables have them: little-endian, on a multiple of its width."""
    width = chance.choice((1, 2, 4, 8, 8))
    if chance.random() < 0.8:
        at -= at % width
    if at + width > len(changed):
        return
    old = int.from_bytes(changed[at : at + width], "little")
    near = old + chance.choice((-16, -8, -1, 1, 8, 16, 96))
    number = chance.choice((near, near, len(changed), len(changed) - at, *chance.sample(_NUMBERS, 4)))
    changed[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")

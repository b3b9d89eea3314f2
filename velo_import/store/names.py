# SPDX-License-Identifier: Apache-2.0
"""Names of content as people type and read them: `blob:<hex>`, `tree:<hex>`, eight digits or more of them.

Knows text and prefixes; which digests there are is said by the caller. Its surprise: a prefix that is enough
today may not be tomorrow, so files and lock files hold all 64 digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ..errors import UsageFault

BLOB, TREE = "blob", "tree"
LEAST = 8  # digits
FULL = 64
_SHOWN = 5  # candidates of an ambiguous name

_NAME = re.compile(r"(?:(blob|tree):)?([0-9a-fA-F]+)")


def is_name(text: str, kind: str) -> bool:
    """Whether this can only be meant as a name of that kind, well-formed or not."""
    return text.startswith(f"{kind}:")


def digits_of(text: str, kind: str) -> str:
    """The digits of a name, lower case.

    Raises:
        UsageFault: it is not of that kind, has other characters, or too few or too many digits.
    """
    match = _NAME.fullmatch(text)
    if match is None or match[1] not in (None, kind):
        raise UsageFault(f"not a {kind}: {text}", hint=f"a {kind} is named {kind}:<hexadecimal digits>")
    digits = match[2].lower()
    if not LEAST <= len(digits) <= FULL:
        raise UsageFault(
            f"{kind}:{digits} has {len(digits)} digits", hint=f"give {LEAST} to {FULL} hexadecimal digits"
        )
    return digits


def resolve(text: str, kind: str, with_prefix: Callable[[str], Iterable[bytes]]) -> bytes:
    """The digest that a name means; `with_prefix` gives the digests that begin with some digits.

    Raises:
        UsageFault: it is malformed, nothing has that name, or more than one has.
    """
    digits = digits_of(text, kind)
    found = sorted(set(with_prefix(digits)))
    if not found:
        raise UsageFault(f"no {kind} begins with {digits}", hint="check the digits, and VELO_HOME")
    if len(found) > 1:
        some = ", ".join(f"{kind}:{digest.hex()[: len(digits) + 4]}" for digest in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UsageFault(f"{kind}:{digits} is ambiguous", hint=f"it may be {some}{more}; give more digits")
    return found[0]


def shortened(digest: bytes, with_prefix: Callable[[str], Iterable[bytes]]) -> str:
    """The first digits of a digest, eight or as many more as it takes to mean no other one."""
    text = digest.hex()
    length = LEAST
    for other in with_prefix(text[:LEAST]):
        if other != digest:
            alike = next(at for at in range(FULL) if other.hex()[at] != text[at])
            length = max(length, alike + 1)
    return text[:length]

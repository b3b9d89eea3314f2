# SPDX-License-Identifier: Apache-2.0
"""Structured metadata as bytes: canonical CBOR (RFC 8949, section 4.2), so equal data gives equal bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cbor2

from ..errors import StoreCorrupt

# More than any honest map of ours needs; a hostile one must not cost memory.
LIMIT = 1 << 20


def encode(record: Mapping[str, Any]) -> bytes:
    return cbor2.dumps(dict(record), canonical=True)


def decode(data: bytes, *, limit: int = LIMIT) -> dict[str, Any]:
    """A map with text keys; StoreCorrupt for anything else, for bytes left over, and over `limit` bytes."""
    if len(data) > limit:
        raise StoreCorrupt(f"metadata of {len(data)} bytes is over the limit of {limit}")
    try:
        record = cbor2.loads(data)
        if isinstance(record, dict) and all(type(key) is str for key in record) and encode(record) == data:
            return record
    except Exception as error:  # the decoder raises many kinds: tags that fail, recursion, huge lengths
        raise StoreCorrupt("metadata is no valid CBOR") from error
    raise StoreCorrupt("metadata is no canonical CBOR map")

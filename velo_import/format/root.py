# SPDX-License-Identifier: Apache-2.0
"""The registered root: what something outside of the store needs of it (FORMAT.md, section 9).

Encodes and reads the bytes; files are store/roots.py's. The surprise: it repeats what the manifest out there
says instead of pointing at it, because that disk may not be mounted when somebody cleans up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt

MAGIC = b"VELOROOT"
VERSION = 1

# FORMAT.md, section 9: magic, version, length of the path, packs, digests, checksum of the rest.
HEADER = Struct("<8sIIQQ32s")
assert HEADER.size == 64
DIGEST_SIZE = 32


class RegisteredRoot(NamedTuple):
    """Where the manifest was written, and the packs and blobs that it needs."""

    path: str
    packs: tuple[bytes, ...]
    digests: bytes  # 32 bytes each, ascending

    def steps(self, count: int = 8192) -> Iterator[list[bytes]]:
        """The digests, some at a time."""
        step = count * DIGEST_SIZE
        for start in range(0, len(self.digests), step):
            part = self.digests[start : start + step]
            yield [part[at : at + DIGEST_SIZE] for at in range(0, len(part), DIGEST_SIZE)]


def encode_root(path: str, packs: Iterable[bytes], digests: Iterable[bytes]) -> bytes:
    name = os.fsencode(path)
    packs, digests = sorted(set(packs)), sorted(set(digests))
    body = b"".join((name, *packs, *digests))
    return HEADER.pack(MAGIC, VERSION, len(name), len(packs), len(digests), _check(name, packs, body)) + body


def decode_root(data: bytes) -> RegisteredRoot:
    """Read a registered root.

    Raises:
        StoreCorrupt: the bytes are not one of this version, or contradict themselves.
    """
    try:
        magic, version, length, packs, digests, check = HEADER.unpack_from(data)
    except StructError as error:
        raise StoreCorrupt("registered root is shorter than its header") from error
    if magic != MAGIC or version != VERSION:
        raise StoreCorrupt("not a registered root of this version")
    packs_at = HEADER.size + length
    digests_at = packs_at + packs * DIGEST_SIZE
    if digests_at + digests * DIGEST_SIZE != len(data):
        raise StoreCorrupt("registered root has another length than it says")
    name, ids = data[HEADER.size : packs_at], data[packs_at:digests_at]
    pack_ids = [ids[at : at + DIGEST_SIZE] for at in range(0, len(ids), DIGEST_SIZE)]
    if check != _check(name, pack_ids, data[HEADER.size :]):
        raise StoreCorrupt("checksum of a registered root differs")
    return RegisteredRoot(os.fsdecode(name), tuple(pack_ids), data[digests_at:])


def _check(name: bytes, packs: list[bytes], body: bytes) -> bytes:
    # The counts too: moved borders between path, packs and digests must not go unnoticed.
    return blake3(b"%d %d " % (len(name), len(packs)) + body).digest()

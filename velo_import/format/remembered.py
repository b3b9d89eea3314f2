# SPDX-License-Identifier: Apache-2.0
"""The table of remembered work: what an exact input gave (FORMAT.md, section 10).

Encodes and reads the bytes; what stands in the values is made by ingest/remember_worker.py and used by
hook/remembered.py. The surprise: an empty value is an answer, too. It says that this input was tried and is
never to be remembered, so that nobody tries again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from ..errors import StoreCorrupt
from .manifest import siphash

MAGIC = b"VELOREMB"
VERSION = 2  # Also of how modules ask: their code in the table and the hook have to agree.

# FORMAT.md, section 10: magic, version, features, size, checksum, identity's length, slots, records, zero.
HEADER = Struct("<8sIIQQQQQ8x")
assert HEADER.size == 64
RECORD = Struct("<QQQ")  # Checksum of the rest, length of the key, length of the value.
MODULE, BASIS, PATTERN, SOURCE = b"M", b"B", b"P", b"S"


class Table(NamedTuple):
    """What is remembered for one interpreter: value by key, the oldest first."""

    identity: bytes
    values: Mapping[bytes, bytes]


def encode_table(table: Table) -> bytes:
    """The table as a file; records keep their order."""
    slots_at = _padded(HEADER.size + len(table.identity))
    count = 2
    while count < 2 * len(table.values):
        count *= 2
    at = slots_at + 8 * count
    slots = [0] * count
    records = []
    for key, value in table.values.items():
        slot = siphash(key)
        while slots[slot % count]:
            slot += 1
        slots[slot % count] = at
        body = RECORD.pack(0, len(key), len(value))[8:] + _filled(key) + value
        record = _filled(siphash(body).to_bytes(8, "little") + body)
        records.append(record)
        at += len(record)
    start = HEADER.pack(MAGIC, VERSION, 0, at, 0, len(table.identity), slots_at, slots_at + 8 * count)
    checked = start[32:] + table.identity.ljust(slots_at - HEADER.size, b"\0")
    head = start[:24] + siphash(checked).to_bytes(8, "little") + checked
    return head + b"".join(slot.to_bytes(8, "little") for slot in slots) + b"".join(records)


def decode_table(data: bytes) -> Table:
    """Read a whole table.

    Raises:
        StoreCorrupt: the bytes are not one of this version, or contradict themselves.
    """
    try:
        magic, version, features, size, check, identity_size, slots_at, at = HEADER.unpack_from(data)
    except StructError as error:
        raise StoreCorrupt("remembered table is shorter than its header") from error
    if magic != MAGIC or version != VERSION or features:
        raise StoreCorrupt("not a remembered table of this version")
    if size != len(data) or not HEADER.size + identity_size <= slots_at < at <= size:
        raise StoreCorrupt("remembered table has another length than it says")
    if siphash(data[32:slots_at]) != check:
        raise StoreCorrupt("checksum of a remembered table differs")
    return Table(data[HEADER.size : HEADER.size + identity_size], dict(_records(data, at)))


def _records(data: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    while at < len(data):
        try:
            check, key_size, value_size = RECORD.unpack_from(data, at)
        except StructError as error:
            raise StoreCorrupt("remembered table ends within a record") from error
        place = at + RECORD.size + _padded(key_size)
        if place + value_size > len(data) or siphash(data[at + 8 : place + value_size]) != check:
            raise StoreCorrupt("checksum of a remembered record differs")
        yield data[at + RECORD.size : at + RECORD.size + key_size], data[place : place + value_size]
        at = _padded(place + value_size)


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8


def _filled(data: bytes) -> bytes:
    return data.ljust(_padded(len(data)), b"\0")

# SPDX-License-Identifier: Apache-2.0
"""The table of remembered work, sliced by the offsets of FORMAT.md, section 10; and what is kept in it."""

from __future__ import annotations

import _imp
import ast
import marshal
import re
from struct import unpack_from

import pytest

from velo_import.errors import StoreCorrupt
from velo_import.format.remembered import Table, decode_table, encode_table
from velo_import.ingest import remember_worker, remembering

VALUES = {b"Ps\0\0\0\0a": b"abcd", b"Sexecx = 1": b"code", b"Mre._compiler": b"12345678", b"Pb\0\0\0\0(": b""}


def test_offsets() -> None:
    """Header, slots and records are where the specification says."""
    data = encode_table(Table(b"who\x00version", VALUES))

    magic, version, features, size, check, length, slots, records = unpack_from("<8sIIQQQQQ", data)
    assert (magic, version, features, size, length) == (b"VELOREMB", 2, 0, len(data), 11)
    assert data[64:75] == b"who\x00version"
    assert check.to_bytes(8, "little") == _imp.source_hash(0x56454C4F, data[32:slots])
    count = (records - slots) // 8
    assert count >= 2 * len(VALUES) and not count & (count - 1)
    places = [at for at in unpack_from(f"<{count}Q", data, slots) if at]
    assert sorted(places)[0] == records
    found = {}
    for at in places:
        check, key_size, value_size = unpack_from("<QQQ", data, at)
        start = at + 24 + (key_size + 7) // 8 * 8
        assert check.to_bytes(8, "little") == _imp.source_hash(0x56454C4F, data[at + 8 : start + value_size])
        found[data[at + 24 : at + 24 + key_size]] = data[start : start + value_size]
    assert found == VALUES
    assert decode_table(data) == Table(b"who\x00version", VALUES)


def test_damage_is_found() -> None:
    """No prefix of a table is one, and no changed bit outside of the slots and the padding goes unnoticed."""
    data = encode_table(Table(b"12345678", VALUES))
    _, slots, records = unpack_from("<QQQ", data, 32)
    for length in range(len(data)):
        with pytest.raises(StoreCorrupt):
            decode_table(data[:length])
    unseen = 0
    for at in [*range(slots), *range(records, len(data))]:
        damaged = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        try:
            unseen += decode_table(damaged).values != VALUES
        except StoreCorrupt:
            pass
    assert unseen == 0


def test_oldest_inputs_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the youngest inputs stay; what is known of the standard library always does."""
    monkeypatch.setattr(remembering, "MOST_INPUTS", 2)
    values = {b"Mre._compiler": b"m", b"Ps1": b"a", b"Ps2": b"b", b"Bre._parser": b"p", b"Ps3": b"c"}

    kept = remembering.newest(values)

    assert list(kept) == [b"Mre._compiler", b"Ps2", b"Bre._parser", b"Ps3"]
    monkeypatch.setattr(remembering, "MOST_BYTES", 4)
    assert [key for key in remembering.newest(values) if key.startswith(b"P")] == [b"Ps3"]


SOURCE = """
def make(text, globals, other):
    ns = {}
    exec(text, globals, ns)
    return ns
"""


@pytest.mark.parametrize(
    "change",
    ["ns = dict()", "exec(text + '', globals, ns)", "exec(text, globals, other)", "exec(text, globals)"],
)
def test_only_the_known_expression_asks(change: str) -> None:
    """`exec` of a name into a dict that was just made is changed; nothing else is, however similar."""
    kept = change.partition("=")[0] if "=" in change else "exec"
    other = "\n".join(
        f"    {change}" if line.strip().startswith(kept) else line for line in SOURCE.split("\n")
    )

    assert len(remember_worker.module_value("dataclasses", SOURCE.encode())) > 8
    assert len(remember_worker.module_value("dataclasses", other.encode())) == 8


def test_a_module_with_future_imports_is_not_changed() -> None:
    """Its text would inherit them, and remembered text does not."""
    source = b"from __future__ import annotations\n" + SOURCE.encode()

    assert len(remember_worker.module_value("dataclasses", source)) == 8


def test_changed_code_does_what_it_did_without_an_answer() -> None:
    """Where nobody answers, or what is there to ask was replaced, text is executed as always."""
    value = remember_worker.module_value("dataclasses", SOURCE.encode())
    for spec in ({}, {"__spec__": None}, {"__spec__": ast}):
        names: dict[str, object] = dict(spec)
        exec(marshal.loads(value[8:]), names)
        made = names["make"]("x = 1", {}, {})  # type: ignore[operator]
        assert made == {"x": 1}


@pytest.mark.parametrize("pattern", ["a(b)(?P<n>c)|\\d{2,}", "[à-ü]", "", "(?i)straße", b"\\x00(?s:.)"])
def test_patterns_are_made_again_as_they_were(pattern: str | bytes) -> None:
    """What is kept of a pattern gives an equal one."""
    value = remember_worker.pattern_value(pattern, 0)

    made = remember_worker.pattern_of(pattern, value)

    known = re.compile(pattern)
    assert (made, made.groups, dict(made.groupindex)) == (known, known.groups, dict(known.groupindex))


@pytest.mark.parametrize(
    "key",
    [
        b"Ps\0\0\0\0(",  # fails
        b"Ps\0\0\0\0[[a]",  # warns
        b"Pb\x04\0\0\0a",  # depends on the locale
        b"Pb\0\0\0\0(?L)a",
        b"Ps\x80\0\0\0a",  # prints
        b"Ps\0\0\0\0a{" + b"1" * 700 + b"}",  # a limit that each process may set
        b"Sexecx =",
        b"Sexec'\\d'",
        b"Sexecx is 1",
        b"Sevalx = 1",
        b"X",
        b"",
        b"Ps",
        b"Sexec\xff",
    ],
)
def test_what_fails_or_warns_is_never_remembered(key: bytes) -> None:
    """Whoever asks for such a thing is to see that for himself, each time."""
    assert remember_worker.guarded(remember_worker.value_of, key) == b""

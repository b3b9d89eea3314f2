# SPDX-License-Identifier: Apache-2.0
"""Every parser against its kept corpus and against mutations of it."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.fuzz.mutate import mutated
from tests.fuzz.parsers import PARSERS
from tests.fuzz.run import corpus_of, fuzz, try_one
from tests.support.stores import CHECKOUT
from velo_import.errors import StoreCorrupt
from velo_import.format import cbor

NAMES = pytest.mark.parametrize("name", PARSERS)


@NAMES
def test_corpus_is_answered_or_refused(name: str) -> None:
    answers = [try_one(PARSERS[name], data) for data in corpus_of(name).values()]

    assert True in answers, "nothing is accepted: run `python -m tests.fuzz all --samples`"


@NAMES
def test_what_is_written_is_accepted(name: str) -> None:
    for data in PARSERS[name].samples():
        assert try_one(PARSERS[name], PARSERS[name].repair(data)), "a repair must not break what is whole"
        assert try_one(PARSERS[name], data)


@NAMES
def test_mutations_are_answered_or_refused(name: str) -> None:
    parser = PARSERS[name]
    known = list(corpus_of(name).values())
    chance = random.Random(f"{name} 1")
    accepted = 0
    for _ in range(400):
        data = mutated(chance.choice(known), known, chance)
        accepted += try_one(parser, parser.repair(data))
    assert accepted < 400


@pytest.mark.crash
@NAMES
def test_many_mutations_are_answered_or_refused(name: str) -> None:
    """Another seed each time, in another process, because native code may end it."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--count", "20000"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_a_parser_that_fails_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer notices an exception of another kind."""

    def careless(data: bytes) -> bool:
        return data[4] >= 0

    monkeypatch.setitem(PARSERS, "cbor", PARSERS["cbor"]._replace(parse=careless))
    with pytest.raises(IndexError):
        list(fuzz("cbor", count=2000, seed=1))


def test_deep_nesting_is_refused_at_once() -> None:
    for opening in (b"\x81", b"\xa1\x61a", b"\xc1"):
        with pytest.raises(StoreCorrupt):
            cbor.decode(b"\xa1\x61a" + opening * (200_000 // len(opening)) + b"\x00")

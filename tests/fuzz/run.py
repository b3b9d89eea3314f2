# SPDX-License-Identifier: Apache-2.0
"""One parser against its corpus and mutations of it; what reaches new lines joins the corpus of this run."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from blake3 import blake3

from .mutate import mutated
from .parsers import PARSERS, Parser

CORPUS = Path(__file__).with_name("corpus")
SOON = 2.0  # Seconds; the machine may be busy with other things.
_REPAIRED = 0.75  # Of all mutations; the rest has to be refused by checksums.


def corpus_of(name: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}


def try_one(parser: Parser, data: bytes) -> bool:
    """Whether the parser accepted; raises what it must not raise."""
    began = time.process_time()
    try:
        return parser.parse(data)
    except parser.refusals:
        return False
    finally:
        used = time.process_time() - began
        assert used < SOON, f"{used:.1f} s for {len(data)} bytes"


def fuzz(name: str, *, count: int, seed: int, last: Path | None = None) -> Iterator[tuple[bytes, bool]]:
    """Try `count` mutations; yields each that reached a line for the first time, and whether it was accepted.

    `last` is a file that always holds the input being tried, for parsers that end the process.
    """
    parser = PARSERS[name]
    chance = random.Random(seed)
    lines = _Lines()
    known = []
    for data in corpus_of(name).values():
        lines.watch(parser, data)
        known.append(data)
    for _ in range(count):
        data = mutated(chance.choice(known), known, chance)
        if chance.random() < _REPAIRED:
            data = parser.repair(data)
        if last is not None:
            last.write_bytes(data)
        new, accepted = lines.watch(parser, data)
        if new:
            known.append(data)
            yield data, accepted


class _Lines:
    """The lines of Velo that were reached so far."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()
        self.new = False

    def watch(self, parser: Parser, data: bytes) -> tuple[bool, bool]:
        self.new = False
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            accepted = try_one(parser, data)
        finally:
            sys.settrace(before)
        return self.new, accepted

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if "velo_import" in frame.f_code.co_filename else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        place = frame.f_code, frame.f_lineno
        if place not in self.seen:
            self.seen.add(place)
            self.new = True
        return self._line


def keep(name: str, data: bytes) -> Path:
    """Add an input to the corpus in the source tree."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / blake3(data).hexdigest()[:16]
    path.write_bytes(data)
    return path

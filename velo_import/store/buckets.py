# SPDX-License-Identifier: Apache-2.0
"""Many records, grouped by their first byte: in memory while they are few, in an unnamed file when they are
many.

For joins over more digests than one wants to hold: both sides go into buckets, then bucket meets bucket. The
surprise: on a full disk the records stay in memory, because cleaning up is what a full disk needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO

COUNT = 256
_LIMIT = 8 << 20


class Buckets:
    """Byte strings of one length. For one thread; as a context manager it gives the file back."""

    def __init__(self, folder: Path, *, limit: int = _LIMIT) -> None:
        self._folder = folder
        self._limit: float = limit
        self._recent = [bytearray() for _ in range(COUNT)]
        self._held = 0
        self._written: list[list[tuple[int, int]]] = [[] for _ in range(COUNT)]
        self._file: IO[bytes] | None = None
        self._end = 0

    def add(self, records: Iterable[bytes]) -> None:
        """Put each record into the bucket of its first byte."""
        recent = self._recent
        added = 0
        for record in records:
            recent[record[0]] += record
            added += len(record)
        self._held += added
        if self._held > self._limit:
            self._spill()

    def take(self, number: int) -> bytes:
        """All records of one bucket, one after the other; it may be asked for again."""
        if self._file is None:
            return bytes(self._recent[number])
        file = self._file.fileno()
        parts = [os.pread(file, length, offset) for offset, length in self._written[number]]
        return b"".join((*parts, self._recent[number]))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Buckets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spill(self) -> None:
        data = b"".join(self._recent)
        try:
            if self._file is None:
                self._file = TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  closed by close()
            at = 0
            while at < len(data):
                at += os.pwrite(self._file.fileno(), data[at:], self._end + at)
        except OSError:
            self._limit = float("inf")
            with suppress(OSError):  # half of it: the space is needed elsewhere
                if self._file is not None:
                    os.ftruncate(self._file.fileno(), self._end)
            return
        for number, part in enumerate(self._recent):
            if part:
                self._written[number].append((self._end, len(part)))
                self._end += len(part)
                part.clear()
        self._held = 0

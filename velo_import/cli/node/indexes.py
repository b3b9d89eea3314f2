# SPDX-License-Identifier: Apache-2.0
"""Indexes of Node modules for the commands that show them. Decoding is format/'s work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...errors import StoreCorrupt
from ...format.node import SUFFIX, Index, decode_index
from ...host.files import read_file
from ...store.layout import Store


class IndexFile(NamedTuple):
    """One published index. Its layer is `start` (learned from programs) or `tree` (ingested); `said` is None
    if it is damaged, and `problem` says then how.
    """

    key: str
    layer: str
    path: Path
    size: int
    updated: float
    said: Index | None
    problem: str

    @property
    def subject(self) -> str:
        return self.said.subject if self.said is not None else ""

    @property
    def exists(self) -> bool:
        """Whether what it is for is still there; of `node -e` that is the folder."""
        return bool(self.subject) and os.path.exists(self.subject.removesuffix("-"))


def published_indexes(store: Store) -> Iterator[IndexFile]:
    """Every index in the store, by name."""
    for path in sorted(store.indexes.glob(f"*{SUFFIX}")):
        try:
            status = path.stat()
            data = read_file(path)
        except OSError:
            continue
        index, problem = None, ""
        try:
            index = decode_index(data)
        except StoreCorrupt as error:
            problem = error.message
        key = path.name.removesuffix(SUFFIX)
        layer = key.partition("-")[0]
        yield IndexFile(key, layer, path, status.st_size, status.st_mtime, index, problem)

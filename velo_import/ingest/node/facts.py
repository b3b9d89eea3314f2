# SPDX-License-Identifier: Apache-2.0
"""Whether what an index of Node modules says is so still: what node_accel asks in programs, for those who
explain it.
"""

from __future__ import annotations

import os
import stat

from velo_import.format.node import ABSENT, SAME, Fact, File, Index, Stamp
from velo_import.store.layout import Store

from ..codes import usable_packs
from .resolve import stamp_of


def why_not(index: Index, file: File, store: Store) -> str:
    """Why a file of an index would not be served now; empty if it would."""
    if not os.path.exists(index.executable):
        return "the Node that it is for has gone"
    if stamp_of(os.stat(index.executable)) != index.executable_stamp:
        return "the Node that it is for was replaced"
    try:
        status = os.lstat(file.path)
    except OSError:
        return "the file has gone"
    if not stat.S_ISREG(status.st_mode) or stamp_of(status) != file.stamp:
        return "the file has changed"
    for number in file.facts:
        if not holds(index.facts, number):
            return f"{index.facts[number].path} has changed"
    if index.packs[file.pack] not in usable_packs(store, {index.packs[file.pack]: None}):
        return "its pack is missing, or was written to"
    return ""


def holds(facts: tuple[Fact, ...], number: int) -> bool:
    """Whether a fact holds, and all that have to hold with it."""
    while number >= 0:
        fact = facts[number]
        if not _is_so(fact):
            return False
        number = fact.above
    return True


def _is_so(fact: Fact) -> bool:
    try:
        status = os.lstat(fact.path)
    except OSError:
        return fact.kind == ABSENT
    if fact.kind == ABSENT or status.st_mode >> 12 != fact.type or status.st_ino != fact.stamp.ino:
        return False
    if fact.kind == SAME:
        return True
    now = stamp_of(status)
    return _times(now) == _times(fact.stamp) and (stat.S_ISDIR(status.st_mode) or now.size == fact.stamp.size)


def _times(stamp: Stamp) -> tuple[int, int]:
    return stamp.mtime_ns, stamp.ctime_ns

# SPDX-License-Identifier: Apache-2.0
"""Quarantine: where damaged files go, so that they are missing and can still be looked at.

Knows the folder and its bounds; what is damaged is verify.py's to say. Its surprise: nothing is copied, so a
file on a failing disk is out of the way at once, and a program that has it mapped keeps what it mapped.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from ..host.files import explained, flush_all, make_folders, remove_quietly
from .layout import Store

# Kept for whoever wants to know what happened; the oldest go first.
MOST_FILES = 1000
MOST_BYTES = 1 << 30


def put_aside(store: Store, path: Path) -> Path:
    """Put a damaged file into quarantine and return where; its mtime becomes the time of this.

    Where a file can have two names it is still in its place, for the caller to replace or to remove: whoever
    is killed in between leaves damage that is found again, and no gap that nobody looks for.
    """
    store.require_writable()
    with explained(store.quarantine):
        changed = make_folders(store.quarantine)
        place = store.quarantine / f"{time.time_ns()}-{path.name}"
        try:
            os.link(path, place)
        except FileNotFoundError:
            raise
        except OSError:
            os.rename(path, place)
        with suppress(OSError):  # Somebody else's file that root moves, or a disk that takes no more.
            os.utime(place)
        flush_all(sorted({*changed, store.quarantine, path.parent}))
    _keep_within_bounds(store)
    return place


def quarantined(store: Store) -> list[Path]:
    """What is in quarantine, the oldest first."""
    return sorted(store.quarantine.glob("*-*"))


def _keep_within_bounds(store: Store) -> None:
    kept = size = 0
    for path in reversed(quarantined(store)):
        with suppress(OSError):
            kept += 1
            size += path.stat().st_size
            # The newest is always kept: it is what somebody is about to read about.
            if kept > 1 and (kept > MOST_FILES or size > MOST_BYTES):
                remove_quietly(path)

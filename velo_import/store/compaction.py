# SPDX-License-Identifier: Apache-2.0
"""Compaction: the pages of the catalogue that nothing is in any more go back to the disk.

LMDB uses free pages again and never gives them back, and one large change leaves as many as it found. Knows
how the catalogue is replaced by a copy without them; when, its callers say. Its surprise: the whole folder
changes places with another one. A copy counts its transactions from the beginning, and the lock file of those
that have the old one open would not know of that; so they keep theirs, and what they read stays as it was.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

import lmdb

from ..errors import VeloError
from ..host.files import exchange, flush_all, private_folder
from . import leases
from .catalog import MARK, Catalog
from .layout import Store

# Worth it from so many free bytes on, and so large a part of the file.
_LEAST_FREE = 1 << 20
_LEAST_PART = 0.25


def compact(store: Store) -> int:
    """Give back what the catalogue does not use, if that is worth it; returns how many bytes that was.

    Waits for nobody and never fails: where others are at work, the disk is full, or folders cannot change
    places, everything stays as it is. Hold no lease and no open catalogue: what is written to the old one
    would be lost.
    """
    try:
        with leases.maintenance(store), leases.exclusive(store, wait=0):
            return _compact(store)
    except (VeloError, OSError, lmdb.Error):
        return 0


def _compact(store: Store) -> int:
    spare = store.spare_catalogue
    shutil.rmtree(spare, ignore_errors=True)  # left by one that was killed
    with Catalog.open(store) as catalog:
        free, size = catalog.free_bytes()
        if free < max(_LEAST_FREE, size * _LEAST_PART):
            return 0
        try:
            catalog.copy_to(private_folder(spare))
            _finish(store)
            exchange(store.catalogue, spare)
        except BaseException:
            shutil.rmtree(spare, ignore_errors=True)
            raise
    # The old one is removed when no power cut can bring back its name any more.
    flush_all([store.home])
    shutil.rmtree(spare, ignore_errors=True)
    return free


def _finish(store: Store) -> None:
    """Make of a copy of the rows all that the folder of a catalogue is, on the disk."""
    copy = store.spare_catalogue / "data.mdb"
    os.chmod(copy, 0o600)
    with suppress(FileNotFoundError):  # an older Velo made none
        os.link(store.catalogue / MARK, store.spare_catalogue / MARK)
    flush_all([copy, store.spare_catalogue])

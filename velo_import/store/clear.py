# SPDX-License-Identifier: Apache-2.0
"""Clearing: everything that Velo ever wrote into the store folder goes, and nothing else.

Knows the order: first what programs are served from, last `VERSION`, so that an attempt that was interrupted
leaves a store that can be cleared again. Its surprise: who waits for a lock of this store meanwhile gets it
on a file without a name, so locks.py looks again whether the file it locked is still there.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from ..host.files import TEMPORARY_PREFIX, explained
from . import leases
from .layout import PARTS, Store

_ORDER = (
    "manifests",
    "indexes",
    "meta.db",
    "meta.db.damaged",
    "meta.db.spare",
    "roots",
    "packs",
    "cas_store",
    "quarantine",
)
# Locks are in `run/`: until the end others find them held.
_LAST = ("run", "VERSION")


def clear(store: Store, *, wait: float = 60.0) -> list[str]:
    """Remove the store; return the names of what is left in its folder because it is not Velo's.

    Programs that run go on with what they have mapped.

    Raises:
        StoreLocked: an ingest or a collection did not end in time.
        VeloError: something could not be removed.
    """
    names = [*_ORDER, *(part for part in PARTS if part not in (*_ORDER, *_LAST)), *_LAST]
    with (
        leases.maintenance(store, wait=wait),
        leases.exclusive(store, wait=wait),
        explained(store.home, "clear"),
    ):
        for name in os.listdir(store.home):
            if name.startswith(TEMPORARY_PREFIX):
                os.unlink(store.home / name)
        for name in names:
            path = store.home / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        left = sorted(os.listdir(store.home))
        with suppress(OSError):  # not empty, or the place where a disk is mounted
            store.home.rmdir()
    return left

# SPDX-License-Identifier: Apache-2.0
"""Leases: who may rely on what is in the store, and who may take something away (FORMAT.md, section 6).

Knows the two locks and what holding them promises; the lock calls are host/locks.py's. Its surprise: many may
rely on the store while one prepares a removal; only the removal itself, a second at a time, needs it alone.

    shared        from the first look-up until what refers to the answer is published: ingest, learn, export
    exclusive     while something vanishes: nobody relies on an answer that is older than this lease
    maintenance   one at a time decides what to move or to remove: gc, repack, repair, clear

Ask for `maintenance` first, then for `exclusive`. The kernel frees the leases of the dead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import StoreLocked, StoreMissing
from ..host import locks
from .layout import Store

# A removal holds the store for about a second at a time; whoever only reads it waits that out.
_PATIENCE = 60.0


@contextmanager
def shared(store: Store, *, wait: float = _PATIENCE) -> Iterator[None]:
    """Nothing that is in the store vanishes during the block.

    Raises:
        StoreLocked: something was being removed for all of `wait` seconds.
        StoreMissing: the store was cleared meanwhile.
    """
    path = _leases(store)
    if store.readonly and not os.access(path, os.R_OK):
        # Nobody could write it here; who only reads finds a file gone at worst, and that is a miss.
        yield
        return
    with _kept(store), locks.shared(path, wait=wait):
        yield


@contextmanager
def exclusive(store: Store, *, wait: float = _PATIENCE) -> Iterator[None]:
    """Nobody holds a shared lease during the block: what is in use is what published manifests name.

    Raises:
        StoreLocked: an ingest or a learner was at work for all of `wait` seconds.
    """
    store.require_writable()
    with _kept(store), ExitStack() as lease:
        try:
            lease.enter_context(locks.exclusive(_leases(store), wait=wait))
        except StoreLocked as error:
            raise StoreLocked(
                f"the store {store.home} is in use by an ingest or a learner",
                hint="try again when it is done",
            ) from error
        yield


@contextmanager
def maintenance(store: Store, *, wait: float = 0) -> Iterator[None]:
    """We alone decide what is moved or removed; others may go on reading and adding.

    Raises:
        StoreLocked: another gc, repack or repair is at work.
    """
    store.require_writable()
    with _kept(store), locks.exclusive(store.run / "maintenance.lock", wait=wait):
        yield


@contextmanager
def _kept(store: Store) -> Iterator[None]:
    """A lock file whose folder has gone means a store that was cleared under our feet."""
    try:
        yield
    except FileNotFoundError as error:
        if store.run.exists():
            raise
        raise StoreMissing(
            f"the store {store.home} has been removed", hint="`velo run` and `velo ingest` make another"
        ) from error


def _leases(store: Store) -> Path:
    return store.run / "leases.lock"

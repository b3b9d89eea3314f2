# SPDX-License-Identifier: Apache-2.0
"""Leases: who may rely on what is in the store, and who may take something away (FORMAT.md, section 6).

Knows the two locks and what holding them promises; the lock calls are host/locks.py's. Its surprise: many may
rely on the store while one prepares a removal; only the removal itself, a second at a time, needs it alone.
It gets its turn also where ingests overlap without end: it closes a gate to those that come, for longer each
time, until those that came before have gone; then it opens the gate again for as long.

    shared        from the first look-up until what refers to the answer is published: ingest, learn, export
    exclusive     while something vanishes: nobody relies on an answer that is older than this lease
    maintenance   one at a time decides what to move or to remove: gc, repack, repair, clear

Ask for `maintenance` first, then for `exclusive`. The kernel frees the leases of the dead.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import StoreLocked, StoreMissing
from ..host import locks
from .layout import Store

# A removal holds the store for about a second at a time; whoever only reads it waits that out.
_PATIENCE = 60.0
# How long a removal keeps newcomers waiting: at first, and at most. An ingest that takes longer than that is
# waited for as well, unless others overlap with it.
_FIRST_TURN = 1.0
_LONGEST_TURN = 30.0


@contextmanager
def shared(store: Store, *, wait: float = _PATIENCE) -> Iterator[None]:
    """Nothing that is in the store vanishes during the block.

    Raises:
        StoreLocked: something was being removed for all of `wait` seconds.
        StoreMissing: the store was cleared meanwhile.
    """
    path = _leases(store)
    if store.readonly and not all(os.access(each, os.R_OK) for each in (path, _gate(store))):
        # Nobody could write it here; who only reads finds a file gone at worst, and that is a miss.
        yield
        return
    with _kept(store):
        with locks.shared(_gate(store), wait=wait):
            pass
        with locks.shared(path, wait=wait):
            yield


@contextmanager
def exclusive(store: Store, *, wait: float = _PATIENCE) -> Iterator[None]:
    """Nobody holds a shared lease during the block: what is in use is what published manifests name.

    Raises:
        StoreLocked: an ingest or a learner was at work for all of `wait` seconds.
    """
    store.require_writable()
    with _kept(store), ExitStack() as lease:
        deadline = time.monotonic() + wait
        if not _taken(lease, store, 0):
            turn = _FIRST_TURN
            while True:
                with _closed_gate(store, deadline):
                    if _taken(lease, store, min(turn, deadline - time.monotonic())):
                        break
                if time.monotonic() >= deadline:
                    raise StoreLocked(
                        f"the store {store.home} is in use by an ingest or a learner",
                        hint="try again when it is done",
                    )
                if _taken(lease, store, min(turn, deadline - time.monotonic())):
                    break
                turn = min(2 * turn, _LONGEST_TURN)
        yield


def _taken(lease: ExitStack, store: Store, wait: float) -> bool:
    """Whether we have the store alone now."""
    try:
        lease.enter_context(locks.exclusive(_leases(store), wait=wait))
    except StoreLocked:
        return False
    return True


@contextmanager
def _closed_gate(store: Store, deadline: float) -> Iterator[None]:
    """Whoever asks for a shared lease during the block waits for its end."""
    with ExitStack() as gate:
        with suppress(StoreLocked):  # another removal keeps it closed
            gate.enter_context(locks.exclusive(_gate(store), wait=max(0.0, deadline - time.monotonic())))
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


def _gate(store: Store) -> Path:
    return store.run / "leases.gate"

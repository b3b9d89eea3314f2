# SPDX-License-Identifier: Apache-2.0
"""Leases: who may rely on what is in the store, and who may take something away (FORMAT.md, section 6).

Knows the two locks and what holding them promises; the lock calls are host/locks.py's. Its surprise: many may
rely on the store while one prepares a removal; only the removal itself, a second at a time, needs it alone.
It gets its turn also where ingests overlap without end: it closes a gate to those that come, for longer each
time, until those that came before have gone; then it opens the gate again for as long. In the second half of
its patience the gate stays closed, so that nothing but one very long ingest can keep it from its turn.

    shared        from the first look-up until what refers to the answer is published: ingest, learn, export
    exclusive     while something vanishes: nobody relies on an answer that is older than this lease
    maintenance   one at a time decides what to move or to remove: gc, repack, repair, clear

Ask for `maintenance` first, then for `exclusive`. The kernel frees the leases of the dead.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import StoreLocked, StoreMissing
from ..host import locks
from .layout import Store

_PATIENCE = 60.0
# Longer than any removal keeps the gate closed: half of the ten minutes that gc has.
_PATIENCE_AT_GATE = 400.0
# How long a removal keeps newcomers waiting: at first, and at most in the first half of its patience.
_FIRST_TURN = 1.0
_LONGEST_TURN = 30.0
_leased = threading.local()  # .homes: the stores that this thread holds a shared lease of


def _nobody_is_told() -> None:
    """Nobody wants to know that we wait."""


@contextmanager
def shared(
    store: Store, *, wait: float = _PATIENCE_AT_GATE, waiting: Callable[[], object] = _nobody_is_told
) -> Iterator[None]:
    """Nothing that is in the store vanishes during the block. Whoever has the lease may ask again, and is not
    kept at the gate. `waiting` is called if we have to wait.

    Raises:
        StoreLocked: something was being removed for all of `wait` seconds.
        StoreMissing: the store was cleared meanwhile.
    """
    path = _leases(store)
    held: set[Path] = _leased.__dict__.setdefault("homes", set())
    if path in held or (
        store.readonly and not all(os.access(each, os.R_OK) for each in (path, _gate(store)))
    ):
        # Where nobody could write it, who only reads finds a file gone at worst, and that is a miss.
        yield
        return
    with _kept(store), ExitStack() as lease:
        try:
            with locks.shared(_gate(store), wait=0):
                lease.enter_context(locks.shared(path, wait=0))
        except StoreLocked:
            waiting()
            with locks.shared(_gate(store), wait=wait):
                pass
            lease.enter_context(locks.shared(path, wait=wait))
        held.add(path)
        lease.callback(held.remove, path)
        yield


@contextmanager
def exclusive(
    store: Store, *, wait: float = _PATIENCE, waiting: Callable[[], object] = _nobody_is_told
) -> Iterator[None]:
    """Nobody holds a shared lease during the block: what is in use is what published manifests name.
    `waiting` is called if we have to wait.

    Raises:
        StoreLocked: an ingest or a learner was at work for half of `wait` seconds, the second half.
    """
    store.require_writable()
    with _kept(store), ExitStack() as lease:
        now = time.monotonic()
        deadline, half = now + wait, now + wait / 2
        if not _taken(lease, store, 0):
            waiting()
            turn = _FIRST_TURN
            while True:
                left = deadline - time.monotonic()
                with _closed_gate(store, deadline):
                    if _taken(lease, store, left if time.monotonic() >= half else min(turn, left)):
                        break
                if time.monotonic() >= deadline:
                    raise StoreLocked(
                        f"the store {store.home} is in use by an ingest or a learner",
                        hint="try again when it is done; others that came after it have been kept waiting",
                    )
                if _taken(lease, store, min(turn, half - time.monotonic())):
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

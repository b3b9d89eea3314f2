# SPDX-License-Identifier: Apache-2.0
"""Leases: whoever relies on the store keeps it whole, and the dead keep nothing."""

from __future__ import annotations

import shutil
import threading
import time

import pytest

from tests.support.stores import start
from velo_import.errors import StoreLocked, StoreMissing, VeloError
from velo_import.store import leases
from velo_import.store.layout import Store

READER = """
from velo_import.store import leases
with leases.shared(store):
    print("reading", flush=True)
    import time
    time.sleep(60)
"""


def test_removal_waits_for_readers_and_names_them(store: Store) -> None:
    with leases.shared(store), leases.shared(store):
        with (
            pytest.raises(StoreLocked, match="in use by an ingest") as caught,
            leases.exclusive(store, wait=0),
        ):
            pass
        assert caught.value.exit_code == 11 and caught.value.hint


def test_readers_wait_for_a_removal(store: Store) -> None:
    with leases.exclusive(store), pytest.raises(StoreLocked), leases.shared(store, wait=0.05):
        pass


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_FIRST_TURN", 0.2)
    monkeypatch.setattr(leases, "_LONGEST_TURN", 0.8)


@pytest.mark.usefixtures("short_turns")
def test_a_removal_gets_its_turn_where_readers_overlap_without_end(store: Store) -> None:
    """Each begins before the one before it ends, so that somebody always reads."""
    enough = threading.Event()
    reads: list[int] = []

    def read(number: int) -> None:
        while not enough.is_set():
            with leases.shared(store):
                reads.append(number)
                enough.wait(0.3)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for reader in readers:
        reader.start()
        time.sleep(0.05)
    try:
        for _ in range(3):
            with leases.exclusive(store, wait=30):
                before = len(reads)
                time.sleep(0.1)
                assert len(reads) == before
            time.sleep(0.4)
            assert len(reads) > before
    finally:
        enough.set()
        for reader in readers:
            reader.join()


@pytest.mark.usefixtures("short_turns")
def test_a_removal_that_waits_does_not_keep_readers_out(store: Store) -> None:
    """One ingest takes minutes: a removal waits for it, and others come and go meanwhile."""
    outcome: list[str] = []

    def remove() -> None:
        with leases.exclusive(store, wait=30):
            outcome.append("removed")

    def read() -> None:
        for _ in range(3):
            time.sleep(0.1)
            with leases.shared(store, wait=5):
                outcome.append("read")

    with leases.shared(store):
        others = [threading.Thread(target=each) for each in (remove, read)]
        for each in others:
            each.start()
        others[1].join()
    others[0].join()
    assert outcome == ["read", "read", "read", "removed"]


def test_a_removal_gets_its_turn_where_long_readers_overlap_without_end(store: Store) -> None:
    """Each takes longer than the gate is closed at a time: in the end it stays closed."""
    enough = threading.Event()
    told: list[str] = []

    def read() -> None:
        while not enough.is_set():
            with leases.shared(store, waiting=lambda: told.append("reader")):
                enough.wait(2)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
        time.sleep(0.5)
    try:
        with (
            pytest.raises(StoreLocked, match="in use by an ingest"),
            leases.exclusive(store, wait=1),
        ):
            pass
        with leases.exclusive(store, wait=8, waiting=lambda: told.append("removal")):
            enough.set()
    finally:
        enough.set()
        for reader in readers:
            reader.join()
    assert {"reader", "removal"} <= set(told)


def test_who_has_the_lease_is_not_kept_at_the_gate(store: Store) -> None:
    """`velo pack` learns while it relies on the store: it must not wait for whom it keeps waiting."""

    def remove() -> None:
        with leases.exclusive(store, wait=30):
            pass

    removal = threading.Thread(target=remove)
    with leases.shared(store):
        removal.start()
        time.sleep(0.2)
        began = time.monotonic()
        with leases.shared(store, wait=5):
            pass
        assert time.monotonic() - began < 1
        with pytest.raises(StoreLocked), leases.exclusive(store, wait=0):
            pass
    removal.join()


def test_a_dead_reader_keeps_nothing(store: Store) -> None:
    child = start(READER, store.home)
    assert child.stdout is not None and child.stdout.readline() == "reading\n"
    with pytest.raises(StoreLocked), leases.exclusive(store, wait=0):
        pass
    child.kill()
    child.communicate()

    with leases.exclusive(store, wait=10):
        pass


def test_only_one_decides_while_others_read(store: Store) -> None:
    deciding, reading = leases.maintenance(store), leases.shared(store)
    with deciding, reading, pytest.raises(StoreLocked), leases.maintenance(store):
        pass


def test_a_store_that_was_cleared_meanwhile_is_missing(store: Store) -> None:
    outcome: list[str] = []

    def read() -> None:
        try:
            with leases.shared(store, wait=10):
                outcome.append("read")
        except StoreMissing:
            outcome.append("missing")

    with leases.exclusive(store):
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(0.1)
        shutil.rmtree(store.home)
    reader.join(10)

    assert outcome == ["missing"]


def test_reading_only_needs_no_lock_file_and_removal_is_refused(store: Store) -> None:
    readonly = Store.open(store.home, readonly=True)
    with leases.shared(readonly):
        assert not list(store.run.glob("leases.*"))
    for lease in (leases.exclusive, leases.maintenance):
        with pytest.raises(VeloError, match="reading only"), lease(readonly):
            pass

# SPDX-License-Identifier: Apache-2.0
"""Locks between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.stores import CHECKOUT
from velo_import.errors import StoreLocked, VeloError
from velo_import.host.locks import exclusive, held, release, shared

HOLDER = f"""
import sys, time
sys.path.insert(0, {str(CHECKOUT)!r})
from pathlib import Path
from velo_import.host.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def holder(lock: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def test_who_comes_second_hears_who_was_first(lock: Path) -> None:
    child = holder(lock)
    try:
        with pytest.raises(StoreLocked, match=f"process {child.pid}") as caught, exclusive(lock):
            pass
        assert caught.value.exit_code == 11
        assert caught.value.hint
    finally:
        end(child)


def test_lock_of_a_killed_process_is_free(lock: Path) -> None:
    child = holder(lock)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()

    with exclusive(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_waiting_ends_when_the_holder_does(lock: Path) -> None:
    child = holder(lock)
    start = time.monotonic()
    try:
        with pytest.raises(StoreLocked), exclusive(lock, wait=0.1):
            pass
        assert time.monotonic() - start >= 0.1
        child.terminate()
        with exclusive(lock, wait=10):
            pass
    finally:
        end(child)


def test_inherited_lock_is_held_and_a_foreign_one_is_not(lock: Path) -> None:
    with exclusive(lock) as descriptor:
        assert held(descriptor)
        code = f"import os, sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
        code += "from velo_import.host.locks import held\n"
        code += "print(held(int(sys.argv[1])), held(os.open(sys.argv[2], os.O_RDWR)))"
        answer = subprocess.run(
            [sys.executable, "-c", code, str(descriptor), str(lock)],
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            check=True,
        )
    assert answer.stdout == "True False\n"


def test_a_released_lock_is_free_while_its_descriptor_is_open(lock: Path) -> None:
    with exclusive(lock) as descriptor:
        release(descriptor)
        with exclusive(lock):
            pass


def test_lock_is_free_after_the_block(lock: Path) -> None:
    for _ in range(2):
        with exclusive(lock):
            pass


def test_many_share_a_lock_that_one_cannot_have_alone(lock: Path) -> None:
    with shared(lock), shared(lock), pytest.raises(StoreLocked), exclusive(lock):
        pass
    with exclusive(lock), pytest.raises(StoreLocked, match=f"process {os.getpid()}"), shared(lock):
        pass


def test_sharing_needs_no_right_to_write(lock: Path) -> None:
    lock.write_bytes(b"")
    lock.chmod(0o400)
    with shared(lock):
        pass


def test_waiting_for_a_removed_file_ends_with_the_one_in_its_place(lock: Path) -> None:
    """`velo store clear` removes lock files; two processes must never hold "the" lock on two inodes."""
    child = holder(lock)
    lock.rename(lock.with_name("gone"))
    try:
        with exclusive(lock) as descriptor:  # the name is free, so is the lock
            assert os.path.samestat(os.fstat(descriptor), lock.stat())
    finally:
        end(child)


def test_file_system_without_locks_is_explained(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(VeloError, match="cannot lock"), exclusive(lock):
        pass

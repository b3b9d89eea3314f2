# SPDX-License-Identifier: Apache-2.0
"""A flush fails: nothing is promised that depends on it, and what comes later does not rely on it either."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from tests.crash.faults import FAIL, FLUSH
from tests.crash.replay import FLUSH_FAILED, WRITE, Replay, crashes, read_record
from tests.crash.rig import Rig
from tests.crash.test_kill import PROGRAMS


def after_a_crash(rig: Rig, record: Path) -> list[str]:
    """What is wrong with the store that has only what was flushed.

    A folder of which only the name was not flushed is nobody's to flush once more: the next run finds it
    there. So this disk keeps the names that lead to what is flushed.
    """
    replay = Replay(rig.home.parent, journaled=True)
    for operation in read_record(record):
        replay.apply(operation)
    target = rig.project.parent / "after"
    shutil.rmtree(target, ignore_errors=True)
    replay.write_out(target, crashes(0)["only what was flushed"])
    return rig.server.judge(target / "home", replay.promised, stamps=False).problems


def was_for_speed(record: Path) -> bool:
    """Whether what could not be flushed is a table without which Python answers for itself."""
    written = b""
    for operation in read_record(record):
        if operation.kind == WRITE and operation.offset == 0:
            written = operation.data
        elif operation.kind == FLUSH_FAILED:
            return written.startswith((b"VELOMETA", b"VELOINFO"))
    return False


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.crash)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_each_flush_fails_once(rig: Rig, program: str, step: int) -> None:
    """Kernels forget the bytes of a failed flush and report the next one as a success. So the program runs
    again, the power fails, and what it has promised by then must be there.
    """
    rig.server.require_shim()
    at = 1
    rig.edit()
    while True:
        rig.forget()
        rig.home.parent.mkdir(exist_ok=True)
        record = rig.project.parent / f"record-{at}"
        fault = {"root": str(rig.home.parent), "classes": FLUSH, "record": str(record)}
        failing = {**fault, "action": FAIL, "at": at, "error": errno.EIO}
        assert rig.run("store_blobs", fault=fault).finished
        first = rig.run(program, fault=failing)
        assert after_a_crash(rig, record) == [], f"flush {at}"
        if first.finished and first.operations < at:
            break
        # A collection that cannot write to the catalogue makes room, and tries again; a catalogue that cannot
        # be compacted stays as it is.
        may_go_on = program in ("collect_garbage", "compact_catalogue") or was_for_speed(record)
        assert first.code > 0 or may_go_on, "it went on although its flush had failed"
        assert rig.run(program, fault=fault).finished, rig.server.complaints()
        assert after_a_crash(rig, record) == [], f"flush {at}, second run"
        at += step
    assert at > step

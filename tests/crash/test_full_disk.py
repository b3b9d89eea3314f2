# SPDX-License-Identifier: Apache-2.0
"""The disk is full at each write: an error with a hint, nothing broken, nothing left, and room heals it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.crash.faults import CREATE, FAIL, WRITE
from tests.crash.programs import REFUSED
from tests.crash.rig import Rig
from tests.crash.test_kill import PROGRAMS
from tests.support.stores import small_disk, temporaries


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("error", "step"),
    [
        pytest.param(errno.ENOSPC, 11, id="ENOSPC"),
        pytest.param(errno.ENOSPC, 1, id="ENOSPC-each", marks=pytest.mark.crash),
        pytest.param(errno.EDQUOT, 1, id="EDQUOT-each", marks=pytest.mark.crash),
    ],
)
def test_disk_is_full_from_one_operation_on(rig: Rig, program: str, error: int, step: int) -> None:
    rig.server.require_shim()
    rig.home.parent.mkdir()
    assert rig.run("store_blobs").finished
    at = 1
    while True:
        rig.edit()
        fault = {
            "root": str(rig.home.parent),
            "classes": CREATE | WRITE,
            "action": FAIL,
            "at": at,
            "error": error,
            "sticky": 1,
            "seed": at,
        }
        outcome = rig.run(program, fault=fault)
        assert temporaries(rig.home) == [], f"operation {at}"
        assert rig.examine().problems == [], f"operation {at}"
        if outcome.finished and outcome.operations < at:
            break
        # What was only there to save time may be left out; all else is refused, and says why.
        assert outcome.finished or outcome.code == REFUSED, f"operation {at}: {rig.server.complaints()}"
        rig.edit()
        assert rig.run(program).finished, rig.server.complaints()
        assert rig.examine().problems == [], f"operation {at}"
        at += step
    assert at > step


@pytest.mark.parametrize("step", [160, pytest.param(8, marks=pytest.mark.crash)])
def test_a_small_disk_of_any_size(rig: Rig, tmp_path: Path, step: int) -> None:
    """Real disks, a little larger each time, until all fits. What fits is kept, the rest is refused."""
    sizes = range(step, 4000, step)
    for size in sizes:
        rig.forget()
        with small_disk(tmp_path / f"disk-{size}", f"{size}k") as folder:
            rig.home = folder / "home"
            outcomes = [rig.run(program) for program in PROGRAMS]
            assert {outcome.code for outcome in outcomes} <= {0, REFUSED}, rig.server.complaints()
            if rig.promised.catalogue:
                assert rig.examine().problems == [], f"{size} KiB"
            if all(outcome.finished for outcome in outcomes):
                break
    assert step < size < sizes[-1]

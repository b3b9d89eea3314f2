# SPDX-License-Identifier: Apache-2.0
"""kill -9 at any moment of every program that writes to a store."""

from __future__ import annotations

import signal

import pytest

from tests.crash.faults import KILL
from tests.crash.rig import Rig
from tests.support.stores import temporaries
from velo_import.store.layout import Store

PROGRAMS = (
    "store_blobs",
    "ingest_tree",
    "learn_program",
    "rebuild_catalogue",
    "repack_store",
    "collect_garbage",
    "repair_store",
    "compact_catalogue",
)


@pytest.mark.parametrize("turns", [20, pytest.param(500, marks=pytest.mark.crash)])
def test_killed_at_any_moment_and_nothing_is_lost(rig: Rig, turns: int) -> None:
    rig.home.parent.mkdir()
    killed = 0
    while killed < turns:
        outcome = rig.strike(rig.chance.choice(PROGRAMS), KILL, longest=0.09)
        killed += outcome.code == -signal.SIGKILL
        assert outcome.code in (0, -signal.SIGKILL), rig.server.complaints()
        findings = rig.examine()
        assert findings.problems == [], f"kill {killed}"
        if rig.turns % 40 == 0:
            rig.forget()  # The first operations on an empty folder are the riskiest.
    assert rig.reopens_quickly()


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.crash)])
@pytest.mark.parametrize("program", PROGRAMS)
def test_killed_at_each_operation_and_the_next_run_succeeds(rig: Rig, program: str, step: int) -> None:
    """From an empty folder to the end, one operation further each time; what the dead left can be removed."""
    rig.server.require_shim()
    at = 1
    while True:
        rig.forget()
        rig.home.parent.mkdir(exist_ok=True)
        fault = {"root": str(rig.home.parent), "action": KILL, "at": at, "seed": at}
        finished = rig.run(program, fault=fault).finished
        assert rig.examine().problems == [], f"operation {at}"
        if finished:
            break
        assert rig.run(program).finished, rig.server.complaints()
        assert rig.examine().problems == [], f"operation {at}"
        Store.open(rig.home).remove_leftovers(older_than=-1)
        assert temporaries(rig.home) == []
        assert rig.examine().problems == [], f"operation {at}"
        at += step
    assert at > 40


def test_a_store_that_writes_in_place_is_found_out(rig: Rig) -> None:
    """The rig notices when files are not put in their place at once, so its silence means something."""
    rig.server.require_shim()
    found = 0
    for at in range(20, 60):
        rig.forget()
        rig.home.parent.mkdir(exist_ok=True)
        fault = {"root": str(rig.home.parent), "action": KILL, "at": at, "seed": 1}
        rig.run("store_blobs", fault=fault, sabotage="files are not renamed")
        found += rig.examine().problems != []
    assert found

# SPDX-License-Identifier: Apache-2.0
"""Repair is stopped at each of its operations: the next one finishes it, and the damage is gone."""

from __future__ import annotations

import pytest

from tests.crash.faults import KILL
from tests.crash.rig import Rig
from tests.support.stores import flip_bit


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.crash)])
@pytest.mark.parametrize("what", ["packs/v1/*/*.pack", "cas_store/v1/*/*/*"])
def test_killed_repair_is_finished_by_the_next(rig: Rig, what: str, step: int) -> None:
    """Everything that is damaged is in the project that was ingested, so nothing may be lost."""
    rig.server.require_shim()
    rig.home.parent.mkdir()
    at = 1
    while True:
        assert rig.run("ingest_tree").finished, rig.server.complaints()
        damaged = sorted(rig.home.glob(what))
        assert damaged
        for path in damaged:
            flip_bit(path, path.stat().st_size // 2)
        fault = {"root": str(rig.home.parent), "action": KILL, "at": at, "seed": at}
        first = rig.run("repair_store", fault=fault)
        if not first.finished:
            assert rig.run("repair_store").finished, rig.server.complaints()
        assert rig.run("ingest_tree").finished, rig.server.complaints()
        assert rig.examine().problems == [], f"operation {at}"
        if first.finished:
            break
        at += step
    assert at > step

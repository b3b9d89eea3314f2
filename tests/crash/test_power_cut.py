# SPDX-License-Identifier: Apache-2.0
"""The power of the store's disk is cut at any moment of every program that writes to it. Needs root."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.disks import KINDS, Disk, disk
from tests.crash.faults import CUT
from tests.crash.rig import Rig, Server
from tests.crash.test_kill import PROGRAMS


@pytest.fixture(params=KINDS, ids=" ".join)
def power(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A disk of our own."""
    with disk(tmp_path / "power", *request.param) as made:
        yield made


@pytest.fixture
def rig(server: Server, tmp_path: Path, power: Disk) -> Rig:
    """A store on that disk."""
    server.require_shim()
    return Rig(server, power.folder / "home", tmp_path / "project", random.Random(13))


@pytest.mark.parametrize("cuts", [6, pytest.param(100, marks=pytest.mark.crash)])
def test_power_is_cut_at_any_moment_and_nothing_is_lost(rig: Rig, power: Disk, cuts: int) -> None:
    for cut in range(cuts):
        while rig.strike(rig.chance.choice(PROGRAMS), CUT, longest=0.12).finished:
            assert rig.examine().problems == []
        power.restart()
        findings = rig.examine()
        assert findings.problems == [], f"cut {cut}"
        if cut % 20 == 19:
            rig.forget()
    assert rig.reopens_quickly()
    for program in PROGRAMS:
        assert rig.run(program).finished, rig.server.complaints()
    assert rig.examine().problems == []


@pytest.mark.crash
@pytest.mark.parametrize("program", PROGRAMS)
def test_power_is_cut_at_each_operation(rig: Rig, power: Disk, program: str) -> None:
    for at in range(1, 1000):
        rig.edit()
        fault = {"root": str(power.folder), "action": CUT, "at": at, "seed": at}
        finished = rig.run(program, fault=fault).finished
        if not finished:
            power.restart()
        assert rig.examine().problems == [], f"operation {at}"
        if finished:
            break
    assert at > 10


def test_a_store_that_does_not_flush_is_found_out(rig: Rig, power: Disk) -> None:
    """The rig notices when files get their names before their content, so its silence means something."""
    found = 0
    for seed in range(8):
        assert rig.run("store_blobs", sabotage="files are not flushed").finished
        rig.run("stay", after=0.0, cut=str(power.folder), seed=seed)
        power.restart()
        found += rig.examine().problems != []
        rig.forget()
        rig.edit()
    assert found

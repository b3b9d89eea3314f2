# SPDX-License-Identifier: Apache-2.0
"""The power of the store's disk is cut at any moment of every program that writes to it. Needs root."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize("rows", [20_000, pytest.param(500_000, marks=pytest.mark.crash)])
def test_large_store_reopens_at_once(rig: Rig, power: Disk, rows: int) -> None:
    """After a power cut in the middle of changes nothing is read again, however much there is."""
    assert rig.server.ask("fill_catalogue", rig.home, arguments={"rows": rows, "steps": 1}).finished
    seconds = []
    for seed in range(5):
        arguments = {"rows": 500, "steps": 1_000_000}
        request = {"after": rig.chance.uniform(0.0, 0.3), "cut": str(power.folder), "seed": seed}
        rig.server.ask("fill_catalogue", rig.home, arguments=arguments, **request)
        power.restart()
        (said,) = rig.server.ask("reopen", rig.home).said
        seconds.append(said["seconds"])
    assert os.stat(rig.home / "meta.db" / "data.mdb").st_size > rows * 96
    assert min(seconds) < 0.05, "the clock is not ours alone, but it cannot be busy every time"


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

# SPDX-License-Identifier: Apache-2.0
"""Ingests, learners, collections and repacks on one store at once, each of them killed at any moment."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash.faults import KILL
from tests.crash.judge import Promises
from tests.crash.programs import REFUSED
from tests.crash.rig import Rig, Server, build_shim

TOGETHER = ("ingest_tree", "ingest_tree", "learn_program", "collect_garbage", "repack_store")


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[list[Rig]]:
    """One server and one project for each program, one store for all."""
    home = tmp_path / "disk" / "home"
    home.parent.mkdir()
    made = []
    for number in range(len(TOGETHER)):
        folder = tmp_path / f"rig-{number}"
        folder.mkdir()
        made.append(Rig(Server(folder, build_shim(folder)), home, folder / "project", random.Random(number)))
    yield made
    for rig in made:
        rig.server.close()


@pytest.mark.parametrize("turns", [8, pytest.param(150, marks=pytest.mark.crash)])
def test_what_is_published_stays_whole(rigs: list[Rig], turns: int) -> None:
    """Whatever is removed meanwhile: every manifest finds its packs, its bytecode and its content."""

    def work(rig: Rig, program: str) -> int:
        killed = 0
        for _ in range(turns):
            outcome = rig.strike(program, KILL, longest=0.3)
            # Two that collect or repack do not wait for each other: the second is refused.
            assert outcome.code in (0, REFUSED, -signal.SIGKILL), rig.server.complaints()
            killed += outcome.code == -signal.SIGKILL
        return killed

    with ThreadPoolExecutor(len(TOGETHER)) as pool:
        killed = sum(pool.map(work, rigs, TOGETHER))

    assert killed
    # A collection may have come last, and given up all environments: what is there is what counts.
    anything = Promises(catalogue=True)
    assert rigs[0].server.judge(rigs[0].home, anything).problems == []
    for rig, program in zip(rigs, TOGETHER, strict=True):
        assert rig.run(program).finished, rig.server.complaints()
        assert rig.server.judge(rig.home, anything).problems == []

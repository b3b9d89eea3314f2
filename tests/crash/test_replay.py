# SPDX-License-Identifier: Apache-2.0
"""Recorded operations, replayed at every prefix: what any file system may leave after a crash there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.crash.judge import Findings
from tests.crash.replay import Replay, crashes, read_record
from tests.crash.rig import Rig

PROGRAMS = (
    "store_blobs",
    "ingest_tree",
    "learn_program",
    "collect_garbage",
    "compact_catalogue",
    "ingest_tree",
    "repack_store",
    "rebuild_catalogue",
    "store_blobs",
    "repack_store",
    "collect_garbage",
    "ingest_tree",
)


def record(rig: Rig, programs: tuple[str, ...], **request: str) -> Path:
    """Run programs one after another on an empty folder; everything they did to it."""
    path = rig.project.parent / "record"
    rig.home.parent.mkdir()
    for program in programs:
        rig.edit()
        fault = {"root": str(rig.home.parent), "record": str(path)}
        outcome = rig.run(program, fault=fault, **request)
        assert outcome.finished, rig.server.complaints()
    return path


def judged(rig: Rig, replay: Replay, way: str, seed: int) -> Findings:
    """The store as that crash leaves it."""
    target = rig.project.parent / "after"
    shutil.rmtree(target, ignore_errors=True)
    replay.write_out(target, crashes(seed)[way])
    # These are copies: their stamps cannot be those that manifests name.
    return rig.server.judge(target / "home", replay.promised, stamps=False)


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.crash)])
def test_a_crash_after_any_operation_loses_nothing(rig: Rig, step: int) -> None:
    replay = Replay(rig.home.parent)
    for number, operation in enumerate(read_record(record(rig, PROGRAMS))):
        replay.apply(operation)
        if number % step:
            continue
        for way in crashes(number):
            findings = judged(rig, replay, way, number)
            assert findings.problems == [], f"{way}, after operation {number}: {operation[:4]}"
            rig.openings.append(findings)
    assert replay.promised.blobs
    assert rig.reopens_quickly()


@pytest.mark.parametrize(
    ("sabotage", "way"),
    [
        ("files are not flushed", "only what was flushed"),
        ("files are not flushed", "names without content"),
        ("folders are not flushed", "only what was flushed"),
        ("folders are not flushed", "content without names"),
        ("files are not renamed", "names without content"),
    ],
)
def test_a_store_without_that_care_is_found_out(rig: Rig, sabotage: str, way: str) -> None:
    """The rig notices when the store forgets a flush, so its silence means something."""
    replay = Replay(rig.home.parent)
    for operation in read_record(record(rig, ("store_blobs", "ingest_tree"), sabotage=sabotage)):
        replay.apply(operation)

    assert judged(rig, replay, way, 0).problems != []

# SPDX-License-Identifier: Apache-2.0
"""Processor counts and priorities."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stores import CHECKOUT
from velo_import.host import processes
from velo_import.host.processes import available_cores, calm_down


def groups(folder: Path, limits: dict[str, str]) -> Path:
    for name, text in limits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "cpu.max").write_text(text)
    return folder


def own_group(folder: Path, path: str) -> Path:
    (folder / "own").write_text(f"1:cpu:/old\n0::{path}\n")
    return folder / "own"


@pytest.mark.parametrize(
    ("limits", "quota"),
    [
        ({".": "max 100000\n"}, None),
        ({".": "150000 100000\n"}, 1.5),
        ({"a": "400000 100000\n", "a/b": "max 100000\n"}, 4.0),
        ({"a": "100000 100000\n", "a/b": "200000 100000\n"}, 1.0),
        ({"a/b": "garbage\n"}, None),
        ({}, None),
    ],
)
def test_tightest_container_quota_counts(tmp_path: Path, limits: dict[str, str], quota: float | None) -> None:
    folder = groups(tmp_path / "cgroup", limits)

    assert processes._quota(folder, own_group(tmp_path, "/a/b")) == quota


def test_version_one_groups(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")

    assert processes._quota(tmp_path, tmp_path / "missing") == 0.5


def test_there_is_always_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_quota", lambda: 0.1)

    assert available_cores() == 1


def test_cores_are_those_we_may_use() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_calm_process_is_nice_and_limited() -> None:
    assert callable(calm_down)
    code = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); import os, resource\n"
        "from velo_import.host.processes import calm_down\n"
        "calm_down(cpu_seconds=7)\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0), resource.getrlimit(resource.RLIMIT_CPU)[0])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.split()[0] == "19"
    assert int(answer.stdout.split()[1]) in (7, 8)

# SPDX-License-Identifier: Apache-2.0
"""The benchmark against everybody: who fails has no figure, and the page prints every cell."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench import peerchart
from bench.interpreters import Interpreter, probe
from bench.measure import BenchmarkFault
from bench.peers import Peer, Unavailable, Workshop
from bench.programs import STDLIB_PROGRAM, write_program

pytest.importorskip("pyperf", reason="the extra `bench` is not installed")

from bench.everybody import Series


def interpreter() -> Interpreter:
    found = probe(sys.executable)
    assert found is not None
    return found


def peer(name: str, *options: str, place: str = "/nowhere") -> Peer:
    return Peer(name, "a peer", Path(sys.executable), (Path(place),), options=options)


def test_who_fails_has_no_figure(tmp_path: Path) -> None:
    """Peers that run a program have times; one that does not is out of the mean, with the reason."""
    script = write_program(tmp_path, STDLIB_PROGRAM)
    scripts = {STDLIB_PROGRAM: script}
    series = Series(
        tmp_path,
        interpreter(),
        [peer("plain"), peer("isolated", "-I"), peer("bad", "-c", "raise SystemExit(3)")],
        1,
    )

    series.prepare(scripts)
    found = series.measure("warm", scripts, 2)

    each = found["programs"][STDLIB_PROGRAM]
    assert set(each["arms"]) == {"plain", "isolated"}
    assert each["arms"]["isolated"]["runs"] == 2
    assert each["failed"] == {"bad": "ends with 3:"}
    assert set(found["geometric_mean"]) == {"isolated"}


def test_where_packages_lie_may_differ(tmp_path: Path) -> None:
    """The same output but for the place of the packages is the same output; any other difference is not."""
    script = tmp_path / "main.py"
    script.write_text("import os\nprint(os.environ['PLACE'] + '/package/__init__.py')\n")
    plain, elsewhere, other = peer("plain", place="/one"), peer("moved", place="/two/deep"), peer("other")
    for each, place in ((plain, "/one"), (elsewhere, "/two/deep"), (other, "/three")):
        each.variables = {"PLACE": place}
    series = Series(tmp_path, interpreter(), [plain, elsewhere, other], 1)

    series.prepare({"program": script})

    assert set(series.failed) == {("other", "program")}


def test_velo_may_not_fail(tmp_path: Path) -> None:
    """A program that does not run the same under Velo ends the benchmark."""
    script = write_program(tmp_path, STDLIB_PROGRAM)
    series = Series(tmp_path, interpreter(), [peer("plain"), peer("velo", "-c", "print(1)")], 1)

    with pytest.raises(BenchmarkFault, match="under velo"):
        series.prepare({STDLIB_PROGRAM: script})


def test_every_peer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arms that the comparison promises; one that cannot be had says why."""
    workshop = Workshop.__new__(Workshop)
    names = [name for name, _ in workshop.peers()]
    monkeypatch.setattr("shutil.which", lambda name: None)

    assert names == [
        "plain",
        "unchecked",
        "tmpfs",
        "zip",
        "squashfs",
        "frozen-on",
        "frozen-off",
        "pycds",
        "oxidized",
        "velo-twin",
        "velo",
        "velo-pack",
    ]
    with pytest.raises(Unavailable, match="mksquashfs"):
        workshop.squashfs()


def record() -> dict[str, Any]:
    def arm(seconds: float) -> dict[str, Any]:
        names = ("minimum", "p10", "lower_quartile", "median", "p90")
        return {"runs": 3, **dict.fromkeys(names, seconds)}

    def ratio(value: float) -> dict[str, float]:
        return {"ratio": value, "low": value - 0.1, "high": value + 0.1}

    programs = {
        "one": {
            "arms": {"plain": arm(0.2), "velo": arm(0.1), "zip": arm(0.25)},
            "ratios": {"velo": ratio(2.0), "zip": ratio(0.8)},
            "failed": {},
        },
        "two": {
            "arms": {"plain": arm(0.2), "velo": arm(0.16), "tmpfs": arm(0.1)},
            "ratios": {"velo": ratio(1.25), "tmpfs": ratio(2.0)},
            "failed": {"zip": "ends with 1: FileNotFoundError"},
        },
    }
    means = {"velo": 1.58, "zip": 0.8, "tmpfs": 2.0}
    return {
        "kind": "everybody",
        "python": "3.12.1",
        "command": "python -m bench.everybody",
        "date": "2026-01-01",
        "machine": {"cpu_count": 2},
        "busy": "",
        "statistic": "lower quartile of 3 runs, seconds",
        "peers": {"zip": {"about": "a zip file"}, "oxidized": {"skipped": "no wheel"}},
        "cells": {"warm": {"conditions": "page cache warm", "programs": programs, "geometric_mean": means}},
    }


def test_the_page_prints_wins_losses_and_failures(tmp_path: Path) -> None:
    """Losses stand out, whoever is ahead of Velo is named, and so is what could not be measured."""
    (tmp_path / "results.json").write_text(json.dumps(record()))
    (tmp_path / "other.json").write_text('{"kind": "startup"}')

    peerchart.write(tmp_path, tmp_path)

    page = (tmp_path / "peers.md").read_text()
    assert "**0.80x (0.70-0.90) slower**" in page
    assert "| fails |" in page
    assert "**0.80x** (1 of 2)" in page
    assert "- two under zip: ends with 1: FileNotFoundError" in page
    assert "| oxidized | not measured: no wheel |" in page
    assert "Faster than the best of Velo's arms: two: tmpfs 2.00x, Velo 1.25x." in page
    picture = xml.etree.ElementTree.fromstring((tmp_path / "peers.svg").read_text())
    assert len(picture.findall(".//{*}circle")) == 4


def test_nothing_measured_nothing_written(tmp_path: Path) -> None:
    peerchart.write(tmp_path, tmp_path)

    assert list(tmp_path.iterdir()) == []

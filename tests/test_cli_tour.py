# SPDX-License-Identifier: Apache-2.0
"""`velo tour`: honest figures, also offline, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.running import LIMIT, VELO, Velo
from velo_import.cli.tour import show
from velo_import.cli.tour_environment import Place, installed, prepare
from velo_import.cli.tour_measure import Row, lower_quartile


def test_an_offline_tour_measures_what_is_there(velo: Velo, tmp_path: Path) -> None:
    """Without a registry: this Python's own modules, equal answers, served, and every temporary file
    removed.
    """
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    document = velo.command(
        "tour", "--offline", "--module", "json.tool", "--runs", "2", "--json", env={"TMPDIR": str(scratch)}
    ).json

    assert (document["source"], document["runs"]) == ("installed", 2)
    assert [(row["program"], row["cell"]) for row in document["results"]] == [
        ("json.tool", "no .pyc"),
        ("json.tool", "with .pyc"),
    ]
    for row in document["results"]:
        assert row["equal"]
        assert row["served"] > 0
        assert len(row["plain_runs_ms"]) == len(row["velo_runs_ms"]) == 2
        assert row["ratio"] == pytest.approx(row["plain_ms"] / row["velo_ms"], rel=0.01)
    assert list(scratch.iterdir()) == []
    assert not velo.home.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_tour_that_is_stopped_leaves_nothing(velo: Velo, tmp_path: Path, number: signal.Signals) -> None:
    """It makes a store of its own, and an environment of hundreds of megabytes."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    tour = subprocess.Popen(
        [*VELO, "tour", "--offline", "--module", "json.tool", "--runs", "1000"],
        env=velo.velo_environment(TMPDIR=str(scratch)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Whoever runs these tests in the background may ignore it, and children inherit that.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    end = time.monotonic() + LIMIT
    while not list(scratch.glob("velo-tour-*/store")) and time.monotonic() < end:
        time.sleep(0.05)
    tour.send_signal(number)

    assert tour.wait(LIMIT) == 128 + number
    assert list(scratch.iterdir()) == []


def test_without_a_registry_the_tour_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine behind a wall still gets a tour, and the reason."""
    from velo_import.cli import tour_environment

    monkeypatch.setattr(tour_environment, "_installer", lambda python: ["false"])

    place = prepare(tmp_path, (), offline=False, say=lambda phase, done, total: None)

    assert place.source == "installed"
    assert place.reason.startswith("no registry answered")
    assert len(place.modules) >= 4


def test_what_cannot_be_imported_is_not_measured() -> None:
    """Names that this Python does not have are left out."""
    assert installed(("json", "no_such_module"), "").modules == ("json",)
    assert tempfile.gettempdir()


def test_nothing_to_import_is_an_error(velo: Velo) -> None:
    """With a hint."""
    result = velo.command("tour", "--offline", "--module", "no_such_module")

    assert result.code == 1
    assert result.stderr == "error: there is nothing to import here\nhint: name modules with --module\n"


def test_losses_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that got slower has a line of its own; so has one that answered differently."""
    rows = [
        Row("fast", "no .pyc", (300.0,), (100.0,), True, 10),
        Row("slow", "no .pyc", (100.0,), (125.0,), True, 10),
        Row("odd", "no .pyc", (100.0,), (50.0,), False, 10),
        Row("absent", "no .pyc", (100.0,), (100.0,), True, 0),
    ]
    show(Place("python", (), "installed", "asked to stay offline"), rows, 1, 12.0)
    text = capsys.readouterr().out

    assert "Slower: slow, no .pyc, by 25.0 ms." in text
    assert "0.80x" in text and "3.00x" in text
    assert "OUTPUT DIFFERS" in text and "not served" in text
    assert "`velo run` itself adds 12 ms" in text


@pytest.mark.parametrize("launcher", [-0.5, 0.0, 0.04])
def test_noise_is_not_printed_as_a_cost(capsys: pytest.CaptureFixture[str], launcher: float) -> None:
    """On a busy machine the difference of two quartiles may be below zero."""
    show(Place("python", (), "registry"), [], 1, launcher)

    assert "adds less than can be measured here to a start" in capsys.readouterr().out


def test_the_lower_quartile_ignores_disturbed_runs() -> None:
    """One bad run of the machine changes nothing; a single run stands for itself."""
    assert lower_quartile([10, 10, 10, 10, 900]) == 10
    assert lower_quartile([7.0]) == 7.0


@pytest.mark.slow
def test_a_tour_of_real_packages(velo: Velo) -> None:
    """What the README's first command runs, with a registry."""
    document = velo.command("tour", "--runs", "1", "--json", timeout=600).json

    assert all(row["equal"] for row in document["results"])

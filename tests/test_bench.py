# SPDX-License-Identifier: Apache-2.0
"""The benchmarks themselves: their statistics, what they put into each arm's environment, what they refuse,
and a tiny run from end to end. No figure of Velo is tested here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import arms, cells, chart, disk, figures, goals, pagecache, programs
from bench.measure import BenchmarkFault, run

ROOT = Path(__file__).resolve().parent.parent


def test_percentiles_lie_between_neighbours() -> None:
    assert figures.percentile([4.0, 1.0, 3.0, 2.0], 0.0) == 1.0
    assert figures.percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert figures.percentile([4.0, 1.0, 3.0, 2.0], 1.0) == 4.0
    assert figures.lower_quartile([7.0]) == 7.0
    with pytest.raises(ValueError, match="no values"):
        figures.percentile([], 0.5)


def test_geometric_mean_treats_gain_and_loss_alike() -> None:
    assert figures.geometric_mean([2.0, 0.5]) == pytest.approx(1.0)


def test_an_outlier_does_not_move_the_speedup() -> None:
    plain = [2.0] * 20 + [90.0]

    ratio = figures.speedup(plain, [1.0] * 21)

    assert ratio == {"ratio": 2.0, "low": 2.0, "high": 2.0}


def test_losses_are_named_slowest_first() -> None:
    ratios: dict[str, figures.Ratio] = {
        name: {"ratio": value, "low": value, "high": value}
        for name, value in (("a", 0.99), ("b", 1.0), ("c", 0.5))
    }

    assert figures.losses(ratios) == ["c", "a"]


def test_no_arm_inherits_what_distorts_a_start() -> None:
    inherited = {
        "PATH": "/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": "/somewhere",
        "NODE_OPTIONS": "--require x",
        "NODE_EXTRA_CA_CERTS": "/ca",
        "VELO_HOME": "/precious",
        "VELO_DISABLE": "1",
    }

    assert arms.clean_variables(inherited) == {"PATH": "/bin"}


def test_arms_differ_only_in_how_velo_comes_in(tmp_path: Path) -> None:
    fake = tmp_path / "velo.py"
    fake.write_text(
        "import json, os\nprint(json.dumps({'PYTHONPATH': 'injected:' + os.environ['PYTHONPATH']}))\n"
    )
    velo = arms.Velo((sys.executable, str(fake)), tmp_path / "home")
    cell = {"PYTHONPATH": "extra", "PATH": os.environ["PATH"]}

    found = arms.arms_of(cell, velo)

    assert dict(found["plain"].variables) == cell
    assert dict(found["velo"].variables) == {**cell, "PYTHONPATH": "injected:extra"}
    assert dict(found["run"].variables) == {**cell, "VELO_HOME": str(tmp_path / "home")}
    assert found["run"].command(Path("/python"), "x.py") == [
        sys.executable,
        str(fake),
        "run",
        "--",
        "/python",
        "x.py",
    ]
    assert found["plain"].command(Path("/python"), "x.py") == ["/python", "x.py"]


def test_the_floor_answers_from_what_it_noted(tmp_path: Path) -> None:
    """The first start notes and is plain; the second asks nobody, and prints the same."""
    script = tmp_path / "program" / "main.py"
    script.parent.mkdir()
    script.write_text(
        "import wave, sys\nprint(wave.__file__)\nprint(type(wave.__loader__), file=sys.stderr)\n"
    )
    arm = arms.floor_arm(arms.clean_variables(os.environ), tmp_path)

    first, second = (run(arm.command(Path(sys.executable), str(script)), arm.variables) for _ in range(2))

    assert first.stdout == second.stdout != b""
    assert b"SourceFileLoader" in first.stderr
    assert b"sitecustomize.Loader" in second.stderr


def test_the_profile_is_shown_beside_the_times(tmp_path: Path) -> None:
    counts = {
        arm: {"total": total, "unmarshal": 20, "collector": 10}
        for arm, total in (("plain", 200), ("velo", 190), ("floor", 160))
    }
    profile = {**record(1.1), "kind": "profile", "instructions": {"(empty)": counts, "boto3": counts}}
    (tmp_path / "startup.json").write_text(json.dumps(record(1.1)))
    (tmp_path / "profile.json").write_text(json.dumps(profile))

    assert chart.main(["--results", str(tmp_path), "--docs", str(tmp_path)]) == 0

    document = (tmp_path / "benchmarks.md").read_text()
    assert "| boto3 | 0.0 | 0.0 (1.053x) | 0.0 (1.250x) | 10.0% | 5.0% | 100.0% |" in document


def test_stats_of_several_processes_are_added_up(tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    stats.write_text(
        '{"runtime": "python", "served": 3, "deferred": 1, "errors": 0, "install_us": 250}\n'
        '{"runtime": "node", "served": 100, "errors": 7}\n'
        '{"runtime": "python", "served": 4, "errors": 0, "reasons": {}}\n'
    )

    assert arms.read_stats(stats)["served"] == 7
    assert arms.read_stats(stats)["errors"] == 0
    assert arms.read_fields(stats, "install_us") == [250.0]
    assert arms.read_stats(tmp_path / "none")["processes"] == 0


def test_cells_are_chosen_by_name() -> None:
    assert cells.expand("warm,slowfs,warm") == ["warm", "slowfs-0.3ms", "slowfs-1ms"]
    assert tuple(cells.expand("all")) == cells.NAMES
    with pytest.raises(BenchmarkFault, match="no cell called tepid"):
        cells.expand("tepid")


def test_programs_are_python_and_do_not_shadow_their_package(tmp_path: Path) -> None:
    assert len(programs.PROGRAMS) == 10
    for name in (*programs.PROGRAMS, *programs.EXTRA):
        script = programs.write_program(tmp_path, name)
        compile(script.read_text(), str(script), "exec")
        assert [entry.name for entry in script.parent.iterdir()] == ["main.py"]


def test_evicted_files_leave_the_page_cache(tmp_path: Path) -> None:
    """Skipped where the temporary folder lives in memory: there is no disk to go back to."""
    file = tmp_path / "blob"
    file.write_bytes(b"x" * (1 << 20))
    (tmp_path / "link").symlink_to(file)
    os.sync()
    paths = pagecache.files_below([tmp_path])
    assert paths == [file]
    assert pagecache.residency(paths).share == 1.0

    pagecache.evict(paths)

    if pagecache.residency(paths).share == 1.0:
        pytest.skip("this file system keeps its files in memory")
    assert pagecache.residency(paths).share < 0.1


def record(ratio: float) -> dict[str, Any]:
    """A start-up result with two programs, one of them a loss when `ratio` is below one."""
    spread = {
        "runs": 21,
        "minimum": 0.1,
        "p10": 0.1,
        "lower_quartile": 0.11,
        "median": 0.12,
        "p90": 0.2,
        "medians": {},
    }
    program = {
        "arms": {"plain": spread, "velo": spread},
        "ratios": {"velo": {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01}},
        "checks": {},
    }
    cell = {
        "conditions": "page cache warm",
        "programs": {"boto3": program, "<sympy>": program},
        "geometric_mean": {"velo": ratio},
        "losses": {"velo": ["boto3", "<sympy>"] if ratio < 1 else []},
    }
    return {
        "kind": "startup",
        "date": "2026-01-01 00:00 UTC",
        "command": "python -m bench.startup",
        "machine": {"cpu_count": 2},
        "python": "3.12.1",
        "statistic": "lower quartile of 21 runs, seconds",
        "cells": {"warm": cell, "cold": {"skipped": "no disk"}},
    }


def test_a_loss_is_shown_in_chart_and_document(tmp_path: Path) -> None:
    (tmp_path / "startup.json").write_text(json.dumps(record(0.97)))
    (tmp_path / "startup.plain.pyperf.json").write_text("not ours to read")

    assert chart.main(["--results", str(tmp_path), "--docs", str(tmp_path)]) == 0

    document, image = (tmp_path / "benchmarks.md").read_text(), (tmp_path / "benchmarks.svg").read_text()
    assert "| Python 3.12.1 | warm | velo | boto3 | 0.97x |" in document
    assert "**no**" in document
    assert "Skipped: no disk." in document
    assert 'class="loss"' in image
    assert "&lt;sympy&gt;" in image


def test_node_programs_are_judged_program_by_program(tmp_path: Path) -> None:
    """The worst of many modules decides, a rival is one to be ahead of, and what is slower is a loss."""
    took = {"lower_quartile": 0.1, "p10": 0.09, "p90": 0.12}

    def ratios(**each: float) -> dict[str, Any]:
        return {
            "arms": {"plain": took},
            "ratios": {name.replace("_", "-"): {"ratio": r, "low": r, "high": r} for name, r in each.items()},
        }

    programs = {
        "eslint": ratios(velo=1.8, node_cache=1.2),
        "babel": ratios(velo=1.45, node_cache=1.4),
        "tsc": ratios(velo=0.95, node_cache=0.9),
    }
    found = {
        "programs": programs,
        "geometric_mean": {"node-cache": 1.1, "velo": 1.4},
        "losses": {"velo": ["tsc"]},
    }
    told = record(1.1)
    node = {name: told[name] for name in ("date", "command", "machine")}
    node |= {"kind": "node", "cell": "warm", "statistic": "of 21", "nodes": {"22.1.0": found}}
    (tmp_path / "startup.json").write_text(json.dumps(told))
    (tmp_path / "node.json").write_text(json.dumps(node))

    assert chart.main(["--results", str(tmp_path), "--docs", str(tmp_path)]) == 0

    document = (tmp_path / "benchmarks.md").read_text()
    assert (
        "| Node 22.1.0, warm: each of many modules >= 1.5x | 1.45x (babel); mean 1.62x | **no** |" in document
    )
    assert "| Node 22.1.0, warm: each of many modules >= 1.3x of node-cache | 1.04x (babel);" in document
    assert "| Node 22.1.0, warm: tsc >= 1.00x of node-cache | 1.06x (tsc) | yes |" in document
    assert "| Node 22.1.0 | warm | velo | tsc | 0.95x |" in document
    assert "| babel | 100.0 (90.0-120.0) | 1.40x (1.40-1.40) | 1.45x (1.45-1.45) |" in document


def test_disk_is_counted_as_du_does(tmp_path: Path) -> None:
    """Shared inodes once, or as if nothing were shared; folders and links too."""
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "inner").mkdir(parents=True)
    (one / "inner" / "a").write_bytes(b"x" * 10_000)
    os.symlink("a", one / "inner" / "link")
    two.mkdir()
    os.link(one / "inner" / "a", two / "b")
    (two / "c").write_bytes(b"y" * 5_000)
    usage = disk.Usage()

    usage.add(one)
    usage.add(two)

    counted = subprocess.run(["du", "-s", "-B1", one, two], capture_output=True, text=True, check=True).stdout
    assert usage.shared["allocated"] == sum(int(line.split()[0]) for line in counted.splitlines())
    assert usage.copied["apparent"] - usage.shared["apparent"] == 10_000


def test_disk_is_shown_with_its_losses(tmp_path: Path) -> None:
    sizes = {"copy": 80, "hard links": 9, "copy, compiled": 120, "hard links, compiled": 50}
    sizes |= {"store, content only": 10, "store": 16, "hard links and store": 25}
    arms = {name: {"apparent": size, "allocated": size} for name, size in sizes.items()}
    found = {
        "environments": 10,
        "arms": arms,
        "ratios": disk.ratios(arms),
        "parts": {"packed content": {"files": 1, "blobs": 3, "content": 9, "stored": 4, "disk": 5}},
        "blobs": {"blobs": 3},
        "overhead": {"pack indexes": 1, "of_stored": 0.025, "of_content": 0.0111},
    }
    ingest = {**record(1.1), "kind": "ingest", "disk": found}
    for name, each in (("startup", record(1.1)), ("ingest", ingest)):
        (tmp_path / f"{name}.json").write_text(json.dumps(each))

    chart.main(["--results", str(tmp_path), "--docs", str(tmp_path)])

    document = (tmp_path / "benchmarks.md").read_text()
    assert "| uv hard links / store, no bytecode in either | 0.90x | loss |" in document
    assert "than uv copies, bytecode in the store only (Python 3.12.1) | 5.00x | **no** |" in document
    assert "than uv hard links, bytecode in both (Python 3.12.1) | 3.12x | yes |" in document
    assert "1.11% of content" in document


def test_the_chart_is_well_formed() -> None:
    from xml.etree import ElementTree

    image = ElementTree.fromstring(chart.chart(record(1.1)))

    assert image.tag.endswith("svg")
    assert 'class="loss"' not in chart.chart(record(1.1))


def test_a_goal_without_measurement_is_not_reached() -> None:
    hook = {
        "kind": "hook",
        "python": "3.12.1",
        "install_us": {"skipped": "unknown"},
        "system_calls": {"difference": 41, "own": 20},
        "peak_memory": {"boto3": {"ratio": 1.03}},
    }

    assert [verdict.reached for verdict in goals.verdicts([hook])] == [None, None, False, True, True, False]


def test_compiling_is_judged_apart_from_storing() -> None:
    def kind(seconds: float, bytecode: float) -> dict[str, Any]:
        times = {"first": seconds, "unchanged": 0.2}
        rates = {"first": round(17000 / seconds), "unchanged": 85000}
        phases = {"store": seconds - bytecode, "bytecode": bytecode}
        return {
            "files": 17000,
            "seconds": times,
            "files_per_second": rates,
            "summary_first": {"phases": phases},
        }

    ingest = {
        "kind": "ingest",
        "python": "3.12.1",
        "ingest": {"pyc": kind(3.0, 1.0), "bare": kind(12.0, 10.0)},
        "small": {
            "seconds": {"copy": 1.0, "first": 2.5, "unchanged": 0.1},
            "files_per_second": {"copy": 20000, "first": 8000, "unchanged": 200000},
        },
        "compileall": {"seconds": 9.0},
    }

    found = {verdict.goal.split(" >=")[0]: verdict.reached for verdict in goals.verdicts([ingest])}

    assert found == {
        "hashing, storing, indexing": True,
        "unchanged tree": False,
        "20,000 small files": False,
        "20,000 small files, unchanged": True,
        "20,000 small files <= 2x a copy that is not flushed (Python 3.12.1)": False,
        "compiling no slower than compileall -j 0 (Python 3.12.1)": False,
    }


def test_file_related_calls_are_counted_and_memory_is_not() -> None:
    pytest.importorskip("pyperf")
    from bench.hook import count_calls

    trace = (
        '12 openat(AT_FDCWD, "/x", O_RDONLY) = 3\n'
        "12 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3, 0) = 0x7f\n"
        "12 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f\n"
        "12 +++ exited with 0 +++\n"
    )

    assert count_calls(trace) == {"openat": 1, "mmap": 1}


def test_a_wait_is_put_down_to_the_file_that_was_read() -> None:
    """To the file whose pages were asked for since the last one, or that was looked at last; other sleeps do
    not count."""
    pytest.importorskip("pyperf")
    from bench.coldread import kind_of, reads_of, summary

    added = "filemap:mm_filemap_add_to_page_cache: dev 254:0 ino {} pfn=0x1 ofs=0 order={}"
    sleeps = "sched:sched_switch: prev_comm=x prev_pid=77 prev_state={} ==> next_comm=y"
    trace = [
        "77 10.000000: sched:sched_process_exec: filename=/bin/x pid=77 old_pid=77",
        "77 10.001000: " + added.format("1f", 0),
        "77 10.001100: " + added.format("1f", 2),
        "77 10.002000: " + sleeps.format("D"),
        "77 10.002000: PERF_RECORD_SWITCH OUT",
        "77 10.005000: PERF_RECORD_SWITCH IN",
        "77 10.006000: filemap:mm_filemap_fault: dev=254:0 ino=2a ofs=4096",
        "77 10.006000: " + sleeps.format("D"),
        "77 10.007000: PERF_RECORD_SWITCH IN",
        "77 10.007000: " + sleeps.format("S"),
        "77 10.009000: PERF_RECORD_SWITCH IN",
    ]

    first, second = reads_of(trace)

    assert (first.inode, first.pages, first.waits, round(first.wait_ms, 3)) == (0x1F, 5, 1, 3.0)
    assert (second.inode, second.pages, second.waits, round(second.wait_ms, 3)) == (0x2A, 0, 1, 1.0)
    found = summary(
        [first, second], {0x1F: "/home/packs/v1/ab/x.pack", 0x2A: "/lib/_json.cpython-312.so"}, "/home"
    )
    assert found["wait_ms"] == 4.0
    assert {kind: total["pages"] for kind, total in found["kinds"].items()} == {
        "store: packs": 5,
        "libraries": 0,
    }
    assert kind_of("/opt/bin/python3.12", "/home") == kind_of("/opt/lib/libpython3.12.so.1.0", "/home")


def run_startup(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable, "-m", "bench.startup", "--cells", "warm", "--programs", "stdlib", "--runs", "2",
            "--work", str(tmp_path / "work"), "--json", str(tmp_path / "out"), *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    return result


def test_plain_runs_are_kept_in_our_format_and_in_pyperfs(tmp_path: Path) -> None:
    pyperf = pytest.importorskip("pyperf")

    result = run_startup(tmp_path, "--plain-only")

    assert result["cells"]["warm"]["programs"]["stdlib"]["arms"]["plain"]["runs"] == 2
    suite = pyperf.BenchmarkSuite.load(str(tmp_path / "out.plain.pyperf.json"))
    assert suite.get_benchmark("warm/stdlib").get_nvalue() == 2
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


def test_all_arms_behave_alike_and_velo_serves(tmp_path: Path) -> None:
    pytest.importorskip("pyperf")
    if arms.find_velo(tmp_path / "home") is None:
        pytest.skip("velo does not run from here")

    result = run_startup(tmp_path)

    program = result["cells"]["warm"]["programs"]["stdlib"]
    assert set(program["arms"]) == {"plain", "velo", "run"}
    assert program["checks"]["served"] > 0
    assert program["checks"]["errors"] == 0

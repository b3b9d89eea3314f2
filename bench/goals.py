# SPDX-License-Identifier: Apache-2.0
"""What Velo has promised, as numbers, held against what was measured. Pure: records in, verdicts out.

A goal without a measurement says so; it never counts as reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from bench.figures import geometric_mean, times

_SLOW_PROGRAMS = ("boto3", "django", "sympy")


class Verdict(NamedTuple):
    goal: str
    measured: str
    reached: bool | None  # None: not measured


def verdicts(records: Iterable[Mapping[str, Any]]) -> list[Verdict]:
    """One verdict per goal and record that speaks to it."""
    found: list[Verdict] = []
    for record in records:
        judge = _JUDGES.get(record["kind"])
        language = f" (Python {record['python']})" if record.get("python") else ""
        found += [each._replace(goal=each.goal + language) for each in (judge(record) if judge else ())]
    return found


# For each cell: geometric mean and least of all programs; what the road had to reach, then what it grew to.
_STARTUP = {
    "nopyc": ((3.0, 2.2), (4.0, 0.0)),
    "warm": ((1.08, 1.0), (1.4, 1.05)),
    "cold": ((1.2, 0.0), (1.5, 0.0)),
    "path50": ((1.3, 0.0), (3.0, 0.0)),
}


def _startup(record: Mapping[str, Any]) -> Iterator[Verdict]:
    cells = {
        name: cell for name, cell in record["cells"].items() if cell.get("geometric_mean", {}).get("velo")
    }
    for name, goals in _STARTUP.items():
        if name not in cells:
            continue
        means = cells[name]["geometric_mean"]
        mean = means["velo"]
        measured = f"{times(mean)}; floor {times(means['floor'])}" if "floor" in means else times(mean)
        if "spared" in means:
            measured += f"; {times(means['spared'])} if the entries cost nothing"
        ratios = _ratios(cells[name])
        worst = min(ratios, key=lambda program: ratios[program])
        for mean_goal, each_goal in goals:
            yield Verdict(f"{name}: geometric mean >= {mean_goal:g}x", measured, mean >= mean_goal)
            if each_goal:
                text = f"{times(ratios[worst])} ({worst})"
                yield Verdict(f"{name}: no program below {each_goal:.2f}x", text, ratios[worst] >= each_goal)
    if "slowfs-1ms" in cells:
        ratios = _ratios(cells["slowfs-1ms"])
        for program in _SLOW_PROGRAMS:
            if program in ratios:
                arms = cells["slowfs-1ms"]["programs"][program]["arms"]
                most = arms["plain"]["lower_quartile"] / arms["velo"]["medians"]["cpu"]
                measured = f"{times(ratios[program])}; {times(most)} if nothing were waited for"
                for goal in (4, 10):
                    yield Verdict(f"slowfs-1ms: {program} >= {goal}x", measured, ratios[program] >= goal)
                # On a local disk nothing is waited for; the processor's time is what a start takes there.
                goal_text = f"slowfs-1ms: {program} within 1.3x of a local disk"
                yield _at_most(goal_text, round(most / ratios[program], 2), 1.3, "x")


# Programs of many modules, and one that is a single file.
_NODE_MANY = ("eslint", "aws-sdk", "client-s3", "babel", "webpack", "jest")
_NODE_SINGLE = "tsc"
# Against plain Node by its line; later lines are judged as the last.
_NODE_PLAIN = {20: 1.6, 22: 1.5, 24: 1.5}


def _node(record: Mapping[str, Any]) -> Iterator[Verdict]:
    for version, found in record["nodes"].items():
        programs = found["programs"]
        velo = {name: each["ratios"]["velo"]["ratio"] for name, each in programs.items()}
        name, line = f"Node {version}, {record['cell']}", int(version.partition(".")[0])
        if record["cell"] == "cold":
            yield _lowest(f"{name}: each program >= 1.5x", velo, 1.5)
            continue
        if record["cell"] == "slowfs-1ms":
            yield _lowest(f"{name}: each program >= 8x", velo, 8.0)
            continue
        many = {program: ratio for program, ratio in velo.items() if program in _NODE_MANY}
        if line in _NODE_PLAIN and many:
            goal = _NODE_PLAIN[line]
            yield _lowest(f"{name}: each of many modules >= {goal:g}x", many, goal)
        yield _lowest(f"{name}: none below 1.00x", velo, 1.0)
        for rival, wanted, single in (("node-cache", 1.3, 1.0), ("v8-compile-cache", 1.0, 1.0)):
            ahead = {
                program: ratio / programs[program]["ratios"][rival]["ratio"]
                for program, ratio in velo.items()
                if rival in programs[program]["ratios"]
            }
            of_many = {program: ratio for program, ratio in ahead.items() if program in _NODE_MANY}
            if of_many and (rival != "node-cache" or line in _NODE_PLAIN):
                goal = f"{name}: each of many modules >= {wanted:g}x of {rival}"
                yield _lowest(goal, of_many, wanted)
            if _NODE_SINGLE in ahead:
                yield _lowest(
                    f"{name}: {_NODE_SINGLE} >= {single:.2f}x of {rival}",
                    {_NODE_SINGLE: ahead[_NODE_SINGLE]},
                    single,
                )


def _lowest(goal: str, ratios: Mapping[str, float], wanted: float) -> Verdict:
    """Reached if the lowest is; with the geometric mean beside it where there are several."""
    worst = min(ratios, key=lambda program: ratios[program])
    text = f"{times(ratios[worst])} ({worst})"
    if len(ratios) > 1:
        text += f"; mean {times(geometric_mean(ratios.values()))}"
    return Verdict(goal, text, ratios[worst] >= wanted)


def _ratios(cell: Mapping[str, Any]) -> dict[str, float]:
    return {program: found["ratios"]["velo"]["ratio"] for program, found in cell["programs"].items()}


def _hook(record: Mapping[str, Any]) -> Iterator[Verdict]:
    install = record["install_us"].get("lower_quartile")
    for limit in (1500, 700):
        yield _at_most(f"hook install <= {limit} us", install, limit, "us")
    yield _at_most(
        "hook: at most 40 file-related system calls", record["system_calls"].get("difference"), 40, ""
    )
    yield _at_most("hook: at most 20 of them its own", record["system_calls"].get("own"), 20, "")
    for program, memory in record["peak_memory"].items():
        for most in (1.05, 1.02):
            yield _at_most(f"peak memory of {program} <= {most}x", memory["ratio"], most, "x")


def _ingest(record: Mapping[str, Any]) -> Iterator[Verdict]:
    if kinds := record.get("ingest"):
        rate = round(kinds["pyc"]["files"] / (kinds["pyc"]["seconds"]["first"] - _compiling(kinds["pyc"])))
        yield Verdict("hashing, storing, indexing >= 6,000 files/s", f"{rate:,} files/s", rate >= 6000)
        again = kinds["pyc"]["files_per_second"]["unchanged"]
        for wanted in (60_000, 200_000):
            yield Verdict(f"unchanged tree >= {wanted:,} files/s", f"{again:,} files/s", again >= wanted)
        if reference := record.get("compileall"):
            difference = kinds["bare"]["seconds"]["first"] - kinds["pyc"]["seconds"]["first"]
            extra = _compiling(kinds["bare"]) or difference
            text = f"{extra:.2f} s against {reference['seconds']:.2f} s"
            yield Verdict("compiling no slower than compileall -j 0", text, extra <= reference["seconds"])
    if small := record.get("small"):
        rate, seconds = small["files_per_second"]["first"], small["seconds"]
        yield Verdict("20,000 small files >= 10,000 files/s", f"{rate:,} files/s", rate >= 10_000)
        again = small["files_per_second"]["unchanged"]
        yield Verdict(
            "20,000 small files, unchanged >= 200,000 files/s", f"{again:,} files/s", again >= 200_000
        )
        ratio = round(seconds["first"] / seconds["copy"], 3)
        yield _at_most("20,000 small files <= 2x a copy that is not flushed", ratio, 2.0, "x")
    if used := record.get("disk"):
        for name, words, wanted in (
            ("copies", "than uv copies, no bytecode in either", 8.0),
            ("copies_compiled", "than uv copies, bytecode in both", 8.0),
            ("copies_against_bytecode", "than uv copies, bytecode in the store only", 8.0),
            ("links_compiled", "than uv hard links, bytecode in both", 1.5),
        ):
            ratio = used["ratios"][name]
            yield Verdict(f"store >= {wanted:g}x less disk {words}", f"{ratio:.2f}x", ratio >= wanted)
        share = used["overhead"]["of_content"]
        measured = f"{share:.2%}; {used['overhead']['of_stored']:.2%} of what is stored"
        yield Verdict("blob overhead <= 2 % of the content", measured, share <= 0.02)
    for kind, learned in record.get("learn", {}).items():
        modules = learned["modules_served_next_time"]
        name = f"learning {learned['program']} ({kind}, {modules} modules) <= 3 s of CPU"
        yield _at_most(name, learned["cpu_seconds"], 3.0, "s")


def _gc(record: Mapping[str, Any]) -> Iterator[Verdict]:
    yield _at_most(f"gc of {record['blobs']:,} blobs < 30 s", record["steps"]["remove"]["seconds"], 30.0, "s")


def _upkeep(record: Mapping[str, Any]) -> Iterator[Verdict]:
    for kind, steps in record["steps"].items():
        rate = round(record["entries"] / steps["rebuild"]["seconds"])
        goal = f"rebuild of {record['entries']:,} entries in {kind} packs >= 200,000 entries/s"
        yield Verdict(goal, f"{rate:,} entries/s", rate >= 200_000)
        if reopen := steps.get("reopen"):
            goal = f"open again after kill -9, {record['entries']:,} entries in {kind} packs < 50 ms"
            yield Verdict(goal, f"{reopen['seconds'] * 1e3:.0f} ms", reopen["seconds"] < 0.05)


def _store(record: Mapping[str, Any]) -> Iterator[Verdict]:
    size = record["size"]
    for name, words in (("velo index", "verified"), ("velo index, mapped", "mapped")):
        taken = record["microseconds"][f"read {name}"]["lower_quartile"]
        yield Verdict(
            f"get of a packed blob of {size:,} bytes, {words} < 10 us", f"{taken:.1f} us", taken < 10
        )
    in_c = record["nanoseconds_in_c"].get("lower_quartile")
    if in_c is not None:
        yield Verdict("find a blob from C < 300 ns", f"{in_c:.0f} ns", in_c < 300)


def _machinery(record: Mapping[str, Any]) -> Iterator[Verdict]:
    found = record["us"]["native"]
    floor = record["us"]["floor"]["lower_quartile"]
    measured = f"{found['lower_quartile']:.1f} us; floor {floor:.1f} us"
    yield Verdict("an empty module <= 7 us", measured, found["lower_quartile"] <= 7)
    ratio = found["ratio"]["ratio"]
    yield Verdict("an empty module >= 6x", times(ratio), ratio >= 6)


def _metadata(record: Mapping[str, Any]) -> Iterator[Verdict]:
    ratio = record["us"]["entry_points()"]["velo"]["ratio"]["ratio"]
    goal = f"entry_points() over {record['distributions']} distributions >= 5x"
    yield Verdict(goal, times(ratio), ratio >= 5)


_JUDGES = {
    "metadata": _metadata,
    "startup": _startup,
    "machinery": _machinery,
    "hook": _hook,
    "ingest": _ingest,
    "store": _store,
    "gc": _gc,
    "upkeep": _upkeep,
    "node": _node,
}


def _compiling(found: Mapping[str, Any]) -> float:
    """Seconds of an ingest that went into bytecode, where its summary tells; a goal of their own."""
    phases = found["summary_first"].get("phases", {})
    return float(sum(phases.get(name, 0.0) for name in ("bytecode", "compile")))


def _at_most(goal: str, value: float | None, limit: float, unit: str) -> Verdict:
    if value is None:
        return Verdict(goal, "not measured", None)
    return Verdict(goal, f"{value:g} {unit}".strip() if unit != "x" else f"{value:.3f}x", value <= limit)

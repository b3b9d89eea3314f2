# SPDX-License-Identifier: Apache-2.0
"""From bench/results/*.json to docs/benchmarks.md and docs/benchmarks.svg: `python -m bench.chart`.

Draws and writes; measures nothing and judges nothing (goals.py does). The SVG is written by hand, so that
the same results give the same bytes and no plotting library is needed.

The surprise: the chart has its own background and follows the viewer's colour scheme with a media query,
because an image in a README cannot know the colour of the page around it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.arms import CHECKOUT
from bench.disk import part_rows
from bench.disk import rows as disk_rows
from bench.figures import times
from bench.goals import verdicts
from bench.maintenance import HEAD, rows

_RESULTS = CHECKOUT / "bench" / "results"
_DOCS = CHECKOUT / "docs"

_TITLES = {
    "warm": "warm, with .pyc",
    "nopyc": "no .pyc",
    "cold": "cold page cache",
    "slowfs-0.3ms": "slow file system, 0.3 ms",
    "slowfs-1ms": "slow file system, 1 ms",
    "path50": "50 extra sys.path folders",
}
STYLE = """
  .back { fill: #ffffff; stroke: #d0d7de } .text { fill: #1f2328 } .soft { fill: #59636e }
  .grid { stroke: #d8dee4 } .one { stroke: #59636e } .gain { fill: #1a7f64 } .loss { fill: #bc4c00 }
  .run { stroke: #1f2328 } .span { stroke: #8c959f }
  text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12px }
  .title { font-size: 14px; font-weight: 600 } .head { font-size: 17px; font-weight: 600 }
  .end { text-anchor: end } .mid { text-anchor: middle }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117; stroke: #30363d } .text { fill: #e6edf3 } .soft { fill: #9198a1 }
    .grid { stroke: #262c34 } .one { stroke: #9198a1 } .gain { fill: #3fb68b } .loss { fill: #f0883e }
    .run { stroke: #e6edf3 } .span { stroke: #6e7681 }
  }
"""
_WIDTH, _COLUMNS, _MARGIN, _ROW = 900, 2, 20, 18
_LABELS, _VALUES = 84, 52


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.chart", description="Chart and tables from results."
    )
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder with the JSON files")
    parser.add_argument("--docs", type=Path, default=_DOCS, help="where benchmarks.svg and benchmarks.md go")
    options = parser.parse_args(arguments)
    records = load(options.results)
    charted = [record for record in records if record["kind"] == "startup" and _measured(record)]
    if not charted:
        sys.exit("error: no start-up results: run `python -m bench.startup --json bench/results/startup`")
    options.docs.mkdir(parents=True, exist_ok=True)
    (options.docs / "benchmarks.svg").write_text(chart(joined(charted)), encoding="utf-8")
    (options.docs / "benchmarks.md").write_text(document(records), encoding="utf-8")
    # The page about others uses our parts, so that both look alike.
    from bench.peerchart import write

    write(options.results, options.docs)
    shown = charted[0]["python"]
    print(f"{len(records)} results, {len(charted)} of them start-up; the chart shows Python {shown}")
    return 0


def load(folder: Path) -> list[dict[str, Any]]:
    """Our own result files, start-up first; pyperf's files beside them are left alone."""
    records = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
        if not path.name.endswith(".pyperf.json")
    ]
    kinds = ("startup", "coldread", "profile", "machinery", "metadata", "hook", "ingest", "store", "gc")
    kinds += ("upkeep",)
    order = {kind: number for number, kind in enumerate(kinds)}
    return sorted((r for r in records if r.get("kind") in order), key=lambda r: order[r["kind"]])


def joined(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first record with the cells of all others of its Python: cells may be measured one at a time."""
    alike = [record for record in records if record["python"] == records[0]["python"]]
    cells = {name: cell for record in alike for name, cell in record["cells"].items()}
    order = ["warm", "nopyc", "cold", "slowfs-0.3ms", "slowfs-1ms", "path50"]
    return {**records[0], "cells": {name: cells[name] for name in order if name in cells}}


def _measured(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The cells that hold an accelerated arm."""
    return {name: cell for name, cell in record["cells"].items() if cell.get("geometric_mean")}


# --- the chart ---------------------------------------------------------------------------------------------


def chart(record: Mapping[str, Any]) -> str:
    """One panel per cell, one bar per program, all on the same scale."""
    panels = _measured(record)
    longest = max(
        found["ratios"]["velo"]["high"] for cell in panels.values() for found in cell["programs"].values()
    )
    top = max(2.0, longest)
    rows = max(len(cell["programs"]) for cell in panels.values())
    panel_height = 62 + (rows + 1) * _ROW + 26
    panel_width = (_WIDTH - _MARGIN * (_COLUMNS + 1)) / _COLUMNS
    lines = (len(panels) + _COLUMNS - 1) // _COLUMNS
    height = 64 + lines * panel_height + 70
    machine = record["machine"]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(_summary(record))}</title><style>{STYLE}</style>',
        f'<rect class="back" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        text_at(
            _MARGIN,
            30,
            f"Start-up of Python {record['python']} programs: how many times faster with Velo",
            "head",
        ),
        text_at(
            _MARGIN, 50, "longer is better; 1x is plain CPython in the same run; orange is a loss", "soft"
        ),
    ]
    for number, (name, cell) in enumerate(panels.items()):
        x = _MARGIN + (number % _COLUMNS) * (panel_width + _MARGIN)
        y = 64 + (number // _COLUMNS) * panel_height
        out += _panel(name, cell, x, y, panel_width, top)
    facts = f"{machine.get('cpu_model_name', 'unknown processor')}, {machine.get('cpu_count', '?')} cores"
    statistic = record["statistic"].split(",")[0]
    notes = (
        f"bar: plain / velo, {statistic} per arm, interleaved; thin line: 90 % interval",
        "upright mark: the same with the launch of `velo run` included",
        f"{facts}, {machine.get('platform', '')}; {record['date']}; conditions: docs/benchmarks.md",
    )
    out += [text_at(_MARGIN, height - 54 + row * 17, note, "soft") for row, note in enumerate(notes)]
    out.append("</svg>\n")
    return "\n".join(out)


def _summary(record: Mapping[str, Any]) -> str:
    means = ", ".join(
        f"{_TITLES.get(n, n)} {times(c['geometric_mean']['velo'])}" for n, c in _measured(record).items()
    )
    return f"Start-up speed-up with Velo, geometric means: {means}"


def _panel(name: str, cell: Mapping[str, Any], x: float, y: float, width: float, top: float) -> Iterator[str]:
    left, right = x + _LABELS, x + width - _VALUES
    scale = (right - left) / top
    bars = {program: found["ratios"] for program, found in cell["programs"].items()}
    bottom = y + 40 + len(bars) * _ROW
    yield text_at(x, y + 20, _TITLES.get(name, name), "title")
    yield text_at(x + width, y + 20, f"geometric mean {times(cell['geometric_mean']['velo'])}", "end")
    step = 1 if top <= 6 else 2 if top <= 12 else 5
    for tick in [*range(0, int(top) + 1, step), *([1] if step > 1 else [])]:
        at = left + tick * scale
        kind = "one" if tick == 1 else "grid"
        yield f'<line class="{kind}" x1="{at:.1f}" y1="{y + 32}" x2="{at:.1f}" y2="{bottom + 4}"/>'
        yield text_at(at, bottom + 18, f"{tick}x", "soft mid")
    for row, (program, ratios) in enumerate(bars.items()):
        middle = y + 40 + row * _ROW + _ROW / 2
        velo = ratios["velo"]
        kind = "gain" if velo["ratio"] >= 1 else "loss"
        yield text_at(left - 8, middle + 4, program, "end")
        length = velo["ratio"] * scale
        place = f'x="{left:.1f}" y="{middle - 6:.1f}" width="{length:.1f}"'
        yield f'<rect class="{kind}" {place} height="12" rx="2"/>'
        low, high = left + velo["low"] * scale, left + velo["high"] * scale
        yield f'<line class="span" x1="{low:.1f}" y1="{middle:.1f}" x2="{high:.1f}" y2="{middle:.1f}"/>'
        if run := ratios.get("run"):
            at = left + run["ratio"] * scale
            yield (
                f'<line class="run" stroke-width="2" x1="{at:.1f}" y1="{middle - 7:.1f}" x2="{at:.1f}"'
                f' y2="{middle + 7:.1f}"/>'
            )
        yield text_at(x + width, middle + 4, f"{times(velo['ratio'])}", "end")
    yield text_at((left + right) / 2, bottom + 34, "times faster than plain", "soft mid")


def text_at(x: float, y: float, words: str, kind: str) -> str:
    kind = kind if "soft" in kind else f"text {kind}"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


# --- the document ------------------------------------------------------------------------------------------


def document(records: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        "# Benchmarks\n",
        "Made by `python -m bench.chart` from `bench/results/`; how: [bench/README.md](../bench/README.md)."
        " Cells are different questions and are never averaged together.\n",
        "![How many times faster each program starts](benchmarks.svg)\n",
        *_goals(records),
        *_all_losses(records),
    ]
    for record in records:
        writer = _WRITERS[record["kind"]]
        parts += [*heading(record), *writer(record)]
    return "\n".join(parts)


def _goals(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Goals\n"
    words = {True: "yes", False: "**no**", None: "not measured"}
    yield from table(
        ("goal", "measured", "reached"),
        [(v.goal, v.measured, words[v.reached]) for v in verdicts(records)],
        "lrl",
    )


def _all_losses(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Losses\n"
    rows = [
        (record["python"], name, arm, program, times(cell["programs"][program]["ratios"][arm]["ratio"]))
        for record in records
        if record["kind"] == "startup"
        for name, cell in record["cells"].items()
        for arm, programs in cell.get("losses", {}).items()
        if arm != "floor"
        for program in programs
    ]
    if rows:
        yield "Every program, cell and arm that was slower than plain Python:\n"
        yield from table(("Python", "cell", "arm", "program", "plain / arm"), rows, "llllr")
    else:
        yield "None: no program was slower than plain Python in any cell.\n"


def heading(record: Mapping[str, Any]) -> Iterator[str]:
    titles = {
        "startup": "Start-up",
        "coldread": "What a cold start reads",
        "profile": "Where a warm start goes",
        "machinery": "What the import system costs",
        "metadata": "What asking what is installed costs",
        "hook": "Hook",
        "ingest": "Ingest, learning and disk",
        "store": "Store",
        "gc": "Garbage collection",
        "upkeep": "Rebuild and verify",
        "everybody": "Everybody",
    }
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["machine"].items())
    yield f"## {titles[record['kind']]}, Python {record['python']}\n"
    yield f"- command: `{record['command']}`"
    yield f"- date: {record['date']}; {record.get('velo', 'velo absent')}"
    yield f"- machine: {machine}"
    yield f"- the machine was busy: {record['busy']}\n" if record.get("busy") else "- the machine was quiet\n"


def _coldread(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"{record['conditions'][0].upper()}{record['conditions'][1:]}."
    yield (
        "Waiting for the disk in milliseconds (how often); pages of 4 KiB read, by kind of file. `velo` reads"
        " ahead as soon as the hook is there, `run` before the interpreter is, `unaided` not at all. Waits"
        " are longer on a busy machine; their number, and that of pages, do not vary.\n"
    )
    for program, arms in record["programs"].items():
        kinds = sorted({kind for found in arms.values() for kind in found["kinds"]})
        rows = [
            [f"{program}: {kind}", *(_waited(found["kinds"].get(kind)) for found in arms.values())]
            for kind in kinds
        ]
        rows.append([f"**{program}**", *(f"**{found['wait_ms']:.1f}**" for found in arms.values())])
        yield from table(["files", *arms], rows, "l" + "r" * len(arms))
        yield ""
    program, arms = next(iter(record["programs"].items()))
    for arm in ("plain", "unaided"):
        yield f"\nAll that {program} reads in arm `{arm}`, in order; neighbours of a kind are one row.\n"
        groups: list[list[Any]] = []
        for each in arms[arm]["files"]:
            if (
                not groups
                or groups[-1][0]["kind"] != each["kind"]
                or each["kind"] not in (".pyc", "libraries")
            ):
                groups.append([])
            groups[-1].append(each)
        rows = [
            [
                f"{group[0]['at_ms']:.0f}",
                group[0]["file"] if len(group) == 1 else f"{len(group)} x {group[0]['kind']}",
                *(f"{sum(each[name] for each in group):g}" for name in ("pages", "waits")),
                f"{(ms := sum(each['wait_ms'] for each in group)):.2f}",
                f"{100 * ms / (arms[arm]['wait_ms'] or 1):.0f} %",
            ]
            for group in groups
        ]
        yield from table(("from ms", "file", "pages", "waits", "ms", "share"), rows, "rlrrrr")


def _waited(total: Mapping[str, Any] | None) -> str:
    return f"{total['wait_ms']:.1f} ({total['waits']}); {total['pages']}" if total else ""


def _startup(record: Mapping[str, Any]) -> Iterator[str]:
    yield f"Statistic: {record['statistic']}. Brackets: p10 to p90; for ratios the 90 % interval.\n"
    for name, cell in record["cells"].items():
        yield f"### {_TITLES.get(name, name)} (`{name}`)\n"
        if reason := cell.get("skipped"):
            yield f"Skipped: {reason}.\n"
            continue
        yield f"{cell['conditions'][0].upper()}{cell['conditions'][1:]}.\n"
        arms = list(cell["geometric_mean"])
        head = ["program", "plain ms", *(f"{arm} ms" for arm in arms), *(f"plain / {arm}" for arm in arms)]
        rows = [_program_row(program, found, arms) for program, found in cell["programs"].items()]
        means = [f"**{times(cell['geometric_mean'][arm])}**" for arm in arms]
        rows.append(["geometric mean", "", *("" for _ in arms), *means])
        yield from table(head, rows, "l" + "r" * (len(head) - 1))
        yield from _counts(cell)
        busy = [
            p for p, found in cell["programs"].items() if found["checks"].get("learned_during_timed_runs")
        ]
        if busy:
            yield f"Something was still learned during the timed runs of: {', '.join(busy)}.\n"


def _program_row(program: str, found: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    milliseconds = [span_of(found["arms"][arm], 1e3, 1) for arm in ("plain", *arms)]
    ratios = []
    for arm in arms:
        ratio = found["ratios"][arm]
        text = f"{times(ratio['ratio'])} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        ratios.append(f"**{text} slower**" if ratio["ratio"] < 1 else text)
    return [program, *milliseconds, *ratios]


def _counts(cell: Mapping[str, Any]) -> Iterator[str]:
    """Counts, not times: requests of the slow file system, and what stayed in a cache to be empty."""
    kinds = ("getattr", "open", "read", "opendir", "readdir", "readlink")
    programs = cell["programs"]
    first = next(iter(programs.values()))["arms"]
    if "getattr" in first["plain"]["medians"]:
        rows = [
            [name, *(f"{sum(found['arms'][arm]['medians'][k] for k in kinds):.0f}" for arm in first)]
            for name, found in programs.items()
        ]
        yield "Requests that reached the file system (median):\n"
        yield from table(["program", *first], rows, "l" + "r" * len(first))
    if "resident_pages" in first["plain"]["medians"]:
        medians = [arm["medians"] for found in programs.values() for arm in found["arms"].values()]
        worst = max(m["resident_pages"] / m["pages"] for m in medians)
        files = medians[0]["evicted_files"]
        yield f"Pages still in memory after dropping {files:.0f} files: at most {worst:.2%}.\n"


def _profile(record: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Millions of instructions in user space, counted by callgrind, of one warm start. Shares are of plain"
        " Python and overlap (the collector also runs while classes are made); *start and exit* is an empty"
        " program. *Floor* is a finder and loader that look into one dict, read one file and check nothing:"
        " what it saves is all that finding and reading can save; the rest is CPython at work.\n"
    )
    programs = record["instructions"]
    parts = [name for name in next(iter(programs.values()))["plain"] if name != "total"]
    empty = programs["(empty)"]["plain"]["total"]
    rows = []
    for name, arms in programs.items():
        total = arms["plain"]["total"]
        shares = [f"{arms['plain'][part] / total:.1%}" for part in parts]
        others = [
            f"{arms[arm]['total'] / 1e6:.1f} ({total / arms[arm]['total']:.3f}x)"
            for arm in arms
            if arm != "plain"
        ]
        rows.append([name, f"{total / 1e6:.1f}", *others, *shares, f"{empty / total:.1%}"])
    arms = [arm for arm in next(iter(programs.values())) if arm != "plain"]
    head = ["program", "plain", *(f"{arm} (plain / {arm})" for arm in arms), *parts, "start and exit"]
    yield from table(head, rows, "l" + "r" * (len(head) - 1))


def _hook(record: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for title, name in (
        ("install, as the hook reports it", "install_us"),
        ("opening the manifest", "manifest_open_us"),
    ):
        found = record[name]
        rows.append((title, found.get("skipped") or span_of(found.get("first", found), 1, 0) + " us"))
    rows.append(
        (
            "`python -c pass`, difference of processes",
            f"{record['process_difference_us']['difference']:.0f} us",
        )
    )
    calls = record["system_calls"]
    rows.append(("file-related system calls added", calls.get("skipped") or str(calls["difference"])))
    yield from table(("hook", "lower quartile (p10-p90)"), rows, "lr")
    if calls.get("by_name"):
        yield "By name: " + ", ".join(f"{name} {count:+}" for name, count in calls["by_name"].items()) + ".\n"
    memory = [
        (program, f"{found['plain'] / 1024:.1f}", f"{found['velo'] / 1024:.1f}", f"{found['ratio']:.3f}x")
        for program, found in record["peak_memory"].items()
    ]
    if memory:
        yield from table(("peak memory", "plain MiB", "velo MiB", "velo / plain"), memory, "lrrr")


def _ingest(record: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for kind, found in record.get("ingest", {}).items():
        label = {"pyc": "with .pyc", "bare": "without .pyc (all compiled)"}[kind]
        for name, seconds in found["seconds"].items():
            rate = found["files_per_second"][name]
            rows.append((f"ingest {label}, {name}", f"{seconds:.2f} s", f"{rate:,} files/s"))
    if found := record.get("compileall"):
        rows.append((f"compileall -j 0, {found['modules']:,} modules", f"{found['seconds']:.2f} s", ""))
    for kind, found in record.get("learn", {}).items():
        modules = f"{found['modules_served_next_time']} modules"
        label = {"pyc": "with .pyc", "bare": "without .pyc"}[kind]
        rows.append((f"learning {found['program']} {label}, CPU", f"{found['cpu_seconds']:.2f} s", modules))
    if rows:
        yield from table(("what", "figure", ""), rows, "lrr")
    if found := record.get("disk"):
        yield (
            f"{found['environments']} environments, each without one of the ten packages: allocated bytes of"
            " every file, link and folder, an inode with several names counted once. *Hard links* and *copy*"
            " are uv's, *compiled* with `--compile-bytecode`. The store holds bytecode (that of the standard"
            " library too) unless it says *content only*, and lies beside the environments.\n"
        )
        yield from table(("disk", "figure", ""), list(disk_rows(found)), "lrr")
        head = ("the store", "files", "blobs", "content", "stored", "on disk")
        yield from table(head, list(part_rows(found)), "lrrrrr")
        causes = {name: size for name, size in found["overhead"].items() if not name.startswith("of_")}
        total = sum(causes.values()) / found["blobs"]["blobs"]
        named = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in causes.items())
        yield f"Overhead of blobs in MB: {named}; {total:.0f} bytes for each blob.\n"


def _store(record: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{record['blobs']:,} blobs of {record['size']:,} bytes, page cache warm, for each blob."
        " `velo` has flushed what it stored, and hashes what it reads but for *mapped*; `files` and"
        " `diskcache` do neither. `files flushed` are 1,000: each of them waits for the disk.\n"
    )
    rows = [(name, span_of(found, 1, 2) + " us") for name, found in record["microseconds"].items()]
    in_c = record["nanoseconds_in_c"]
    rows.append(("find in the index, from C", in_c.get("skipped") or span_of(in_c, 1, 1) + " ns"))
    yield from table(("arm", "lower quartile (p10-p90)"), rows, "lr")


def _maintenance(record: Mapping[str, Any]) -> Iterator[str]:
    yield from table(HEAD, list(rows(record)), "lrrr")


_WRITERS = {
    "startup": _startup,
    "coldread": _coldread,
    "profile": _profile,
    "hook": _hook,
    "ingest": _ingest,
    "store": _store,
}


def _machinery(record: Mapping[str, Any]) -> Iterator[str]:
    """What the import system costs."""
    yield (
        f"{record['modules']:,} empty modules, microseconds of the processor for each. *Floor* has its specs"
        " and its code ready before the clock starts: what it takes are importlib's own locks and frames."
        " Instructions are those of the whole process, its end and the floor's preparations included.\n"
    )
    yield "| arm | us a module (p10-p90) | times faster | instructions a module |"
    yield "|---|---:|---:|---:|"
    for name, found in record["us"].items():
        span = f"{found['lower_quartile']:.1f} ({found['p10']:.1f}-{found['p90']:.1f})"
        counted = record.get("instructions", {}).get(name, "")
        yield f"| {name} | {span} | {found['ratio']['ratio']:.2f}x | {counted} |"
    yield ""


def _metadata(record: Mapping[str, Any]) -> Iterator[str]:
    """What asking what is installed costs."""
    yield (
        f"{record['distributions']} distributions; microseconds of the processor for one question, asked"
        " once by a fresh process through `importlib.metadata`, opening the table and asking the kernel about"
        " every file behind the answer included. Then milliseconds of whole starts of programs that look for"
        " plugins; *without* is Velo that leaves `importlib.metadata` alone.\n"
    )
    cells = []
    for kind, unit in (("us", "us"), ("starts_ms", "ms")):
        for question, arms in record.get(kind, {}).items():
            for arm, found in arms.items():
                faster = f"{found['ratio']['ratio']:.2f}x"
                cells.append([f"`{question}`", arm, f"{span_of(found, 1, 1)} {unit}", faster])
    yield from table(("question or start", "arm", "lower quartile (p10-p90)", "times faster"), cells, "llrr")


_WRITERS |= {"machinery": _machinery, "metadata": _metadata, "gc": _maintenance, "upkeep": _maintenance}


def span_of(found: Mapping[str, float], factor: float, digits: int) -> str:
    values = [f"{found[name] * factor:.{digits}f}" for name in ("lower_quartile", "p10", "p90")]
    return f"{values[0]} ({values[1]}-{values[2]})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---:" if side == "r" else "---" for side in align) + "|"
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


if __name__ == "__main__":
    sys.exit(main())

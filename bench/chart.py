# SPDX-License-Identifier: Apache-2.0
"""From bench/results/*.json to docs/benchmarks.md and docs/benchmarks.svg: `python -m bench.chart`.

Draws; the page is report.py's. Measures nothing and judges nothing (goals.py does). The SVG is written by
hand, so that the same results give the same bytes and no plotting library is needed.

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
from bench.figures import times
from bench.report import KINDS, TITLES, document

_RESULTS = CHECKOUT / "bench" / "results"
_DOCS = CHECKOUT / "docs"

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
    order = {kind: number for number, kind in enumerate(KINDS)}
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
        f"{TITLES.get(n, n)} {times(c['geometric_mean']['velo'])}" for n, c in _measured(record).items()
    )
    return f"Start-up speed-up with Velo, geometric means: {means}"


def _panel(name: str, cell: Mapping[str, Any], x: float, y: float, width: float, top: float) -> Iterator[str]:
    left, right = x + _LABELS, x + width - _VALUES
    scale = (right - left) / top
    bars = {program: found["ratios"] for program, found in cell["programs"].items()}
    bottom = y + 40 + len(bars) * _ROW
    yield text_at(x, y + 20, TITLES.get(name, name), "title")
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


if __name__ == "__main__":
    sys.exit(main())

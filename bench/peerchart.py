# SPDX-License-Identifier: Apache-2.0
"""From results of bench.everybody to docs/peers.md and docs/peers.svg; called by `python -m bench.chart`.

Every cell is printed, wins and losses, and what could not be measured with the reason. The surprise: a mean
covers the programs that a peer runs; how many those are stands beside it, because a peer that fails at the
hardest ones would otherwise look better for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from bench.chart import STYLE, text_at
from bench.figures import times
from bench.report import heading, span_of, table

_WIDTH, _ROW, _LABELS, _VALUES = 900, 24, 130, 150
_ADDED = """
  .ours { fill: #1a7f64 } .theirs { fill: #8c959f } .dot { fill: #1f2328; fill-opacity: .55 }
  @media (prefers-color-scheme: dark) {
    .ours { fill: #3fb68b } .theirs { fill: #6e7681 } .dot { fill: #e6edf3 }
  }
"""


def write(results: Path, docs: Path) -> None:
    """The page and its chart, if anything was measured; cells of one Python may come from several results."""
    paths = [path for path in sorted(results.glob("*.json")) if not path.name.endswith(".pyperf.json")]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    found = [record for record in records if record.get("kind") == "everybody"]
    if not found:
        return
    (docs / "peers.svg").write_text(chart(found[0]), encoding="utf-8")
    (docs / "peers.md").write_text(document(found), encoding="utf-8")


def chart(record: Mapping[str, Any]) -> str:
    """One panel for each cell: a bar for each peer's mean, a dot for each program."""
    cells = record["cells"]
    ratios = [
        ratio["ratio"]
        for cell in cells.values()
        for each in cell["programs"].values()
        for ratio in each["ratios"].values()
    ]
    top = max(2.0, *ratios)
    height = 80 + sum(70 + _ROW * len(cell["geometric_mean"]) for cell in cells.values())
    title = f"Start-up of Python {record['python']} programs: how many times faster than plain"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(title)}</title><style>{STYLE}{_ADDED}</style>',
        f'<rect class="back" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        text_at(20, 30, title, "head"),
        text_at(
            20, 50, "bar: geometric mean; dots: programs; right of the line is faster than plain", "soft"
        ),
    ]
    y = 64.0
    for name, cell in cells.items():
        out += _panel(name, cell, y, top)
        y += 70 + _ROW * len(cell["geometric_mean"])
    out.append("</svg>\n")
    return "\n".join(out)


def _panel(name: str, cell: Mapping[str, Any], y: float, top: float) -> Iterator[str]:
    left, right = 20.0 + _LABELS, _WIDTH - 20.0 - _VALUES
    scale = (right - left) / top
    means = sorted(cell["geometric_mean"].items(), key=lambda item: -item[1])
    bottom = y + 32 + len(means) * _ROW
    yield text_at(20, y + 20, f"{name}: {cell['conditions'].partition(',')[0].partition(' of ')[0]}", "title")
    step = 0.5 if top <= 4 else 1 if top <= 8 else 2
    for number in range(int(top / step) + 1):
        at = left + number * step * scale
        kind = "one" if number * step == 1 else "grid"
        yield f'<line class="{kind}" x1="{at:.1f}" y1="{y + 28}" x2="{at:.1f}" y2="{bottom}"/>'
        yield text_at(at, bottom + 16, f"{number * step:g}x", "soft mid")
    for row, (peer, mean) in enumerate(means):
        middle = y + 32 + row * _ROW + _ROW / 2
        kind = "ours" if peer.startswith("velo") else "theirs"
        yield text_at(left - 8, middle + 4, peer, "end")
        place = f'x="{left:.1f}" y="{middle - 7:.1f}" width="{mean * scale:.1f}"'
        yield f'<rect class="{kind}" {place} height="14" rx="2"/>'
        for each in cell["programs"].values():
            if ratio := each["ratios"].get(peer):
                at = left + ratio["ratio"] * scale
                yield f'<circle class="dot" cx="{at:.1f}" cy="{middle:.1f}" r="2.5"/>'
        yield text_at(_WIDTH - 20, middle + 4, f"{times(mean)}{_share(cell, peer)}", "end")


def _share(cell: Mapping[str, Any], peer: str) -> str:
    """` (7 of 10)`, or nothing where the peer runs every program."""
    runs = sum(peer in each["ratios"] for each in cell["programs"].values())
    return "" if runs == len(cell["programs"]) else f" ({runs} of {len(cell['programs'])})"


def document(records: list[Mapping[str, Any]]) -> str:
    """The page."""
    parts = [
        "# Velo and everybody else\n",
        "Made by `python -m bench.chart` from results of `python -m bench.everybody`; how:"
        " [bench/README.md](../bench/README.md). Programs, versions, harness and statistic are those of"
        " [benchmarks.md](benchmarks.md). Ratios are plain / peer in the same interleaved run: above 1 is"
        " faster.\n",
        "![How many times faster each peer starts programs](peers.svg)\n",
    ]
    for record in records:
        parts += [*heading("Everybody", record), *_everybody(record)]
    return "\n".join(parts)


def _everybody(record: Mapping[str, Any]) -> Iterator[str]:
    yield "| peer | what it is |"
    yield "|---|---|"
    for name, each in record["peers"].items():
        yield f"| {name} | {each['about'] if 'about' in each else 'not measured: ' + each['skipped']} |"
    yield ""
    yield f"Statistic: {record['statistic']}. Brackets: the 90 % interval.\n"
    for name, cell in record["cells"].items():
        peers = sorted(cell["geometric_mean"], key=lambda peer: -cell["geometric_mean"][peer])
        yield f"### {name}\n"
        yield f"{cell['conditions'][0].upper()}{cell['conditions'][1:]}.\n"
        rows = []
        for program, each in cell["programs"].items():
            rows.append(
                [program, span_of(each["arms"]["plain"], 1e3, 1), *(_ratio(each, peer) for peer in peers)]
            )
        means = [f"**{times(cell['geometric_mean'][peer])}**{_share(cell, peer)}" for peer in peers]
        rows.append(["geometric mean", "", *means])
        yield from table(["program", "plain ms", *peers], rows, "l" + "r" * (len(peers) + 1))
        yield from _verdict(cell, peers)
        if resident := cell.get("resident"):
            most = ", ".join(f"{peer} {100 * share:.1f} %" for peer, share in resident.items())
            yield f"Still in memory after dropping, at most: {most}.\n"
        failed = [
            f"- {program} under {peer}: {why}"
            for program, each in cell["programs"].items()
            for peer, why in each["failed"].items()
        ]
        if failed:
            yield "Programs that did not do what they do in plain Python:\n"
            yield from failed
            yield ""


def _ratio(each: Mapping[str, Any], peer: str) -> str:
    if peer not in each["ratios"]:
        return "fails"
    ratio = each["ratios"][peer]
    text = f"{times(ratio['ratio'])} ({ratio['low']:.2f}-{ratio['high']:.2f})"
    return f"**{text} slower**" if ratio["ratio"] < 1 else text


def _verdict(cell: Mapping[str, Any], peers: list[str]) -> Iterator[str]:
    """Where Velo is not first, program by program."""
    behind = []
    for program, each in cell["programs"].items():
        ours = max((each["ratios"][peer]["ratio"] for peer in peers if peer.startswith("velo")), default=0.0)
        for peer in peers:
            ratio = each["ratios"].get(peer, {"ratio": 0.0})["ratio"]
            if not peer.startswith("velo") and ratio > ours:
                behind.append(f"{program}: {peer} {times(ratio)}, Velo {times(ours)}")
    if behind:
        yield f"Faster than the best of Velo's arms: {'; '.join(behind)}.\n"
    else:
        yield "No peer was faster than the best of Velo's arms with any program.\n"

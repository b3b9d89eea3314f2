# SPDX-License-Identifier: Apache-2.0
"""What a sweep found: kept as JSON, package by package, and shown as the table of docs/sameness.md.

A second sweep of some packages replaces what is kept about them, so that an interrupted sweep can go on.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.running import CHECKOUT

from .run import COUNTERS, PackageResult
from .scan import Environment

FOLDER = Path(__file__).with_name("results")
MOST_KEPT = 20  # differences of one package
COLUMNS = (
    "revision",
    "arms",
    "distributions",
    "packages",
    "modules",
    "imported",
    "served",
    "from images",
    "explained",
    "noise",
    "unexplained",
)


def revision() -> str:
    """The commit that is swept; with a mark when files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def keep(path: Path, environment: Environment, results: Iterable[PackageResult]) -> dict[str, Any]:
    """Add to the file, or make it."""
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"results": {}}
    document["python"] = environment.version
    for each in results:
        entry = asdict(each)
        entry["revision"] = revision()
        entry["differences"] = len(each.unexplained)
        entry["unexplained"] = each.unexplained[:MOST_KEPT]
        document["results"][each.name] = entry
    swept = [environment.owners.get(name, []) for name in document["results"]]
    document["distributions"] = sorted({owner for owners in swept for owner in owners})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    return document


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """The sums over all packages."""
    results: Sequence[Mapping[str, Any]] = list(document["results"].values())
    explained: Counter[str] = Counter()
    for each in results:
        explained.update(each["explained"])
    arms = dict.fromkeys(arm for each in results for arm in each["arms"])
    return {
        "python": document["python"],
        "revisions": [
            revision for revision, _ in Counter(each["revision"] for each in results).most_common()
        ],
        "distributions": len(document["distributions"]),
        "packages": len(results),
        "modules": sum(each["modules"] for each in results),
        "imported": sum(each["imported"] for each in results),
        "arms": {
            arm: {name: sum(each["arms"].get(arm, {}).get(name, 0) for each in results) for name in COUNTERS}
            for arm in arms
        },
        "explained": dict(explained.most_common()),
        "noise": sum(each["noise"] for each in results),
        "unexplained": sum(each["differences"] for each in results),
        "problems": sum(len(each["problems"]) for each in results),
    }


def table(paths: Iterable[Path]) -> str:
    """A row for each Python, in Markdown."""
    heads = ("Python", *COLUMNS)
    rows = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for path in paths:
        found = summary(json.loads(path.read_text()))
        arms = found["arms"]
        arm = arms.get("learned") or arms.get("ingested") or arms["imaged"]
        cells = (
            f"{found['python']} ({path.stem})",
            ", ".join(each[:7] for each in found["revisions"]),
            ", ".join(arms),
            found["distributions"],
            found["packages"],
            f"{found['modules']:,}",
            f"{found['imported']:,}",
            f"{arm['own_served']:,} of {arm['sources']:,}",
            f"{arms['imaged']['images']:,}" if "imaged" in arms else "",
            f"{sum(found['explained'].values()):,}",
            f"{found['noise']:,}",
            f"{found['unexplained']:,}",
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)

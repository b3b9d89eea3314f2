# SPDX-License-Identifier: Apache-2.0
"""What an ingest did, in words or as JSON. Imports no click: what found nothing to do says it at once."""

from __future__ import annotations

import os

from . import render

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SHOWN = 5  # unreadable folders named one by one; --json has them all


def show_summary(
    summary: Mapping[str, Any], output: str | os.PathLike[str] | None, freed: int, as_json: bool
) -> None:
    """Print what `ingest` gave, as a mapping. `freed` is what the size limit of the store cost others."""
    if as_json:
        document = {**summary, "shared_bytes": _shared(summary)}
        render.data({**document, "output": str(output) if output else None, "freed": freed})
        return
    render.pairs(described(summary, output))
    if freed:
        render.note(f"the store was over its limit: {render.size(freed)} of what is least used were removed")
    for each in summary["unreadable"][:SHOWN]:
        render.note(f"warning: skipped {each['path']}: {each['reason']}")
    if len(summary["unreadable"]) > SHOWN:
        render.note(f"warning: skipped {len(summary['unreadable']) - SHOWN} more")
    if summary["secrets"]:
        names = [os.path.relpath(path, summary["target"]) for path in summary["secrets"]]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        render.note(
            f"left out, looks like a secret: {', '.join(names[:SHOWN])}{more}\n"
            "hint: `--include PATTERN` takes in what it matches"
        )
    for path in summary["changed_during"][:SHOWN]:
        render.note(f"warning: {path} changed meanwhile and is left to Python\nhint: run `velo ingest` again")


def _shared(summary: Mapping[str, Any]) -> int:
    """Bytes that the store had already, or that occur more than once."""
    return int(summary["bytes"] - summary["new_bytes"])


def described(summary: Mapping[str, Any], output: str | os.PathLike[str] | None) -> dict[str, str]:
    """The summary for people."""
    share = f"{100 * _shared(summary) / summary['bytes']:.0f} %" if summary["bytes"] else "-"
    sources = (
        (summary["compiled"], "compiled"),
        (summary["taken_over"], "taken over from .pyc"),
        (summary["reused"], "in the store already"),
        (summary["deferred"], "left to Python"),
    )
    detail = ", ".join(f"{count} {what}" for count, what in sources if count)
    excluded = f", {summary['excluded']} left out" if summary["excluded"] else ""
    return {
        "target": summary["target"],
        "files": f"{summary['files']} in {summary['folders']} folders{excluded}"
        + (", unchanged" if summary["unchanged"] else ""),
        "modules": f"{summary['modules']}" + (f" ({detail})" if detail else ""),
        "blobs": f"{summary['blobs']} ({summary['new_blobs']} new)",
        "content": f"{render.size(summary['bytes'])}, of which {share} was there or occurs twice",
        "time": f"{summary['seconds']:.2f} s, {summary['files_per_second']:.0f} files/s",
        "manifest": str(output or summary["manifest"]),
    }

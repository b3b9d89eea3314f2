# SPDX-License-Identifier: Apache-2.0
"""What an ingest learned of Node modules, in words or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ingest.node.learning import NodeSummary
from .. import render


def node_document(learned: Sequence[NodeSummary]) -> list[dict[str, Any]]:
    """For programs."""
    return [each._asdict() for each in learned]


def show_nodes(learned: Sequence[NodeSummary], freed: int, as_json: bool) -> None:
    """Print what was learned for each Node. `freed` is what the size limit of the store cost others."""
    if as_json:
        render.data({"nodes": node_document(learned), "freed": freed})
        return
    rows = [
        (
            each.build,
            each.prefix,
            str(each.files) + ("" if each.published else ", unchanged"),
            str(each.compiled),
            str(each.resolutions),
            str(sum(each.left.values())),
            f"{each.seconds:.2f} s",
        )
        for each in learned
    ]
    titles = ("node", "tree", "modules", "compiled", "requests", "left to Node", "time")
    render.table(titles, rows, right=(2, 3, 4, 5, 6))
    if freed:
        render.note(f"the store was over its limit: {render.size(freed)} of what is least used were removed")

# SPDX-License-Identifier: Apache-2.0
"""`velo explain` for a file that Node loads: every index that knows it, and whether that would serve it."""

from __future__ import annotations

import os
from typing import Any

from ...ingest.node.facts import why_not
from .. import render
from ..common import open_store
from .indexes import published_indexes


def explain_node(name: str, as_json: bool) -> int:
    """Print who would serve the file, for each Node that an index is for; the exit code is 0 if any would."""
    path = os.path.realpath(name)
    store = open_store()
    found: list[dict[str, Any]] = []
    for published in published_indexes(store):
        for file in published.said.files if published.said is not None else ():
            if file.path == path and published.said is not None:
                reason = why_not(published.said, file, store)
                found.append(
                    {
                        "module": path,
                        "served_by": None if reason else "velo",
                        "reason": reason or "nothing has changed since it was learned",
                        "node": published.said.build,
                        "subject": published.subject,
                        "layer": published.layer,
                        "index": str(published.path),
                    }
                )
    if as_json:
        render.data({"module": path, "found": found})
    elif found:
        rows = [
            (each["node"], each["subject"], each["layer"], each["served_by"] or "Node", each["reason"])
            for each in found
        ]
        render.table(("node", "started by", "layer", "served by", "because"), rows)
    else:
        render.note(
            f"no index knows {path}\nhint: run the program with `velo run`, or see `velo ingest --help`"
        )
    return 0 if any(each["served_by"] for each in found) else 1

# SPDX-License-Identifier: Apache-2.0
"""One or two traces as one HTML file: works offline, asks nobody for anything.

The surprise: names of modules come from programs and may hold anything, markup too. They travel as JSON in
which no `<` is left, the script writes them as text, and the page's own policy lets no other script run.
"""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..notes import IMPORT_FIELDS, IMPORT_TYPES, Import, Trace

TEXTS = [name for name in IMPORT_FIELDS if IMPORT_TYPES[name] is str]


def page(trace: Trace, chosen: int, against: Trace | None = None, compared: int = 0) -> str:
    """The page.

    Args:
        chosen: which process of the trace is shown first.
        against: another trace, to be shown beside it.
        compared: which process of that.
    """
    strings: dict[str, int] = {}
    traces = [_packed(each, strings) for each in (trace, against) if each is not None]
    document = {
        "fields": IMPORT_FIELDS,
        "texts": TEXTS,
        "traces": traces,
        "chosen": chosen,
        "compared": compared,
        "strings": list(strings),
    }
    parts = {
        "style": _asset("trace.css"),
        "script": _asset("trace.js"),
        "data": in_script(document),
    }
    parts["style_hash"], parts["script_hash"] = (_hash(parts[name]) for name in ("style", "script"))
    # By hand: both languages use braces. Split first, so that nothing is looked for in what was put in.
    pieces = _asset("trace.html").split("{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}")
        filled.append(parts[name] + rest)
    return "".join(filled)


def in_script(document: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(document, separators=(",", ":"))  # ASCII, so no line separators either
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _packed(trace: Trace, strings: dict[str, int]) -> dict[str, Any]:
    """The document with each import as a row; a string that many of them have is there once."""

    def row(each: Import) -> list[int]:
        values = [getattr(each, name) for name in IMPORT_FIELDS]
        return [
            strings.setdefault(value, len(strings)) if isinstance(value, str) else value for value in values
        ]

    document = trace.document()
    for process, packed in zip(trace.processes, document["processes"], strict=True):
        packed["imports"] = [row(each) for each in process.imports]
    return document


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the page's policy calls this text."""
    return b64encode(sha256(text.encode()).digest()).decode()

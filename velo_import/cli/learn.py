# SPDX-License-Identifier: Apache-2.0
"""`velo learn`: reads a program's notes from stdin and publishes what it imported. The hook starts it. With
`--node` it takes the notes that Node programs of one index have left; node_accel starts it.

Its surprise: it says nothing, because nobody is there to read it; how it went is written to
`run/last-learn.json`, where `velo doctor` finds it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config.settings import load
from ..errors import StoreLocked, UsageFault, VeloError
from ..format.node import is_index_name
from ..host.files import publish, remove_quietly
from ..host.processes import calm_down
from ..ingest.learning import LearnSummary, learn
from ..store.layout import Store
from .checks import LAST_LEARN
from .common import current_folder
from .gc import keep_within_limit

if TYPE_CHECKING:
    from ..ingest.node.learning import NodeSummary


@click.command("learn", hidden=True)
@click.option("--check", is_flag=True, help="Do nothing: everything that learning needs could be loaded.")
@click.option("--node", "index", metavar="INDEX", default="", help="Learn from Node programs of that index.")
def command(check: bool, index: str) -> int:
    """Publish what a program imported; called by the hook."""
    if check:
        return 0
    if index and not is_index_name(index):
        raise UsageFault(f"not the name of an index: {index}", hint="this command is not for people")
    settings = load(os.environ, current_folder())
    if not settings.learn_enabled:
        return 0
    os.chdir("/")  # A folder that somebody stands in cannot be unmounted.
    calm_down(cpu_seconds=settings.learn_cpu_seconds)
    notes = b"" if index else sys.stdin.buffer.read()
    record: dict[str, Any] = {"prefix": index or _prefix(notes)}
    code = 0
    try:
        store = Store.open(Path(settings.home), create=True)

        def tell(summary: LearnSummary | NodeSummary) -> None:
            record["summary"] = summary._asdict()
            record["prefix"] = summary.prefix
            _record(store.home, record)

        if index:
            from ..ingest.node.learning import learn_node

            learn_node(index, store, report=tell)
        else:
            learn(notes, store, report=tell)
        record["freed"] = keep_within_limit(store, settings)
        if not record["freed"]:
            return 0
    except StoreLocked as error:  # Another learner is at it: that is no news.
        return error.exit_code
    except VeloError as error:
        record |= {"error": error.message, "hint": error.hint}
        code = error.exit_code
    except Exception as error:
        record |= {"error": f"{type(error).__name__}: {error}", "hint": "this is a bug, please report it"}
        code = 1
    finally:
        if index:  # Also where the store could not be opened: programs wait for who made this mark.
            remove_quietly(Path(settings.home) / "run" / "node" / f"{index}.started")
    _record(Path(settings.home), record)
    return code


def _prefix(notes: bytes) -> str:
    for note in notes.split(b"\0"):
        if note.startswith(b"prefix="):
            return os.fsdecode(note[7:])
    return ""


def _record(home: Path, record: dict[str, Any]) -> None:
    text = json.dumps({"time": time.time(), **record}, default=str) + "\n"
    try:
        publish(home / "run" / LAST_LEARN, [text.encode()], mode=0o600)
    except (OSError, VeloError):  # A full disk: the next doctor sees that by itself.
        pass

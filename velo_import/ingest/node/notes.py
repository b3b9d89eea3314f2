# SPDX-License-Identifier: Apache-2.0
"""What Node programs leave when they end (FORMAT.md, section 14.4): finding it, reading it, joining it.

Knows names and texts; what is learned from them is learning.py's. The surprise: of two programs that
handed over a unit of one file the longer one counts, because it has more functions that were called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from velo_import.errors import VeloError
from velo_import.format.node import START, index_name
from velo_import.host.files import read_file, remove_quietly
from velo_import.store.layout import Store

VERSION = "velo-node-notes 1"
MOST_BYTES = 512 << 20


class Notes(NamedTuple):
    """What one program, or several of one index, would have liked to be served, and what they captured."""

    identity: str
    subject: str
    executable: str
    options: tuple[str, ...]
    marks: tuple[bytes, ...]
    mains: tuple[str, ...]
    files: tuple[str, ...]
    requests: tuple[tuple[str, str], ...]  # Requiring file, request.
    units: dict[str, bytes]  # By path of the file.


def names_of_notes(store: Store, name: str) -> list[str]:
    """The notes that programs of this index have left."""
    try:
        names = os.listdir(store.node_notes)
    except OSError:
        return []
    return sorted(each for each in names if each.startswith(f"{name}.") and each.endswith(".notes"))


def take_notes(store: Store, name: str) -> Notes | None:
    """All that programs of an index have left, as one; what is damaged is removed and says nothing."""
    taken: Notes | None = None
    for each in names_of_notes(store, name):
        path = store.node_notes / each
        try:
            notes = read_notes(path)
        except (OSError, VeloError, ValueError):
            continue
        finally:
            remove_quietly(path)
            remove_quietly(path.with_suffix(".units"))
        if index_name(START, notes.identity, notes.subject) == name:
            taken = notes if taken is None else joined(taken, notes)
    return taken


def joined(first: Notes, second: Notes) -> Notes:
    """Notes of two programs as those of one; they are of one index, so of one Node with the same options."""
    units = dict(first.units)
    for path, unit in second.units.items():
        if len(unit) > len(units.get(path, b"")):
            units[path] = unit
    return second._replace(
        marks=tuple(dict.fromkeys(first.marks + second.marks)),
        mains=tuple(dict.fromkeys(first.mains + second.mains)),
        files=tuple(dict.fromkeys(first.files + second.files)),
        requests=tuple(dict.fromkeys(first.requests + second.requests)),
        units=units,
    )


def read_notes(path: Path) -> Notes:
    """One program's notes.

    Raises:
        VeloError, ValueError, OSError: they are damaged, or of another version.
    """
    version, *records = read_file(path).decode("utf-8").rstrip("\0").split("\0")
    if version != VERSION:
        raise VeloError("these are not notes of a Node program that this Velo ran")
    said: dict[str, list[str]] = {}
    for record in records:
        name, _, value = record.partition("=")
        said.setdefault(name, []).append(value)
    missing = {"identity", "subject", "executable"} - said.keys()
    if missing:
        raise VeloError(f"the notes do not say {', '.join(sorted(missing))}")
    requests = (each.partition("\t") for each in said.get("request", ()))
    return Notes(
        said["identity"][0],
        said["subject"][0],
        said["executable"][0],
        tuple(said.get("option", ())),
        tuple(bytes.fromhex(mark) for mark in said.get("mark", ())),
        tuple(path for path in said.get("main", ()) if path.startswith("/")),
        tuple(path for path in said.get("file", ()) if path.startswith("/")),
        tuple((folder, request) for folder, _, request in requests if folder.startswith("/")),
        dict(_units(path.with_suffix(".units"), said.get("unit", []))),
    )


def _units(path: Path, records: list[str]) -> Iterator[tuple[str, bytes]]:
    if not records or path.stat().st_size > MOST_BYTES:
        return
    data = read_file(path)
    for record in records:
        offset, length, file = record.split(" ", 2)
        unit = data[int(offset) : int(offset) + int(length)]
        if len(unit) == int(length) and file.startswith("/"):
            yield file, unit

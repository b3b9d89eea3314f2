# SPDX-License-Identifier: Apache-2.0
"""What the hook writes down when a program has ended: reading it, and joining what several programs left.

Knows the form of the notes and where programs leave them while a learner is at work (FORMAT.md, section 2);
what is done with them is left to learning.py. The surprise: notes of other environments are never mixed in,
even when their file has our name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from velo_import.errors import VeloError
from velo_import.format.manifest import Build
from velo_import.host.files import publish, read_file, remove_quietly
from velo_import.store.layout import Store

VERSION = "velo-notes 1"
VAIN = Struct("<8sII")  # Mark of what was wanted, time in seconds, number of attempts.
MOST_VAIN = 256
MOST_ATTEMPTS = 64


class Start(NamedTuple):
    """How one program was started, and what it read: its modules' files in the order of import, and the
    ranges (offset, length) that it used of mapped files, in the order in which they were mapped.
    """

    folder: str
    words: tuple[str, ...]
    origins: tuple[str, ...]
    mapped: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


class Notes(NamedTuple):
    """What the hook wrote down when a program had ended."""

    key: str
    executable: str
    prefix: str
    base_prefix: str
    build: Build
    stdlib: tuple[str, ...]
    path: tuple[str, ...]
    modules: tuple[tuple[str, str], ...]  # Full name and the file it came from.
    marks: tuple[bytes, ...]  # SipHash of what each program would have liked to be served.
    remember: str = ""  # `on`: the program remembers; `again`: and what is kept did not fit it.
    inputs: tuple[bytes, ...] = ()  # What it asked for in vain (FORMAT.md, section 10).
    starts: tuple[Start, ...] = ()
    metadata: bool = False  # It asked what is installed, and what was learned of that did not fit.
    images: str = ""  # `on`: the program can use images of code; `again`: and what is kept did not fit it.


def parse_notes(data: bytes) -> Notes:
    """The notes as the hook wrote them: UTF-8 records, each ended by a NUL.

    Raises:
        VeloError: they are not notes of this version, or something is missing.
    """
    version, *records = data.decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
    hint = "notes are written by the hook; `velo learn` is not meant to be called by hand"
    if version != VERSION:
        raise VeloError("these are not notes of a program that this Velo ran", hint=hint)
    said: dict[str, list[str]] = {}
    for record in records:
        name, _, value = record.partition("=")
        said.setdefault(name, []).append(value)
    try:
        build = build_of(bytes.fromhex(said["identity"][0]))
        path = tuple(dict.fromkeys(_tidy(entry) for entry in said.get("path", ())))
        extensions = tuple(entry for entry in path if os.path.basename(entry) == "lib-dynload")
        modules = tuple(
            (name, origin)
            for name, _, origin in (note.partition("\t") for note in said.get("module", ()))
            if name and origin.startswith("/")
        )
        return Notes(
            said["key"][0],
            said["executable"][0],
            said["prefix"][0],
            said["base_prefix"][0],
            build,
            (*said.get("stdlib", ()), *extensions),
            path,
            modules,
            tuple(bytes.fromhex(mark) for mark in said.get("mark", ())),
            said.get("remember", [""])[0],
            tuple(bytes.fromhex(key) for key in said.get("input", ())),
            tuple(_starts(said, tuple(dict.fromkeys(origin for _, origin in modules)))),
            "metadata" in said,
            said.get("images", [""])[0],
        )
    except (KeyError, ValueError) as error:
        raise VeloError(f"the notes are damaged: {error}", hint=hint) from None


def _starts(said: dict[str, list[str]], origins: tuple[str, ...]) -> Iterator[Start]:
    if "word" in said:
        mapped = []
        for path, _, numbers in (note.partition("\t") for note in said.get("mapped", ())):
            ranges = list(map(int, numbers.split()))
            mapped.append((path, tuple(zip(ranges[::2], ranges[1::2], strict=True))))
        yield Start(said["folder"][0], tuple(said["word"]), origins, tuple(mapped))


def _tidy(entry: str) -> str:
    """A search-path entry as `FileFinder` keeps it is taken literally, except for a slash at its end."""
    return entry.rstrip("/") or "/"


def build_of(identity: bytes) -> Build:
    """The build that an identity describes (FORMAT.md, section 2)."""
    tag, optimisation, abiflags, *suffixes = identity.decode().split("\n")
    cache_tag, _, magic = tag.rpartition("-")
    return Build(cache_tag, bytes.fromhex(magic), int(optimisation), abiflags, tuple(suffixes))


def joined(first: Notes, others: list[Notes]) -> Notes:
    """Notes of several programs of one environment as those of one; those of another are dropped."""
    same = first.key, first.prefix, first.build
    alike = [first, *(other for other in others if (other.key, other.prefix, other.build) == same)]
    return first._replace(
        stdlib=tuple(dict.fromkeys(folder for notes in alike for folder in notes.stdlib)),
        path=tuple(dict.fromkeys(folder for notes in alike for folder in notes.path)),
        modules=tuple(dict.fromkeys(module for notes in alike for module in notes.modules)),
        marks=tuple(dict.fromkeys(mark for notes in alike for mark in notes.marks)),
        remember=min((notes.remember for notes in alike if notes.remember), default=""),
        inputs=tuple(dict.fromkeys(key for notes in alike for key in notes.inputs)),
        starts=tuple(dict.fromkeys(start for notes in alike for start in notes.starts)),
        metadata=any(notes.metadata for notes in alike),
        images=min((notes.images for notes in alike if notes.images), default=""),
    )


def names_of_left_notes(store: Store, key: str) -> list[str]:
    """The files that programs of this environment left for a learner at work."""
    try:
        names = os.listdir(store.run / "notes")
    except OSError:
        return []
    return sorted(name for name in names if name.rpartition(".")[0] == key)


def left_notes(store: Store, key: str) -> Iterator[Notes]:
    """Take the notes that programs left for a learner at work; damaged ones are removed and say nothing."""
    for name in names_of_left_notes(store, key):
        path = store.run / "notes" / name
        try:
            notes = parse_notes(read_file(path))
        except (OSError, VeloError):
            continue
        finally:
            remove_quietly(path)
        if notes.key == key:
            yield notes


def note_attempt(store: Store, key: str, marks: tuple[bytes, ...]) -> None:
    """Write down that learning began, before it does: it is in vain until `note_gain` says otherwise."""
    known = _read_vain(store, key)
    for mark in marks:
        _, attempts = known.pop(mark, (0, 0))
        known[mark] = int(time.time()), min(attempts + 1, MOST_ATTEMPTS)
    _write_vain(store, key, known)


def note_gain(store: Store, key: str, marks: tuple[bytes, ...]) -> None:
    """Learning was not in vain: the hook may ask for the same again at once."""
    known = _read_vain(store, key)
    _write_vain(store, key, {mark: record for mark, record in known.items() if mark not in marks})


def forget_attempts(store: Store, key: str) -> None:
    """Everything has been ingested: nothing that was in vain before needs to be so again."""
    remove_quietly(store.run / f"{key}.vain")


def _read_vain(store: Store, key: str) -> dict[bytes, tuple[int, int]]:
    try:
        data = read_file(store.run / f"{key}.vain")
    except OSError:
        return {}
    whole = data[: len(data) // VAIN.size * VAIN.size]
    return {mark: (when, attempts) for mark, when, attempts in VAIN.iter_unpack(whole)}


def _write_vain(store: Store, key: str, known: dict[bytes, tuple[int, int]]) -> None:
    newest = list(known.items())[-MOST_VAIN:]
    data = b"".join(VAIN.pack(mark, *record) for mark, record in newest)
    path = store.run / f"{key}.vain"
    if data:
        publish(path, [data], mode=0o600)
    else:
        remove_quietly(path)

# SPDX-License-Identifier: Apache-2.0
"""Remembering: what programs were seen to do at each start, done once by their interpreter and kept.

Knows which inputs are kept and for how long; the work itself is remember_worker.py's, in a process of the
target interpreter. The surprise: inputs that did not lead to anything are kept as well, so that no program
asks for them again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from struct import Struct

from velo_import.errors import StoreCorrupt, VeloError
from velo_import.format.manifest import Build
from velo_import.format.remembered import BASIS, MODULE, Table, decode_table, encode_table
from velo_import.host.files import read_file
from velo_import.store.layout import Store

from .publish import publish_manifest

SIZE = Struct("<I")
# A large application has 500 patterns and 900 texts. What is over the limit and was learned first goes.
MOST_INPUTS = 8192
MOST_BYTES = 8 << 20
PATIENCE_SECONDS = 60


def remembered_path(store: Store, key: str) -> Path:
    """Where the table of an environment is."""
    return store.manifest_folder(key) / "remembered.table"


def remember(store: Store, key: str, build: Build, executable: str, inputs: Iterable[bytes]) -> bool:
    """Add these inputs to the table of an environment; whether that changed it.

    Raises:
        VeloError: the interpreter cannot do the work.
        OSError: the store cannot be written.
    """
    path = remembered_path(store, key)
    identity = build.identity() + b"\0"
    try:
        old = decode_table(read_file(path))
    except (OSError, StoreCorrupt):
        old = Table(b"", {})
    inputs = list(dict.fromkeys(inputs))
    version, values = _worked(executable, build, [each for each in inputs if each not in old.values])
    if old.values and old.identity != identity + version:
        # Another interpreter in the same place: all of it is done again.
        inputs = list(dict.fromkeys([*(each for each in old.values if is_input(each)), *inputs]))
        version, values = _worked(executable, build, inputs)
        old = Table(identity + version, {})
    merged = {**{each: value for each, value in old.values.items() if each not in values}, **values}
    return publish_manifest(path, encode_table(Table(identity + version, newest(merged))))


def is_input(key: bytes) -> bool:
    """Whether a key is what a program asked for, and not what we know of the standard library."""
    return key[:1] not in (MODULE, BASIS)


def newest(values: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """As many of the youngest inputs as there is room for, and all that is no input."""
    count = size = 0
    kept = []
    for key, value in reversed(values.items()):
        count += is_input(key)
        size += len(key) + len(value)
        if not is_input(key) or (count <= MOST_INPUTS and size <= MOST_BYTES):
            kept.append((key, value))
    return dict(reversed(kept))


def _worked(executable: str, build: Build, inputs: list[bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    """The interpreter's `sys.version`, and the values of these inputs and of the standard library."""
    optimise = ["-" + "O" * build.optimisation] if build.optimisation else []
    worker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "remember_worker.py")
    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-B", *optimise, worker],
            input=b"".join(SIZE.pack(len(each)) + each for each in inputs),
            env={**os.environ, "VELO_DISABLE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
        version, *answers = split_answer(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise VeloError(
            f"{executable} could not do the work to be remembered: {error}",
            hint="run `velo doctor` in that environment",
        ) from error
    values = dict(zip(inputs, answers, strict=False))
    rest = answers[len(inputs) :]
    return version, {**values, **dict(zip(rest[0::2], rest[1::2], strict=True))}


def split_answer(data: bytes) -> list[bytes]:
    """The parts of what a worker writes: each behind its length.

    Raises:
        ValueError: the last part is not whole, or there is none.
    """
    parts = []
    at = 0
    while at < len(data):
        (size,) = SIZE.unpack(data[at : at + SIZE.size])
        at += SIZE.size
        parts.append(data[at : at + size])
        at += size
    if at != len(data) or not parts:
        raise ValueError("the answer is not whole")
    return parts

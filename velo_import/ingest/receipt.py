# SPDX-License-Identifier: Apache-2.0
"""Receipts: what an ingest saw and left behind, so that the next one knows in milliseconds that nothing has
changed (FORMAT.md, section 6).

Knows the file and what it is compared with; who looks, and what an ingest says, is apply.py's and the command
line's. Imports next to nothing, because it is loaded before everything else. The surprise: it watches the
store as closely as the tree. A pack that gc or repack took away makes the next ingest look for itself.
"""

from __future__ import annotations

import marshal
import os
import zlib

from blake3 import blake3

from velo_import import __version__
from velo_import.host.stamps import SIZE, stamps_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

MAGIC = b"VELOSEEN"
SUFFIX = ".seen"
VERSION = 2
_LEVEL = 3  # Names shrink to a sixth in 5 ms; more takes longer than it is worth.
# What is published by another Velo, or in another format, has to be made again. The last number is that of
# manifests, which would take longer to import than a whole look; a test compares.
MADE_BY = f"velo {__version__}, receipt {VERSION}, manifest 1"
_HEAD = len(MAGIC) + 8 + 32
# What counts of a stamp: everything; what kind of file it is; how long it is; which file it is.
WHOLE, KIND, LENGTH, INODE = "whole", "kind", "length", "inode"


class Receipt:
    """One receipt, read and whole, but not yet compared with anything."""

    def __init__(self, path: str, fields: dict[str, Any]) -> None:
        self.path = path
        self.said: bytes = fields["said"]  # What the interpreter answered.
        self.summary: dict[str, Any] = fields["summary"]
        self._watched: dict[str, bytes] = fields["watched"]
        self._threads: int = fields["threads"]
        self._digest: bytes = fields["digest"]

    def holds(self) -> bool:
        """Whether everything that it names is as it was."""
        return digest_of(self._watched, self._threads) == self._digest


def find(home: str, target: str, python: str, optimisation: int, patterns: object) -> Iterator[Receipt]:
    """What there is for this very ingest; more than one after its interpreter has been replaced."""
    folder = os.path.join(home, "manifests", "v1")
    name = name_of(target, python, optimisation)
    try:
        keys = os.listdir(folder)
    except OSError:
        return
    for key in keys:
        path = os.path.join(folder, key, name)
        try:
            fields = _read(path)
            if (fields["made_by"], fields["patterns"]) == (MADE_BY, patterns):
                yield Receipt(path, fields)
        except (OSError, EOFError, KeyError, TypeError, ValueError):
            continue


def encode(
    *,
    said: bytes,
    patterns: object,
    summary: dict[str, Any],
    watched: dict[str, bytes],
    digest: bytes,
    threads: int,
) -> bytes:
    """The bytes of a receipt. `watched` has NUL-ended paths by what counts of them, see host/stamps.py."""
    fields = {
        "made_by": MADE_BY,
        "said": said,
        "patterns": patterns,
        "summary": summary,
        "watched": watched,
        "digest": digest,
        "threads": threads,
    }
    body = zlib.compress(marshal.dumps(fields, 2), _LEVEL)
    return MAGIC + VERSION.to_bytes(8, "little") + blake3(body).digest() + body


def name_of(target: str, python: str, optimisation: int) -> str:
    """The file's name, in the folder of the environment."""
    asked = b"\0".join((os.fsencode(target), os.fsencode(python), b"%d" % optimisation))
    return blake3(asked).hexdigest(16) + SUFFIX


def digest_of(watched: dict[str, bytes], threads: int) -> bytes:
    """One digest for what counts of the stamps that all watched paths have now."""
    return joined({what: stamps_of(paths, threads) for what, paths in watched.items()})


def joined(stamps: dict[str, bytes]) -> bytes:
    """One digest for what counts of these stamps."""
    hasher = blake3()
    for what, found in sorted(stamps.items()):
        hasher.update(b"%s %d\0" % (what.encode(), len(found)))
        hasher.update(found if what == WHOLE else _part(found, what))
    return hasher.digest()


def _part(found: bytes, what: str) -> bytes:
    begin, end = {KIND: (32, 36), LENGTH: (0, 8), INODE: (24, 32)}[what]
    parts = [found[at + begin : at + end] for at in range(0, len(found), SIZE)]
    if what == KIND:
        return bytes(part[1] >> 4 for part in parts)  # of a mode, the bits above all permissions
    return b"".join(parts)


def paths_of(names: Iterable[bytes]) -> bytes:
    """Paths, or folders and the names below each, in the form in which they are watched."""
    return b"".join(name + b"\0" for name in names)


def _read(path: str) -> dict[str, Any]:
    with open(path, "rb", buffering=0) as file:
        data = file.readall()
    body = memoryview(data)[_HEAD:]
    if data[:16] != MAGIC + VERSION.to_bytes(8, "little") or data[16:_HEAD] != blake3(body).digest():
        raise ValueError("damaged, or of another version")
    try:
        fields = marshal.loads(zlib.decompress(body))
    except zlib.error as error:
        raise ValueError("damaged") from error
    if not isinstance(fields, dict):
        raise TypeError("no receipt")
    return fields


def drop_oldest(folder: str, most: int) -> None:
    """Keep no more than so many receipts of one environment."""
    with os.scandir(folder) as entries:
        found = sorted((each.stat().st_mtime_ns, each.path) for each in entries if each.name.endswith(SUFFIX))
    for _, path in found[: max(0, len(found) - most)]:
        os.unlink(path)

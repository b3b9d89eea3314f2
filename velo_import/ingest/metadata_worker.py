# SPDX-License-Identifier: Apache-2.0
"""Says what this interpreter's `importlib.metadata` finds in some folders; run as a script by it.

Reads the folders from stdin, each ended by NUL, and writes NUL-ended texts to stdout: first `sys.version`,
then for each folder that could be read `root`, its path, mtime, ctime, inode, whether it is to be left to
Python, and the number of its distributions; then those, as in FORMAT.md, section 12, with their stamps after
the version. The surprise: nothing is parsed here. Whatever Python's own classes answer is written down, and
what they fail to answer, or warn about, is left to them.
"""

import os
import sys
import time
import warnings
from importlib import metadata
from stat import S_ISREG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ANY_SIZE = (1 << 64) - 1
NOTHING = ("0", "0", "0", "0")
# An edit within the clock tick of the last one leaves the same times.
TICK_NS = 50_000_000
ATTEMPTS = 4
ATTEMPT_SECONDS = 0.1


class Refused(Exception):
    """This folder is one that Python has to look at itself."""


def stamp(path: str) -> "tuple[tuple[str, ...], int]":
    """Stamp of what is there as texts (a folder has any size), and its ctime."""
    status = os.stat(path)
    size = status.st_size if S_ISREG(status.st_mode) else ANY_SIZE
    texts = tuple(map(str, (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, size)))
    return texts, status.st_ctime_ns


def described(root: str, key: str, path: "Any", newest: "list[int]") -> "Iterator[str]":
    """One distribution. `newest` gets the ctime of all that was looked at.

    Raises:
        Refused: Python fails to answer, or would be asked in another way.
    """
    child = path.name
    place = f"{root.rstrip('/')}/{child}"
    found: Any = metadata.PathDistribution(path)
    if str(path) != place or not found._name_from_stem(child) or found._normalized_name != key:
        raise Refused
    name, version = "", ""
    known: tuple[str, ...] = NOTHING
    try:
        before, changed = stamp(f"{place}/METADATA")
        # Python looks for another file where this one is empty.
        if found.read_text("METADATA"):
            name, version = found.name, found.version
            if type(name) is type(version) is str and stamp(f"{place}/METADATA")[0] == before:
                known = before
                newest.append(changed)
            else:
                name = version = ""
    except Exception:
        name = version = ""
    source = f"{place}/entry_points.txt"
    try:
        beside, changed = stamp(source)
    except (FileNotFoundError, NotADirectoryError):
        source = place
        beside, changed = stamp(source)
        beside = (*beside[:3], str(ANY_SIZE))
    points = [(point.group, point.name, point.value) for point in found.entry_points]
    again, _ = stamp(source)
    if again[:3] != beside[:3]:
        raise Refused
    newest.append(changed)
    yield from (child, key, name, version, *known, *beside, str(len(points)))
    for point in points:
        yield from point


def folder(root: str) -> "list[str]":
    """What is in one folder; nothing if there is no such, or if it is being changed."""
    for _ in range(ATTEMPTS):
        began = time.time_ns()
        try:
            before, changed = stamp(root)
            os.listdir(root)
        except OSError:
            return []
        newest = [changed]
        texts: list[str] = []
        left, count = "0", 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                lookup = metadata.Lookup(metadata.FastPath(root))  # type: ignore[attr-defined]
                if lookup.eggs:
                    raise Refused
                for key, paths in lookup.infos.items():
                    for path in paths:
                        texts += described(root, key, path, newest)
                        count += 1
            if any("\0" in text for text in texts):
                raise Refused
        except Exception:
            left, count, texts = "1", 0, []
        if stamp(root)[0] == before and max(newest) + TICK_NS < began:
            return ["root", root, *before[:3], left, str(count), *texts]
        time.sleep(ATTEMPT_SECONDS)
    return []


def main() -> None:
    encoding = sys.getfilesystemencoding()
    roots = sys.stdin.buffer.read().decode(encoding, "surrogateescape").split("\0")[:-1]
    texts = [sys.version]
    for root in roots:
        texts += folder(root)
    data = "".join(f"{text}\0" for text in texts)
    sys.stdout.buffer.write(data.encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    main()

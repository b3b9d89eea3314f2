# SPDX-License-Identifier: Apache-2.0
"""Says what this interpreter's `importlib.metadata` finds in some folders; run as a script by it.

Reads the folders from stdin, each ended by NUL, and writes NUL-ended texts to stdout: first `sys.version`,
then for each folder that could be read `root`, its path, mtime, ctime, inode, whether it is to be left to
Python, and the number of its distributions; then those, as in FORMAT.md, section 12, with their stamps after
the version; and last, the number of its pages and those, as in section 12.1: letter, two stamps, number of
texts, texts. The surprise: nothing is parsed here. Whatever Python's own classes answer is written down, and
what they fail to answer, or warn about, is left to them.
"""

import csv
import email
import email.message
import os
import sys
import time
import warnings
from importlib import metadata
from stat import S_ISREG
from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    # Stamps of the files, their ctimes, and what they say.
    Described = tuple[list[tuple[str, ...]], list[int], list[str]]

ANY_SIZE = (1 << 64) - 1
NOTHING = ("0", "0", "0", "0")
# An edit within the clock tick of the last one leaves the same times.
TICK_NS = 50_000_000
ATTEMPTS = 4
ATTEMPT_SECONDS = 0.1
# Which names a row of RECORD gives depends on its suffix up to there.
BY_SUFFIX = sys.version_info < (3, 12)


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
            # Versions of the backport disagree about how lines are joined.
            is_plain = type(name) is type(version) is str and "\n" not in name + version
            if is_plain and stamp(f"{place}/METADATA")[0] == before:
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
    pages = list(contents(found, place, newest))
    yield str(len(pages))
    for page in pages:
        yield from page


def contents(found: "Any", place: str, newest: "list[int]") -> "Iterator[tuple[str, ...]]":
    """The pages of one distribution; none for what Python fails to read, or reads elsewhere."""
    listing, files = None, []
    for letter in "MFT":
        try:
            if letter == "M":
                stamps, times, texts = message(found, place)
            elif letter == "F":
                files = found.files
                stamps, times, texts = listing = rows(found, place, files)
            else:
                stamps, times, texts = tops(found, place, listing, files)
        except Exception:
            continue
        if not any("\0" in text for text in texts):
            newest += times
            yield (letter, *stamps[0], *(stamps[1] if stamps[1:] else NOTHING), str(len(texts)), *texts)


def message(found: "Any", place: str) -> "Described":
    """The stamp of METADATA, or of the folder without it and PKG-INFO, their ctimes, and what the e-mail
    parser makes of it.
    """
    names = ["METADATA"] if os.path.lexists(f"{place}/METADATA") else ["", "PKG-INFO"]
    sources = [f"{place}/{name}".rstrip("/") for name in names]
    before = [stamp(source) for source in sources]
    if (before[0][0][3] == str(ANY_SIZE)) == (len(names) == 1):
        raise Refused  # A folder in the file's place, or a file in the folder's.
    text = found.read_text(names[-1])
    if not text:
        raise Refused
    parsed = email.message_from_string(text)
    body, headers = vars(parsed)["_payload"], vars(parsed)["_headers"]
    if type(body) is not str:
        raise Refused
    again = email.message.Message()
    again.set_payload(body)
    vars(again)["_headers"] = list(headers)
    stock = found.metadata
    # Another kind of message, or a defect that was noticed, does not come back.
    if vars(again) != vars(parsed) or vars(type(stock)(again)) != vars(stock):
        raise Refused
    if [stamp(source) for source in sources] != before:
        raise Refused
    texts = [body, *(str(part) for header in headers for part in header)]
    return [each[0] for each in before], [each[1] for each in before], texts


def rows(found: "Any", place: str, files: "list[Any]") -> "Described":
    """The stamp of RECORD, its ctime, and its rows; `files` is what Python has just made of them."""
    before, changed = stamp(f"{place}/RECORD")
    text = found.read_text("RECORD")
    if not text:
        raise Refused
    texts: list[str] = []
    for name, *more in csv.reader(text.splitlines()):
        spec, size = (*more, "", "")[: max(2, len(more))]
        path = metadata.PackagePath(name)
        mark = "+" if found.locate_file(path).exists() else "-"
        texts += (mark + str(path), spec, str(int(size)) if size else "")
    stock = [(file, file.hash and vars(file.hash), file.size) for file in files]
    if stock not in (made_again(texts, "+-"), made_again(texts, "+")):
        raise Refused
    if stamp(f"{place}/RECORD")[0] != before:
        raise Refused
    return [before], [changed], texts


def made_again(texts: "list[str]", marks: str) -> "list[tuple[Any, ...]]":
    """The files that rows tell of: path, hash, size."""
    parts = iter(texts)
    return [
        (
            metadata.PackagePath(marked[1:]),
            vars(metadata.FileHash(spec)) if spec else None,
            int(size) if size else None,
        )
        for marked, spec, size in zip(parts, parts, parts)  # noqa: B905 # three by three
        if marked[0] in marks
    ]


def tops(found: "Any", place: str, listing: "Described | None", files: "list[Any]") -> "Described":
    """The stamps of what tells which modules there are, the ctimes, and the names or the rows that decide."""
    source = f"{place}/top_level.txt"
    is_there = os.path.lexists(source)
    if not is_there:
        source = place
    before, changed = stamp(source)
    if is_there == (before[3] == str(ANY_SIZE)):
        raise Refused
    stock: Any = metadata
    declared = stock._top_level_declared(found)
    if stamp(source)[0] != before:
        raise Refused
    if declared:
        return [before], [changed], [f"={name}" for name in declared]
    if listing is None:
        raise Refused
    stamps, times, texts = listing
    decide = list(deciding(texts[::3]))
    marks = "+-" if len(files) * 3 == len(texts) else "+"
    few = [metadata.PackagePath(marked[1:]) for marked in decide if marked[0] in marks]
    ours, theirs = (list(stock._top_level_inferred(SimpleNamespace(files=each))) for each in (few, files))
    if ours != theirs:
        raise Refused
    return [before, *stamps], [changed, *times], decide


def deciding(marked: "list[str]") -> "Iterator[str]":
    """Of the rows that give the same name, all up to the first that is there."""
    settled: set[str | tuple[str, str]] = set()
    for each in marked:
        path = metadata.PackagePath(each[1:])
        if not path.parts:
            raise Refused  # Some versions fail, others never look.
        is_nested = len(path.parts) > 1
        gives = (path.parts[0], path.suffix if BY_SUFFIX else "") if is_nested else str(path)
        if gives not in settled:
            yield each
            if each[0] == "+":
                settled.add(gives)


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

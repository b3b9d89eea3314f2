# SPDX-License-Identifier: Apache-2.0
"""Where a `require` leads, and what has to be so still for that: Node's own look-up, done once more, with
every question that it asks the file system written down as a fact.

Knows how CommonJS modules are found (relative, in `node_modules`, by `exports`); a package's `exports` and
`imports` are read by Node alone, of which the answer is given. The surprise: nothing is believed because it
was worked out here. An answer is kept only if it is Node's, so what this room does not understand is left out
and never wrong; what it has to get right are the questions.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from velo_import.format.node import ABSENT, NO_STAMP, SAME, UNCHANGED, Fact, Stamp

MODULES = "node_modules"
MANIFEST = "package.json"
MOST_LINKS = 40
LARGEST_MANIFEST = 1 << 22
_BARE = re.compile(r"((?:@[^/\\%]+/)?[^./\\%][^/\\%]*)(/.*)?", re.DOTALL)
_TRAILING = re.compile(r"(?:^|/)\.{0,2}$")


class Unclear(Exception):
    """Not to be answered from an index: it fails, warns, or is beyond what is understood here."""


class Found(NamedTuple):
    """What a walk along a path came to; `real` is empty if there is nothing."""

    real: str
    type: int

    @property
    def is_file(self) -> bool:
        # As Node has it: whatever is there and no folder.
        return bool(self.real) and not stat.S_ISDIR(self.type)

    @property
    def is_folder(self) -> bool:
        return bool(self.real) and stat.S_ISDIR(self.type)


NOTHING = Found("", 0)


class Questions:
    """What was asked of the file system, as facts; each is asked once, and kept as it was then.

    Facts of one answer are collected in a list that the caller gives; numbers are those in `facts`.
    """

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.newest = 0  # The youngest change that any answer relies on, in ns.
        self._numbers: dict[tuple[str, int], int] = {}
        self._asked: dict[str, os.stat_result | None] = {}
        self._packages: dict[str, dict[str, Any] | None] = {}
        self._links: dict[str, str] = {}

    def status(self, path: str) -> os.stat_result | None:
        """What `lstat` says; None if there is nothing."""
        if path not in self._asked:
            try:
                found = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                self._asked[path] = None
            except (OSError, ValueError) as error:
                raise Unclear(path) from error
            else:
                self._asked[path] = found
        return self._asked[path]

    def on_the_way(self, folder: str) -> int:
        """That a folder is this one still, and all above it; -1 for the topmost, which cannot change."""
        return self._fact(folder, SAME)

    def unchanged(self, path: str) -> int:
        return self._fact(path, UNCHANGED)

    def absent(self, path: str) -> int:
        return self._fact(path, ABSENT)

    def name_in(self, folder: str, name: str, is_last: bool, using: list[int]) -> os.stat_result | None:
        """What stands in a (real) folder under a name, and that this stays so."""
        path = os.path.join(folder, name)
        status = self.status(path)
        if status is not None and stat.S_ISDIR(status.st_mode) and not is_last:
            pass  # What is asked next cannot hold unless this is the folder still.
        elif status is not None and stat.S_ISLNK(status.st_mode):
            using.append(self.unchanged(path))
        elif is_settled(folder):
            using.append(self.unchanged(folder))
        else:
            using.append(self.absent(path) if status is None else self.on_the_way(path))
        return status

    def walk(self, path: str, using: list[int]) -> Found:
        """Follow a path to its end, links included."""
        links = 0
        real, status = "/", self.status("/")
        names = _names(path)
        while names:
            name = names.pop()
            if name == "..":  # At the beginning of what a link says.
                real = os.path.dirname(real)
                status = self.status(real)
                continue
            if status is None or not stat.S_ISDIR(status.st_mode):
                return NOTHING  # Something below a file.
            status = self.name_in(real, name, not names, using)
            if status is None:
                return NOTHING
            if stat.S_ISLNK(status.st_mode):
                links += 1
                target = self._link(os.path.join(real, name))
                inside = _names(target)
                if links > MOST_LINKS or ".." in inside[: -_leading(inside) or None]:
                    raise Unclear(path)
                names += inside
                real = "/" if target.startswith("/") else real
                status = self.status(real)
            else:
                real = os.path.join(real, name)
        if status is None:
            return NOTHING
        return Found(real, status.st_mode)

    def package(self, folder: str, using: list[int]) -> dict[str, Any] | None:
        """The `package.json` of a folder, which need not be a real one; None if it has none."""
        found = self.walk(os.path.join(folder, MANIFEST), using)
        if not found.is_file:
            if found.is_folder:
                raise Unclear(folder)
            return None
        using.append(self.unchanged(found.real))
        if found.real not in self._packages:
            self._packages[found.real] = _read_manifest(found.real)
        return self._packages[found.real]

    def scope(self, folder: str, using: list[int]) -> tuple[str, dict[str, Any]] | None:
        """The nearest `package.json` upward of a real folder: where it is, and what it says."""
        while True:
            if os.path.basename(folder) == MODULES:
                return None
            package = self.package(folder, using)
            if package is not None:
                return folder, package
            if folder == "/":
                return None
            folder = os.path.dirname(folder)

    def _link(self, path: str) -> str:
        if path not in self._links:
            try:
                self._links[path] = os.readlink(path)
            except OSError as error:
                raise Unclear(path) from error
        return self._links[path]

    def _fact(self, path: str, kind: int) -> int:
        if path == "/":
            return -1
        known = self._numbers.get((path, kind))
        if known is not None:
            return known
        above = self._fact(os.path.dirname(path), SAME)
        status = self.status(path)
        if status is None:
            if kind != ABSENT:
                raise Unclear(path)  # It has gone meanwhile.
            fact = Fact(path, ABSENT, above=above)
        else:
            stamp = stamp_of(status)
            if kind == UNCHANGED:
                self.newest = max(self.newest, stamp.ctime_ns)
                # The size of a folder is the file system's own affair.
                stamp = stamp._replace(size=0) if stat.S_ISDIR(status.st_mode) else stamp
            else:
                stamp = NO_STAMP._replace(ino=stamp.ino)
            fact = Fact(path, kind, status.st_mode >> 12, 0, stamp, above)
        self._numbers[path, kind] = len(self.facts)
        self.facts.append(fact)
        return len(self.facts) - 1


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)


def is_settled(folder: str) -> bool:
    """Whether only installers write to a folder: then its stamp says all about what is in it. A project's own
    folders change whenever somebody works there, so each name in them is asked for.
    """
    return f"/{MODULES}/" in f"{folder}/"


def _names(path: str) -> list[str]:
    """The names in a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _leading(names: list[str]) -> int:
    """How many steps upward a link begins with; its names have the last one first."""
    return next((at for at, name in enumerate(reversed(names)) if name != ".."), len(names))


def _read_manifest(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_MANIFEST + 1)
        found = json.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unclear(path) from error
    if len(data) > LARGEST_MANIFEST or not isinstance(found, dict):
        raise Unclear(path)
    return found


class Resolver:
    """Node's look-up of CommonJS modules, with given extensions."""

    def __init__(self, questions: Questions, extensions: Iterable[str]) -> None:
        self.questions = questions
        self.extensions = tuple(extensions)

    def resolve(self, folder: str, request: str, answer: str) -> tuple[int, ...]:
        """The facts by which `request` from a (real) folder leads to `answer`, which is what Node said.

        Raises:
            Unclear: it does not, or nobody here knows why it does.
        """
        using: list[int] = []
        if not request or "\0" in request:
            raise Unclear(request)
        if request.startswith("/") or _is_relative(request):
            found = self._at(os.path.join(folder, request), bool(_TRAILING.search(request)), using)
        elif request.startswith("#"):
            found = self._imported(folder, answer, using)
        else:
            found = self._itself(folder, request, answer, using) or self._installed(
                folder, request, answer, using
            )
        if found != answer:
            raise Unclear(request)
        return tuple(dict.fromkeys(each for each in using if each >= 0))

    def _at(self, path: str, is_folder: bool, using: list[int]) -> str:
        """A file, one with an extension, or what a folder stands for; empty if there is none."""
        path = os.path.normpath(path)
        found = self.questions.walk(path, using)
        if not is_folder:
            if found.is_file:
                return found.real
            with_extension = self._extended(path, using)
            if with_extension:
                return with_extension
        return self._folder(path, using) if found.is_folder else ""

    def _folder(self, folder: str, using: list[int]) -> str:
        package = self.questions.package(folder, using)
        main = package.get("main") if package is not None else None
        if not main:
            return self._extended(os.path.join(folder, "index"), using)
        if not isinstance(main, str):
            raise Unclear(folder)
        path = os.path.normpath(os.path.join(folder, main))
        found = self.questions.walk(path, using)
        if found.is_file:
            return found.real
        named = self._extended(path, using) or self._extended(os.path.join(path, "index"), using)
        if not named:
            raise Unclear(folder)  # Node warns that `main` leads nowhere.
        return named

    def _extended(self, path: str, using: list[int]) -> str:
        for extension in self.extensions:
            found = self.questions.walk(path + extension, using)
            if found.is_file:
                return found.real
        return ""

    def _itself(self, folder: str, request: str, answer: str, using: list[int]) -> str:
        """A package that requires itself by its own name."""
        scope = self.questions.scope(folder, using)
        if scope is None or scope[1].get("exports") is None:
            return ""
        name = scope[1].get("name")
        if not isinstance(name, str) or (request != name and not request.startswith(f"{name}/")):
            return ""
        return self._exported(scope[0], scope[1]["exports"], answer, using)

    def _imported(self, folder: str, answer: str, using: list[int]) -> str:
        """What a package calls by a name with `#`; only where that is in the package itself."""
        scope = self.questions.scope(folder, using)
        if scope is None:
            raise Unclear(folder)
        return self._exported(scope[0], scope[1].get("imports"), answer, using)

    def _installed(self, folder: str, request: str, answer: str, using: list[int]) -> str:
        bare = _BARE.fullmatch(request)
        for place in _module_folders(folder):
            if not self.questions.walk(place, using).is_folder:
                continue
            if bare:
                package_folder = os.path.join(place, bare[1])
                package = self.questions.package(package_folder, using)
                if package is not None and package.get("exports") is not None:
                    return self._exported(package_folder, package["exports"], answer, using)
            found = self._at(os.path.join(place, request), bool(_TRAILING.search(request)), using)
            if found:
                return found
        return ""

    def _exported(self, folder: str, exports: Any, answer: str, using: list[int]) -> str:
        """What a package exports, by Node's word: the answer has to be a file that `exports` names, and no
        link may stand on the way to it within the package, because which name led there is not known.
        """
        root = self.questions.walk(folder, using)
        if not root.is_folder or not answer.startswith(f"{root.real}/"):
            raise Unclear(folder)
        inside = f".{answer[len(root.real) :]}"
        targets = [each for each in _targets(exports) if each.startswith("./")]
        if not any(_may_lead(target, inside) for target in targets) or any(
            os.path.islink(os.path.join(root.real, target)) for target in targets
        ):
            raise Unclear(folder)
        found = self.questions.walk(answer, using)
        return found.real if found.is_file else ""


def _is_relative(request: str) -> bool:
    return request in (".", "..") or request.startswith(("./", "../"))


def _module_folders(folder: str) -> Iterator[str]:
    while True:
        if os.path.basename(folder) != MODULES:
            yield os.path.join(folder, MODULES)
        if folder == "/":
            return
        folder = os.path.dirname(folder)


def _targets(exports: Any) -> Iterator[str]:
    """Every path that `exports` or `imports` names, under whatever condition."""
    pending = [exports]
    while pending:
        each = pending.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            pending += each.values()
        elif isinstance(each, list):
            pending += each


def _may_lead(target: str, inside: str) -> bool:
    if target == inside:
        return True
    if "*" not in target:
        return False
    # Every star stands for the same text, which may hold slashes.
    first, *rest = map(re.escape, target.split("*"))
    pattern = first + "(.*)" + "".join(rest[:1]) + "".join(rf"\1{each}" for each in rest[1:])
    return re.fullmatch(pattern, inside, re.DOTALL) is not None

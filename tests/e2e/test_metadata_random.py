# SPDX-License-Identifier: Apache-2.0
"""What is installed, at random: folders full of nonsense, changed while programs run, are described by
`importlib.metadata` with Velo as without.

Each example fills two folders of a search path, has them learned, and asks two running interpreters, one of
them plain, the questions of test_metadata.py again and again while files come, go and change behind their
stamps; at last it is learned again, and two others are asked. The surprise: `velo run` has no part in it; a
hundred examples would wait for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.e2e.test_metadata import PROBE
from tests.support import asking
from tests.support.running import Velo
from velo_import.format.manifest import Build
from velo_import.ingest.metadata import contents_path, distributions_path, learn_distributions
from velo_import.store.layout import Store

KEY = "cpython-0-random"
EXAMPLES, MANY = 6, 150

BODIES = ("", "\n\ntext\n", "\n\nmany\n  lines \N{SNOWMAN}\r\nend", "\n--x\n\none\n--x--\n")
HEADS = (
    "Metadata-Version: 2.1",
    "Name: demo",
    "Name: Other.Pack",
    "name: twice",
    "Version: 1.0",
    "Version:",
    "Summary: about it",
    "Requires-Dist: third>1; extra == 'more'",
    "Requires-Dist: demo",
    "Provides-Extra: more",
    "Keywords: a b,c",
    "License: one\n        two\n          three",
    "Description: short\n        |long",
    "Content-Type: multipart/mixed; boundary=x",
    "nonsense",
    " indented",
    "From nobody",
    "Author: =?utf-8?q?caf=C3=A9?=",
    "Author: caf\N{LATIN SMALL LETTER E WITH ACUTE}",
)
ROWS = (
    "demo/__init__.py,sha256=abc=,12",
    "demo/__init__.py,,",
    "demo/data/x.txt,md5,",
    "demo.py,sha256=,0",
    "old.py",
    "_native.cpython-312-x86_64-linux-gnu.so,x,1_0",
    '"a,""b.py",x=y=z,3',
    "../../../bin/demo,,",
    "/etc/passwd,,",
    "__pycache__/demo.cpython-312.pyc,,",
    "demo//./__init__.py,,",
    "demo/,,",
    "link.py,,",
    "gone/a.py,,",
    "gone/b.py,,",
    ".,,",
    ",,",
    "",
    "a,b,c,d",
    "demo.py,,many",
    '"open',
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}.py,,",
)
POINTS = (
    "[one]",
    "[two]",
    "[]",
    "run = pack:main",
    "run=pack:other [x]",
    "no equals",
    "a=b=c",
    "# none",
    "",
    "=",
)
NAMES = (
    "demo-1.0",
    "demo-2.0",
    "Demo-0.9",
    "de.mo-1",
    "other_pack-2.0",
    "Other.Pack-2.1",
    "two__names-3",
    "old",
    "~emo-1",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}-1",
    "-1",
    "",
)
SUFFIXES = (".dist-info", ".dist-info", ".dist-info", ".egg-info", ".DIST-INFO")
INSIDE = ("demo/__init__.py", "demo/data/x.txt", "demo.py", "old.py", 'a,"b.py', "gone/b.py", "__pycache__/x")


class Write(NamedTuple):
    """Put a file in its place; `unnoticed` keeps its size and mtime, if it is there."""

    folder: int
    name: str
    content: bytes
    unnoticed: bool

    def do(self, folders: Sequence[Path]) -> None:
        path = folders[self.folder] / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat() if self.unnoticed and path.exists() else None
        if before is None:
            path.write_bytes(self.content)
            return
        path.write_bytes(self.content[: before.st_size].ljust(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class Remove(NamedTuple):
    folder: int
    name: str

    def do(self, folders: Sequence[Path]) -> None:
        path = folders[self.folder] / self.name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


class Move(NamedTuple):
    folder: int
    name: str
    target: str

    def do(self, folders: Sequence[Path]) -> None:
        path, target = folders[self.folder] / self.name, folders[self.folder] / self.target
        if path.is_dir() and not target.exists():
            path.rename(target)


class Link(NamedTuple):
    folder: int
    target: str

    def do(self, folders: Sequence[Path]) -> None:
        path = folders[self.folder] / "link.py"
        path.unlink(missing_ok=True)
        path.symlink_to(self.target)


Step = Write | Remove | Move | Link


def lines_of(parts: Sequence[str], most: int = 6) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(parts), max_size=most).map("\n".join)


texts = {
    "METADATA": st.builds("{}{}".format, lines_of(HEADS), st.sampled_from(BODIES)),
    "RECORD": lines_of(ROWS, 8),
    "entry_points.txt": lines_of(POINTS),
    "top_level.txt": st.sampled_from(["demo\n", "demo _more\n\nold", " \n", ""]),
    "requires.txt": st.sampled_from(["demo\n[more]\nthird>1\n", "[:python_version<'3']\nx", ""]),
    "SOURCES.txt": st.sampled_from(["demo.py\nsetup.py\n", ""]),
    "installed-files.txt": st.sampled_from(["../demo.py\n../gone/b.py\nPKG-INFO\n", ""]),
    "direct_url.json": st.sampled_from(['{"url": "file:///x"}', "{"]),
}
texts["PKG-INFO"] = texts["METADATA"]
infos = st.builds("{}{}".format, st.sampled_from(NAMES), st.sampled_from(SUFFIXES))
which = st.integers(0, 1)


@st.composite
def writes(draw: st.DrawFn) -> Write:
    """A file of a distribution, usually as it should be; seldom one that nobody can decode."""
    name = draw(st.sampled_from([*texts, "METADATA", "METADATA", "RECORD", "RECORD", "entry_points.txt"]))
    content = draw(texts[name]).encode()
    if draw(st.integers(0, 19)) == 0:
        content += draw(st.sampled_from([b"\xff", b"\0", b"\r"]))
    return Write(draw(which), f"{draw(infos)}/{name}", content, draw(st.booleans()))


def installs() -> st.SearchStrategy[list[Write]]:
    """A whole distribution."""

    def files(folder: int, info: str, metadata: str, record: str, points: str | None) -> list[Write]:
        given = {"METADATA": metadata, "RECORD": record} | (
            {} if points is None else {"entry_points.txt": points}
        )
        return [Write(folder, f"{info}/{name}", text.encode(), False) for name, text in given.items()]

    heads = texts["METADATA"].map(lambda text: f"Name: demo\nVersion: 3\n{text}")
    return st.builds(files, which, infos, heads, texts["RECORD"], st.none() | texts["entry_points.txt"])


modules = st.builds(Write, which, st.sampled_from(INSIDE), st.just(b""), st.just(False))
whole = st.builds("{}/{}".format, infos, st.sampled_from([*texts]))
steps: st.SearchStrategy[Step] = st.one_of(
    writes(),
    writes(),
    modules,
    st.builds(Remove, which, infos | whole | st.sampled_from([*INSIDE, "demo", "gone"])),
    st.builds(Move, which, infos, infos),
    st.builds(Link, which, st.sampled_from(["demo.py", "nowhere"])),
)
beginnings = st.builds(
    lambda installed, more: [*(step for each in installed for step in each), *more],
    st.lists(installs(), min_size=1, max_size=4),
    st.lists(writes() | modules, max_size=8),
)


class Asked:
    """A running interpreter that can be asked again and again."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.known = 0

    def ask(self) -> list[str]:
        """Every question with its answer; none may have been an error of the hook."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.rstrip("\n") == asking.END:
                break
            lines.append(line)
        else:
            raise AssertionError("it died")
        self.known, errors = map(int, lines.pop().split())
        assert not errors, "an error of the hook"
        return "".join(lines).split("\\n")


@contextmanager
def asked(command: list[str], environment: dict[str, str]) -> Iterator[Asked]:
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield Asked(process)


class Machine:
    """An interpreter, a store, and two folders of its search path."""

    def __init__(
        self, python: str, environment: dict[str, str], module: str, below: Path, extra: str
    ) -> None:
        self.python, self.environment = python, {**environment, "PYTHONHASHSEED": "0"}
        self.module, self.extra = module, extra
        self.folders = [below / "first" / "site", below / "second" / "site"]
        for folder in self.folders:
            folder.mkdir(parents=True)
        self.store = Store.open(below / "store", create=True)
        self.build = Build("random", b"0000", 0, "", (".py",))
        self.probe = below / "probe.py"
        self.probe.write_text(PROBE)

    def learn(self) -> None:
        path = [str(folder) for folder in self.folders]
        learn_distributions(self.store, KEY, self.build, self.python, path, ())
        assert contents_path(self.store, KEY).parent == distributions_path(self.store, KEY).parent

    def started(self, is_plain: bool) -> list[str]:
        table = "" if is_plain else str(distributions_path(self.store, KEY))
        folders = [self.extra] * bool(self.extra) + list(map(str, self.folders))
        words = [str(self.probe), self.module, table, self.build.identity().hex(), *folders]
        return [self.python, "-s", "-S", "-W", "always", asking.__file__, *words]


def check(machine: Machine, beginning: list[Step], rounds: list[list[Step]]) -> int:
    """Ask, change, ask; how often something was known."""
    for step in beginning:
        step.do(machine.folders)
    machine.learn()
    known = 0
    plainly, quickly = machine.started(True), machine.started(False)
    for asks in ([[], *rounds], [[]]):
        with asked(plainly, machine.environment) as plain, asked(quickly, machine.environment) as velo:
            for changes in asks:
                for step in changes:
                    step.do(machine.folders)
                note(f"after {changes}")
                assert velo.ask() == plain.ask()
            known += velo.known
        machine.learn()
    return known


def try_many(python: Path | str, environment: dict[str, str], module: str, extra: str, examples: int) -> None:
    """The same few examples each time, or many others."""
    total = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < MANY,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(beginnings, st.lists(st.lists(steps, min_size=1, max_size=3), min_size=1, max_size=3))
    def story(beginning: list[Step], rounds: list[list[Step]]) -> None:
        nonlocal total
        with tempfile.TemporaryDirectory(prefix="velo-random-") as below:
            machine = Machine(str(python), environment, module, Path(below), extra)
            total += check(machine, beginning, rounds)

    story()
    assert total > 20 * examples


@pytest.mark.core
def test_random_installations(python: Path, velo: Velo) -> None:
    """Whatever comes, goes and changes, every answer, warning and error is plain Python's."""
    try_many(python, velo.plain_environment(), "importlib.metadata", "", EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["importlib.metadata", "importlib_metadata"])
def test_many_random_installations(python: Path, velo: Velo, tmp_path: Path, module: str) -> None:
    """Other examples each time."""
    extra = backport_in(tmp_path, velo) if module == "importlib_metadata" else ""
    try_many(python, velo.plain_environment(), module, extra, MANY)


def test_random_installations_through_the_backport(python: Path, velo: Velo, tmp_path: Path) -> None:
    """The same, asked of `importlib_metadata`."""
    extra = backport_in(tmp_path, velo)
    try_many(python, velo.plain_environment(), "importlib_metadata", extra, EXAMPLES)


def backport_in(tmp_path: Path, velo: Velo) -> str:
    """A folder with the backport and what it needs, without their metadata."""
    packages = Path(pytest.importorskip("importlib_metadata").__file__ or "").parents[1]
    for name in ("importlib_metadata", "zipp", "lazy_importer"):
        if (packages / name).exists():
            shutil.copytree(packages / name, tmp_path / "backport" / name)
    extra = str(tmp_path / "backport")
    command = f"import sys; sys.path.append({extra!r}); import importlib_metadata"
    if velo.plain("-c", command).code:
        pytest.skip("it needs more than is installed here")
    return extra

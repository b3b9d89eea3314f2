# SPDX-License-Identifier: Apache-2.0
"""`velo ingest` of what has not changed: it says so without the command line, and never when it is not so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.tree import Tree
from velo_import.format.manifest import VERSION
from velo_import.ingest import receipt
from velo_import.store.gc import collect
from velo_import.store.gcplan import Wish
from velo_import.store.layout import Store

# Says on stderr whether the command line had to be loaded, or anything else that takes long.
VELO = """
import sys
before = set(sys.modules)
from velo_import.__main__ import main
code = main(sys.argv[1:])
sys.stdout.flush()
slow = {"click", "lmdb", "pathlib", "subprocess", "typing"} & (set(sys.modules) - before)
print("long" if slow else "short", file=sys.stderr)
sys.exit(code)
"""


class Said(NamedTuple):
    code: int
    out: str
    way: str


class Scene:
    """An environment with a package, a project, and a store that knows the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "store"
        self.environment = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.environment], check=True)
        (found,) = self.environment.glob("lib/python*/site-packages")
        self.packages = Tree(found).write({"pkg/__init__.py": "x = 1\n", "pkg/data.bin": b"d" * 300_000})
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("VELO")}
        self.variables |= {"VELO_HOME": str(self.home), "XDG_CONFIG_HOME": str(folder / "config")}

    def velo(self, *arguments: str, **more: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-c", VELO, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.variables, **more},
        )
        return Said(done.returncode, done.stdout, done.stderr.rpartition("\n")[0].rpartition("\n")[2])

    def ingest(self, *arguments: str, **more: str) -> tuple[dict[str, Any], str]:
        said = self.velo("ingest", str(self.environment), "--json", *arguments, **more)
        assert said.code == 0
        found: dict[str, Any] = json.loads(said.out)
        return found, said.way

    @property
    def store(self) -> Store:
        return Store.open(self.home)


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = Scene(tmp_path_factory.mktemp("unchanged"))
    assert scene.ingest()[1] == "long"
    return scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    assert scene.ingest()[1] == "long"
    return scene


def test_it_says_what_the_command_line_says(settled):
    short, way = settled.ingest()
    long, other = settled.ingest("--optimize", "0")
    changing = ("seconds", "files_per_second", "phases")

    assert (way, other) == ("short", "long")
    assert {key: value for key, value in short.items() if key not in changing} == {
        key: value for key, value in long.items() if key not in changing
    }
    assert list(short) == list(long) and short["unchanged"] and short["files"] > 500


def test_in_words_too(settled):
    short = settled.velo("ingest", "venv")
    long = settled.velo("ingest", "venv", "--optimize", "0")

    assert (short.way, long.way) == ("short", "long")
    assert short.out.split("time ")[0] == long.out.split("time ")[0]
    assert ", unchanged" in short.out


@pytest.mark.parametrize(
    "arguments",
    [("--force",), ("--exclude", "*.txt"), ("-o", "copy.velo"), ("--jobs", "1"), ("--python",), ("second",)],
)
def test_every_wish_that_it_does_not_know_is_the_command_lines(settled, arguments):
    assert settled.velo("ingest", "venv", *arguments).way == "long"


@pytest.mark.parametrize("variables", [{"VELO_READONLY": "1"}, {"VELO_HOME": "elsewhere"}])
def test_so_is_another_store_and_one_that_may_only_be_read(settled, variables):
    assert settled.velo("ingest", "venv", **variables).way == "long"


def test_and_a_configuration_file(scene):
    (scene.folder / "velo.toml").write_text('[store]\nmax_size = "1TB"\n')
    assert scene.ingest()[1] == "long"


def test_and_a_store_that_others_can_write(scene):
    scene.home.chmod(0o777)
    said = scene.velo("ingest", "venv")
    assert (said.way, said.code) == ("long", 1)


def test_an_interpreter_may_be_named_from_where_one_is(scene):
    """The one that is found without being named has the same path, and so the same receipt."""
    assert scene.ingest("--python", "venv/bin/python")[1] == "short"


CHANGES: dict[str, Callable[[Scene], object]] = {
    "an edit": lambda scene: (scene.packages / "pkg/__init__.py").write_text("x = 2\n"),
    "a file more": lambda scene: scene.packages.write({"pkg/more.py": ""}),
    "a file less": lambda scene: (scene.packages / "pkg/__init__.py").unlink(),
    "a folder more": lambda scene: (scene.packages / "pkg/below").mkdir(),
    "a path more": lambda scene: scene.packages.write({"more.pth": f"{scene.folder}\n"}),
    "no environment": lambda scene: (scene.environment / "pyvenv.cfg").unlink(),
    "no manifest": lambda scene: [path.unlink() for path in scene.home.rglob("base.velo")],
    "no catalogue": lambda scene: (scene.home / "meta.db/data.mdb").unlink(),
    "no packs": lambda scene: [path.unlink() for path in scene.home.rglob("*.pack")],
    "a touched pack": lambda scene: [os.utime(path) for path in scene.home.rglob("*.pack")][:1],
    "no loose blobs": lambda scene: [path.unlink() for path in scene.store.loose.rglob("*/*/*")],
    "no code of the hook": lambda scene: [path.unlink() for path in scene.home.rglob("*.code")],
    "a later store": lambda scene: (scene.home / "VERSION").write_text("1 2\n"),
    "a damaged receipt": lambda scene: damage(next(scene.home.rglob("*.seen"))),
    "an empty receipt": lambda scene: damage(next(scene.home.rglob("*.seen")), b""),
}


def damage(path: Path, data: bytes | None = None) -> None:
    found = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(found[:-1] + bytes([found[-1] ^ 1]) if data is None else data)


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_has_changed_is_for_the_command_line(scene, change):
    assert scene.ingest()[1] == "short"
    CHANGES[change](scene)

    assert scene.velo("ingest", "venv").way == "long"


def test_a_folder_of_the_search_path_that_comes_into_being_is_looked_at(scene):
    late = scene.folder / "late"
    scene.packages.write({"late.pth": f"{late}\n"})
    assert [scene.ingest()[1] for _ in range(2)] == ["long", "short"]

    Tree(late).write({"late_module.py": "x = 1\n"})
    found, way = scene.ingest()

    assert way == "long" and str(late) in [root["path"] for root in found["roots"]]


def test_an_edit_after_it_wins(scene):
    """Also one within the same tick, and with the old time put back."""
    module = scene.packages / "pkg/__init__.py"
    before = module.stat()
    scene.ingest()

    module.write_text("x = 3\n")
    os.utime(module, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert not scene.ingest()[0]["unchanged"]


def test_what_gc_gave_up_is_ingested_again_and_its_receipt_is_gone(scene):
    collect(scene.store, Wish(forget=(str(scene.environment),), grace=0), now=time.time() + 10)
    assert not list(scene.home.rglob("*.seen"))

    assert scene.ingest()[1] == "long"
    assert scene.ingest()[1] == "short"


def test_a_reader_that_has_seen_enough_is_no_error(settled):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", VELO, "ingest", "venv"],
            stdout=closed,
            stderr=subprocess.PIPE,
            cwd=settled.folder,
            env=settled.variables,
        )
    assert done.returncode == 141 and b"Traceback" not in done.stderr


def test_receipts_do_not_outlive_a_format_of_manifests():
    assert receipt.MADE_BY.endswith(f"manifest {VERSION}")


def test_only_so_many_are_kept(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.seen").touch()
        os.utime(tmp_path / f"{number}.seen", (number, number))
    (tmp_path / "base.velo").touch()

    receipt.drop_oldest(str(tmp_path), 16)

    assert {path.name for path in tmp_path.iterdir()} == {"base.velo", *(f"{n}.seen" for n in range(4, 20))}

# SPDX-License-Identifier: Apache-2.0
"""A disk that forgets: programs run as before, `velo verify` puts it right, and they are served again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import Result, Velo
from tests.support.stores import flip_bit
from tests.support.tree import Tree
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import open_pack

APP = {
    "app.py": "import helper, data.other\nprint(helper.VALUE, data.other.VALUE)\n",
    "helper.py": "VALUE = 1\n" * 40,
    "data/__init__.py": "",
    "data/other.py": "VALUE = 2\n" * 40,
    "data/table.csv": "1,2,3\n" * 900,
}


@pytest.fixture
def app(tree: Tree) -> Tree:
    return tree.write(APP).ingest()


def packs(velo: Velo, kind: str) -> list[Path]:
    """The packs of that kind, the one with the project's own files first."""
    found = []
    for path in (velo.home / "packs").rglob("*.pack"):
        with open_pack(path) as file:
            if file.kind == kind:
                found.append((file.label.startswith("stdlib"), path))
    return [path for _, path in sorted(found)]


def damage(path: Path) -> None:
    """In the first payload, with the times put back: as a disk does it, without telling."""
    before = path.stat()
    flip_bit(path, 64 + 96 + 3)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def served(run_velo: Callable[..., Result], run_python: Callable[..., Result]) -> int:
    """How many modules were served, in a run that says what plain Python says."""
    result = run_velo("app.py", env={"VELO_READONLY": "1"})
    assert result.answer == run_python("app.py").answer
    return result.served


@pytest.mark.core
def test_damaged_bytecode_is_put_right(
    app: Tree, velo: Velo, run_velo: Callable[..., Result], run_python: Callable[..., Result]
) -> None:
    """What is whole in the pack is kept, the rest compiled by the next learner."""
    before = served(run_velo, run_python)
    damage(packs(velo, "bytecode")[0])
    assert served(run_velo, run_python) < before

    document = velo.command("verify", "--json").json

    (damaged,) = document["damaged"]
    assert damaged["healed"]
    assert str(velo.python.parents[1]) in damaged["affected"]
    velo.learn("app.py")
    assert served(run_velo, run_python) == before
    assert velo.command("verify", "--json").json["damaged"] == []


def test_damaged_content_comes_back_from_the_project(app: Tree, velo: Velo) -> None:
    """Byte for byte, from the files it was ingested from; without them it is named and given up."""
    (pack,) = packs(velo, "content")
    whole = pack.read_bytes()
    damage(pack)
    (damaged,) = velo.command("verify", "--json").json["damaged"]
    assert damaged["restored"] and pack.read_bytes() == whole

    (app.folder / "app.py").write_text("print('another program')\n")
    damage(pack)
    result = velo.command("verify")
    assert result.code == 12
    assert "1 lost" in result.stdout
    assert f"affected: {app.folder / 'app.py'}" in result.stdout


@pytest.mark.core
def test_a_restored_backup_is_served_after_one_verification(
    app: Tree, velo: Velo, run_velo: Callable[..., Result], run_python: Callable[..., Result]
) -> None:
    """A copy has other inodes and times, so nothing of it is believed until its bytes were looked at."""
    before = served(run_velo, run_python)
    backup = velo.home.with_name("backup")
    shutil.copytree(velo.home, backup, symlinks=True)
    shutil.rmtree(velo.home)
    backup.rename(velo.home)
    assert served(run_velo, run_python) == 0

    assert velo.command("verify", "--sample", "0%").code == 0

    assert served(run_velo, run_python) == before


def test_repacked_content_is_ingested_no_second_time(app: Tree, velo: Velo) -> None:
    """Its id is the same wherever it is: a large file that became cold is found in its pack."""
    app.write({"table.txt": "a line of a table\n" * 20_000})
    velo.ingest(app.folder)
    for path in velo.home.glob("cas_store/**/*"):
        if path.is_file():
            os.utime(path, (time.time() - 7200,) * 2)
    assert velo.command("store", "repack", "--cold-after", "0s", "--json").json["packed"] == 1

    document = velo.command("ingest", "--python", velo.python, "--force", "--json", app.folder).json

    assert document["new_blobs"] == 0
    with Catalog.open(Store.open(velo.home)) as catalog:
        assert "repacked" in {record.label for record in catalog.packs().values() if record.kind == "content"}

# SPDX-License-Identifier: Apache-2.0
"""The store folder: made, recognised, refused."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.stores import bytecode_pack, small_disk
from velo_import.errors import StoreCorrupt, StoreMissing, VeloError
from velo_import.store.layout import PARTS, Store


def test_new_store_is_private_and_has_a_version(store: Store) -> None:
    """The store's own folder is the gate; locks and notes have one of their own."""
    assert (store.home / "VERSION").read_text() == "1\n"
    for folder in (store.home, store.run):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for folder in (store.packs, store.loose, store.manifests):
        assert not stat.S_IMODE(folder.stat().st_mode) & 0o022


def test_opening_again_changes_nothing(store: Store) -> None:
    before = sorted((str(path), path.stat().st_mtime_ns) for path in store.home.rglob("*"))

    assert Store.open(store.home, create=True) == store
    assert sorted((str(path), path.stat().st_mtime_ns) for path in store.home.rglob("*")) == before


def test_missing_store_is_no_store(tmp_path: Path) -> None:
    for home in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(StoreMissing) as caught:
            Store.open(home)
        assert caught.value.exit_code == 10
        assert caught.value.hint


def test_folder_with_other_files_is_never_taken(tmp_path: Path) -> None:
    """VELO_HOME=~/project must not mix the store into the project."""
    (tmp_path / "thesis.tex").write_text("precious")

    with pytest.raises(VeloError, match="holds other files"):
        Store.open(tmp_path, create=True)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_store_that_was_interrupted_while_being_made_is_completed(tmp_path: Path) -> None:
    for part in ("packs", "run", "lost+found"):
        (tmp_path / part).mkdir()
    (tmp_path / ".tmp-1-abc").touch()

    assert Store.open(tmp_path, create=True).run.is_dir()


@pytest.mark.parametrize(
    ("version", "error"), [("2\n", VeloError), ("", StoreCorrupt), ("x" * 99, StoreCorrupt)]
)
def test_other_versions_are_refused(store: Store, version: str, error: type[VeloError]) -> None:
    (store.home / "VERSION").chmod(0o600)
    (store.home / "VERSION").write_text(version)

    with pytest.raises(error) as caught:
        Store.open(store.home, create=True)
    assert type(caught.value) is error
    assert caught.value.hint


def test_store_that_others_can_write_is_refused(store: Store) -> None:
    store.home.chmod(0o777)

    with pytest.raises(VeloError, match="can be written by other users"):
        Store.open(store.home)


def test_store_of_somebody_else_is_refused(store: Store) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a folder away needs root")
    os.chown(store.home, 4321, 4321)

    for create in (False, True):
        with pytest.raises(VeloError, match="belongs to user 4321"):
            Store.open(store.home, create=create)


def test_file_in_the_place_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(VeloError, match="not a folder"):
        Store.open(tmp_path / "file", create=True)
    with pytest.raises(StoreMissing):
        Store.open(tmp_path / "file")


def test_read_only_disk_is_explained(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(VeloError, match="permission denied") as caught:
            Store.open(tmp_path / "closed" / "home", create=True)
    else:
        with small_disk(tmp_path / "disk", "64k") as disk:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            with pytest.raises(VeloError, match="read-only file system") as caught:
                Store.open(disk / "home", create=True)
    assert "VELO_HOME" in caught.value.hint


def test_store_on_a_read_only_disk_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        Store.open(disk / "home", create=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        assert Store.open(disk / "home", readonly=True).home == disk / "home"
        assert Store.open(disk / "home", create=True, readonly=True).readonly


@pytest.mark.parametrize("key", ["", ".", "..", ".hidden", "a/b", "/etc", "a\0b"])
def test_keys_are_plain_names(store: Store, key: str) -> None:
    with pytest.raises(VeloError):
        store.manifest_folder(key)


def test_manifest_folder(store: Store) -> None:
    assert store.manifest_folder("cpython-312-venv-01ab") == store.home / "manifests/v1/cpython-312-venv-01ab"


def test_size_report_counts_each_file_once(store: Store) -> None:
    empty = store.size_report()
    sealed = bytecode_pack(store, range(300))
    (store.run / "link").hardlink_to(sealed.path)
    report = store.size_report()

    assert set(report) == set(PARTS)
    assert report["packs"] - empty["packs"] >= sealed.stamp.size
    assert sum(report.values()) < 2 * sealed.stamp.size


def test_only_old_temporary_files_are_left_overs(store: Store) -> None:
    places = [store.packs, store.loose, store.manifest_folder("key"), store.home, store.run]
    for place in places:
        place.mkdir(exist_ok=True)
        for name in (".tmp-1-old", ".tmp-1-new", "kept"):
            (place / name).touch()
        for name in (".tmp-1-old", "kept"):
            os.utime(place / name, (time.time() - 10**6,) * 2)

    assert store.remove_leftovers() == len(places)
    for place in places:
        assert {".tmp-1-new", "kept"} <= set(os.listdir(place))
        assert ".tmp-1-old" not in os.listdir(place)

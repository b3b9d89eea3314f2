# SPDX-License-Identifier: Apache-2.0
"""`velo rebuild`: what a user sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.running import VELO, Result, clean_environment, start
from tests.support.stores import BUILD, bytecode_pack, source
from velo_import.store import leases
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "home", create=True)


def velo(home: Path, *arguments: str, **variables: str) -> Result:
    environment = clean_environment(home.parent, VELO_HOME=str(home), **variables)
    return start([*VELO, *arguments], cwd=home.parent, environment=environment)


def test_rebuild_finds_everything_again(store: Store) -> None:
    bytecode_pack(store, range(50))  # and the catalogue was never told
    Catalog.open(store).close()

    text = velo(store.home, "rebuild")
    document = velo(store.home, "rebuild", "--json").json

    assert "50 bytecode variants, 1 packs" in text.stdout
    assert (document["variants"], document["packs"], document["blobs"]) == (50, 1, 50)
    with Catalog.open(store) as catalog:
        assert len(catalog.variants_of(map(source, range(50)), BUILD, 0)) == 50


def test_rebuild_needs_a_store(tmp_path: Path) -> None:
    result = velo(tmp_path / "none", "rebuild")

    assert result.code == 10
    assert result.stderr.startswith("error: there is no store in ")
    assert not (tmp_path / "none").exists()


def test_rebuild_of_a_store_that_is_only_read(store: Store) -> None:
    result = velo(store.home, "rebuild", VELO_READONLY="1")

    assert result.code == 1
    assert "reading only" in result.stderr and "VELO_READONLY" in result.stderr


def test_rebuild_waits_for_nobody_forever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another maintenance is at work: that is said, with the exit code for it."""
    with leases.maintenance(store):
        result = velo(store.home, "rebuild", "--wait", "0")

    assert result.code == 11
    assert "hint: " in result.stderr

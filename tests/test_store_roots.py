# SPDX-License-Identifier: Apache-2.0
"""Roots: what protects, what each of them needs, and when it was used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.environments import content, manifest_of, publish_environment, used
from tests.support.stores import bytecode_pack, digest_of
from velo_import.errors import StoreCorrupt
from velo_import.host import locks
from velo_import.host.files import read_file
from velo_import.store.layout import Store
from velo_import.store.roots import (
    ENVIRONMENT,
    REGISTERED,
    Root,
    needs,
    prefix_of,
    register,
    remove_environment,
    roots,
    unregister,
)

DAY = 86400.0


def needed(root: Root) -> tuple[set[bytes], set[bytes]]:
    with needs(root) as (packs, steps):
        return packs, {digest for step in steps for digest in step}


def test_an_environment_needs_its_packs_and_its_blobs(store: Store) -> None:
    pack = bytecode_pack(store, range(3))
    publish_environment(store, "venv", range(5), [pack])
    (root,) = roots(store)

    assert (root.kind, root.name, prefix_of(root)) == (ENVIRONMENT, "venv", "/venv")
    assert needed(root) == ({bytes.fromhex(pack.id)}, {digest_of(content(number)) for number in range(5)})


def test_every_layer_counts(store: Store) -> None:
    base = publish_environment(store, "venv", range(3))
    base.with_name("upper.velo").write_bytes(manifest_of([7]))

    assert needed(roots(store)[0])[1] == {digest_of(content(number)) for number in (0, 1, 2, 7)}


def test_last_use_is_the_newest_that_is_known(store: Store) -> None:
    path = publish_environment(store, "cpython-312-my-venv-0011223344556677", [1])
    now = path.stat().st_mtime
    used(path, 9 * DAY, now)
    assert roots(store)[0].last_use == pytest.approx(now - 9 * DAY)
    os.utime(path, (now - 3 * DAY, now - 9 * DAY))  # it was mapped
    assert roots(store)[0].last_use == pytest.approx(now - 3 * DAY)
    mark = store.run / "my-venv.used"
    mark.touch()
    os.utime(mark, (now - DAY, now - DAY))  # `velo run` was here
    assert roots(store)[0].last_use == pytest.approx(now - DAY)


def test_asking_does_not_count_as_using(store: Store) -> None:
    path = publish_environment(store, "venv", [1])
    used(path, 40 * DAY, path.stat().st_mtime)
    before = roots(store)[0].last_use
    needed(roots(store)[0])

    assert roots(store)[0].last_use == before


def test_what_was_written_elsewhere_protects_even_when_it_is_gone(store: Store, tmp_path: Path) -> None:
    pack = bytecode_pack(store, range(3))
    written = tmp_path / "mnt" / "app.velo"
    written.parent.mkdir()
    written.write_bytes(manifest_of(range(4), [pack]))
    register(store, written)
    written.unlink()
    (root,) = roots(store)

    assert (root.kind, root.name) == (REGISTERED, str(written))
    assert needed(root) == ({bytes.fromhex(pack.id)}, {digest_of(content(number)) for number in range(4)})
    unregister(store, str(written))
    assert roots(store) == []


def test_writing_to_the_same_place_replaces_what_is_registered(store: Store, tmp_path: Path) -> None:
    written = tmp_path / "app.velo"
    for numbers in ([1, 2], [2, 3]):
        written.write_bytes(manifest_of(numbers))
        register(store, written)
    (root,) = roots(store)

    assert needed(root)[1] == {digest_of(content(2)), digest_of(content(3))}


@pytest.mark.parametrize("damage", [b"", b"VELOMNFT", b"x" * 1000])
def test_a_damaged_manifest_is_no_empty_answer(store: Store, damage: bytes) -> None:
    path = publish_environment(store, "venv", [1])
    path.chmod(0o600)
    path.write_bytes(damage)

    with pytest.raises(StoreCorrupt, match="what it protects is unknown") as caught:
        needed(roots(store)[0])
    assert str(path) in caught.value.message and caught.value.hint


def test_a_damaged_registration_is_no_empty_answer(store: Store, tmp_path: Path) -> None:
    written = tmp_path / "app.velo"
    written.write_bytes(manifest_of([1]))
    register(store, written)
    (path,) = store.roots.iterdir()
    data = read_file(path)
    path.chmod(0o600)
    path.write_bytes(data[:-1])

    with pytest.raises(StoreCorrupt, match="what it protects is unknown"):
        roots(store)


def test_what_is_no_manifest_cannot_be_registered(store: Store, tmp_path: Path) -> None:
    written = tmp_path / "notes.txt"
    written.write_text("no manifest")

    with pytest.raises(StoreCorrupt):
        register(store, written)
    assert roots(store) == []


def test_a_manifest_that_goes_meanwhile_needs_nothing(store: Store) -> None:
    path = publish_environment(store, "venv", [1])
    (root,) = roots(store)
    path.unlink()

    assert needed(root) == (set(), set())


def test_a_removed_environment_leaves_nothing_but_a_lock_that_is_held(store: Store) -> None:
    for key in ("one", "two"):
        publish_environment(store, key, [1])
        for ending in ("vain", "lock"):
            (store.run / f"{key}.{ending}").touch()
    with locks.exclusive(store.run / "two.lock"):
        remove_environment(store, "one")
        remove_environment(store, "two")

    assert roots(store) == []
    assert list(store.manifests.iterdir()) == []
    assert sorted(path.name for path in store.run.iterdir() if path.name[:3] in ("one", "two")) == [
        "two.lock"
    ]

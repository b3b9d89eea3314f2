# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: what somebody needs stays, what nobody needs goes, and all others go on working."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.environments import (
    content,
    is_there,
    manifest_of,
    publish_environment,
    put_content,
    used,
)
from tests.support.stores import (
    BUILD,
    bytecode_pack,
    digest_of,
    flip_bit,
    run,
    small_disk,
    source,
    start,
    temporaries,
)
from velo_import.errors import StoreCorrupt, StoreLocked, UsageFault
from velo_import.store import gc, gcplan, leases
from velo_import.store.catalog import Catalog
from velo_import.store.gc import collect, preview
from velo_import.store.gcplan import Report, Wish
from velo_import.store.index import BlobIndex, write_index
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter
from velo_import.store.roots import register, roots

DAY = 86400.0
LATER = 7200.0


def swept(store: Store, **wish: object) -> Report:
    """A collection two hours from now; it has to do what the preview said."""
    now = time.time() + LATER
    foreseen = preview(store, Wish(**wish), now=now)  # type: ignore[arg-type]
    report = collect(store, Wish(**wish), now=now)  # type: ignore[arg-type]
    for name in ("packs", "loose", "manifests", "leftovers", "roots", "aside"):
        assert getattr(foreseen, name) == getattr(report, name), name
    assert foreseen.rewritten.count == report.rewritten.count
    return report


def files(store: Store) -> set[str]:
    found = (*store.packs.glob("*/*.pack"), *store.loose.glob("*/*/*"))
    return {path.stem for path in found}


def test_what_nobody_needs_goes_and_all_else_stays(store: Store) -> None:
    publish_environment(store, "venv", range(10))
    put_content(store, range(10, 20))
    put_content(store, range(20, 25), loose=True)
    report = swept(store)

    assert (report.packs.count, report.loose.count) == (1, 5)
    assert [is_there(store, number) for number in range(25)] == [number < 10 for number in range(25)]
    assert swept(store).freed == 0


def test_nothing_is_removed_by_looking(store: Store) -> None:
    put_content(store, range(10))
    before = files(store)
    report = preview(store, Wish(), now=time.time() + LATER)

    assert report.packs.count == 1 and report.freed > 0
    assert files(store) == before


def test_bytecode_goes_with_the_manifest_that_names_it(store: Store) -> None:
    kept, dropped = bytecode_pack(store, range(5)), bytecode_pack(store, range(5, 9))
    with Catalog.open(store) as catalog, catalog.write() as writing:
        writing.put_pack(kept)
        writing.put_pack(dropped)
    publish_environment(store, "venv", [1], [kept])
    swept(store)

    assert kept.path.exists() and not dropped.path.exists()
    with Catalog.open(store) as catalog:
        assert set(catalog.variants_of(map(source, range(9)), BUILD, 0)) == set(map(source, range(5)))
        assert catalog.counts()["variants"] == 5
        assert set(catalog.packs()) & {kept.id, dropped.id} == {kept.id}


def test_the_blob_index_does_not_name_what_has_gone(store: Store) -> None:
    """A process that mapped the old one finds nothing there; the new one does not know it at all."""
    publish_environment(store, "venv", range(10))
    put_content(store, range(10, 20))
    write_index(store)
    with BlobIndex(store) as old:
        swept(store)
        with BlobIndex(store) as new:
            gone = [digest_of(content(number)) for number in range(10, 20)]
            assert (
                [old.get(digest) for digest in gone] == [new.find(digest) for digest in gone] == [None] * 10
            )
            assert all(new.find(digest_of(content(number))) for number in range(10))
            assert len(new.packs) == 1


def test_what_is_young_stays(store: Store) -> None:
    put_content(store, range(5))
    put_content(store, range(5, 8), loose=True)
    report = collect(store, Wish())

    assert report.freed == 0
    assert (report.young.count, len(files(store))) == (4, 4)


def test_a_pack_with_one_needed_blob_stays_or_is_written_again(store: Store) -> None:
    """Small packs are not worth the work; of large ones, what is needed is copied into a new one."""
    put_content(store, range(20))
    publish_environment(store, "small", [3])
    report = swept(store)
    assert report.rewritten.count == 0 and report.unused_in_packs > 0 and is_there(store, 3)

    put_content(store, range(1000, 1600))
    publish_environment(store, "large", [1001, 1002])
    before = store.size_report()["packs"]
    report = swept(store)

    assert report.rewritten.count == 1 and report.trouble == []
    assert report.rewritten.bytes <= before - store.size_report()["packs"] + 8192
    assert [number for number in range(1000, 1600) if is_there(store, number)] == [1001, 1002]
    assert is_there(store, 3)
    assert swept(store).freed == 0


def test_compressed_content_stays_compressed_when_it_is_written_again(store: Store) -> None:
    writer = PackWriter(store, label="cold", kind="content", compress=True)
    for number in range(1000, 1600):
        writer.add(content(number) + os.urandom(2000))
    wanted = writer.add(content(1299))
    sealed = writer.seal()
    assert sealed is not None
    with Catalog.open(store) as catalog, catalog.write() as writing:
        writing.put_pack(sealed)
    publish_environment(store, "venv", [1299])
    report = swept(store)

    assert report.rewritten.count == 1 and is_there(store, 1299)
    with Catalog.open(store) as catalog:
        assert catalog.locations([wanted.digest])[wanted.digest].codec == wanted.codec == 1


def test_a_damaged_blob_keeps_its_pack_from_being_written_again(store: Store) -> None:
    """What cannot be copied is not given up: `velo verify` may find it elsewhere."""
    sealed = put_content(store, range(1000, 1600))
    assert sealed is not None
    publish_environment(store, "venv", [1001, 1002])
    entry = next(entry for entry in sealed.entries if entry.digest == digest_of(content(1001)))
    flip_bit(sealed.path, entry.offset)
    report = collect(store, Wish(), now=time.time() + LATER)

    assert report.damaged == [sealed.path] and report.rewritten.count == 0
    assert sealed.path.exists()


def test_a_pack_that_a_manifest_names_is_never_taken_apart(store: Store) -> None:
    sealed = put_content(store, range(1000, 1600))
    assert sealed is not None
    publish_environment(store, "venv", [1001], [sealed])
    report = swept(store)

    assert report.rewritten.count == 0 and sealed.path.exists()


def test_of_several_copies_one_stays(store: Store) -> None:
    put_content(store, [])  # from here on there is a catalogue
    with PackWriter(store, label="other", kind="content") as writer:
        for number in range(3):
            writer.add(content(number))
        twin = writer.seal()
    publish_environment(store, "venv", range(5))  # not recorded: stored once more
    put_content(store, [4], loose=True)
    assert twin is not None
    report = swept(store)

    assert report.packs.count == 1 and not twin.path.exists()
    assert all(is_there(store, number) for number in range(5))


def test_a_damaged_copy_is_no_reason_to_give_up_the_sound_one(store: Store) -> None:
    """The catalogue names the newer pack; that one was written to behind the store's back."""
    first = put_content(store, range(3))
    with PackWriter(store, label="newer", kind="content") as writer:
        for number in range(4):
            writer.add(content(number))
        second = writer.seal()
    assert first is not None and second is not None
    with Catalog.open(store) as catalog, catalog.write() as writing:
        writing.put_pack(second)
    publish_environment(store, "venv", range(3))
    flip_bit(second.path, second.entries[0].offset)
    swept(store)

    assert first.path.exists()


def test_a_manifest_written_elsewhere_protects_until_it_is_given_up(store: Store, tmp_path: Path) -> None:
    publish_environment(store, "venv", range(5))
    written = tmp_path / "app.velo"
    written.write_bytes(manifest_of(range(5)))
    register(store, written)
    written.unlink()
    swept(store, forget=("venv",))
    assert all(is_there(store, number) for number in range(5))

    report = swept(store, forget=(str(written),))
    assert report.manifests.count == 1
    assert [(root.reason, root.needs.count, root.alone.count) for root in report.roots] == [
        ("asked for", 5, 5)
    ]
    assert not any(is_there(store, number) for number in range(5))


def test_an_environment_is_given_up_by_key_or_by_folder(store: Store) -> None:
    for number, key in enumerate(("one", "two", "three")):
        publish_environment(store, key, [number])
    swept(store, forget=("one", "/two"))

    assert [root.name for root in roots(store)] == ["three"]
    assert [is_there(store, number) for number in range(3)] == [False, False, True]
    with pytest.raises(UsageFault, match="nothing in the store is for four"):
        collect(store, Wish(forget=("four",)))


def test_environments_that_nobody_used_for_long_go(store: Store) -> None:
    now = time.time()
    put_content(store, [7])
    for number, ago in enumerate((40 * DAY, 20 * DAY, 0)):
        used(publish_environment(store, f"env{number}", [number, 7]), ago, now)
    with Catalog.open(store) as catalog, catalog.write() as writing:
        for number in range(3):
            writing.put_manifest(f"env{number}", {"prefix": f"/env{number}"})
    report = swept(store, unused_for=30 * DAY)

    assert [(root.name, root.reason) for root in report.roots] == [
        ("env0", "unused"),
        ("env1", ""),
        ("env2", ""),
    ]
    assert [is_there(store, number) for number in (0, 1, 2, 7)] == [False, True, True, True]
    with Catalog.open(store) as catalog:
        assert set(catalog.manifests()) == {"env1", "env2"}


def test_what_each_environment_needs_and_needs_alone(store: Store) -> None:
    publish_environment(store, "one", range(10))
    publish_environment(store, "two", range(5, 12))
    by_name = {root.name: root for root in preview(store, Wish()).roots}

    assert {name: (root.needs.count, root.alone.count) for name, root in by_name.items()} == {
        "one": (10, 5),
        "two": (7, 2),
    }
    # Each has an entry header and an index record, of 96 bytes each.
    assert by_name["one"].alone.bytes == sum(len(content(number)) + 192 for number in range(5))
    assert by_name["one"].path == "/one" and not by_name["one"].exists


def test_a_size_limit_takes_the_least_recently_used_first(store: Store) -> None:
    now = time.time()
    for number in range(4):
        numbers = range(1000 * number, 1000 * number + 300)
        used(publish_environment(store, f"env{number}", numbers), (10 - number) * DAY, now)
    size = sum(store.size_report().values())
    packs = store.size_report()["packs"]
    report = swept(store, max_size=size - packs // 3)

    assert [root.reason for root in report.roots] == ["over the limit", "over the limit", "", ""]
    assert report.over == 0
    assert sum(store.size_report().values()) <= size - packs // 3
    assert [is_there(store, 1000 * number + 1) for number in range(4)] == [False, False, True, True]


def test_a_limit_that_cannot_be_kept_says_by_how_much(store: Store) -> None:
    """What was used a moment ago stays whatever the limit."""
    publish_environment(store, "busy", range(10))
    report = collect(store, Wish(max_size=1))

    assert report.roots[0].reason == "" and report.over > 0
    assert all(is_there(store, number) for number in range(10))


def test_a_manifest_that_cannot_be_read_stops_everything(store: Store) -> None:
    path = publish_environment(store, "venv", [1])
    put_content(store, [2])
    path.chmod(0o600)
    path.write_bytes(b"VELOMNFT")
    before = files(store)

    for attempt in (preview, collect):
        with pytest.raises(StoreCorrupt, match="what it protects is unknown"):
            attempt(store, Wish(grace=0), now=time.time() + LATER)
    assert files(store) == before


def test_damaged_packs_and_those_of_a_later_velo_stay_and_are_named(store: Store) -> None:
    damaged, later = bytecode_pack(store, range(3)), bytecode_pack(store, range(4))
    flip_bit(damaged.path, damaged.stamp.size - 5)
    flip_bit(later.path, 8, 1)  # the version
    report = swept(store)

    assert (report.damaged, report.unknown) == ([damaged.path], [later.path])
    assert damaged.path.exists() and later.path.exists()


def test_what_is_mapped_stays_readable(store: Store) -> None:
    sealed = put_content(store, range(5))
    assert sealed is not None
    data = sealed.path.read_bytes()
    with sealed.path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        swept(store)
        assert not sealed.path.exists()
        assert mapped[:] == data


def test_left_overs_and_what_was_put_aside_go_by_age(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = store.catalogue.with_name("meta.db.damaged")
    for folder in (store.quarantine, damaged):
        folder.mkdir(exist_ok=True)
        (folder / "1-data").write_bytes(b"x" * 10_000)
    (store.packs / ".tmp-1-old").touch()
    os.utime(store.packs / ".tmp-1-old", (1, 1))
    report = swept(store)
    assert (report.leftovers, report.aside.count, report.aside_kept.count) == (1, 0, 2)
    assert temporaries(store.home) == []

    monkeypatch.setattr(gcplan, "ASIDE_FOR", 60.0)
    report = swept(store)
    assert (report.aside.count, report.aside_kept.count) == (2, 0)
    assert not damaged.exists() and list(store.quarantine.iterdir()) == []


# -- beside others ---------------------------------------------------------------------------------


def beside(store: Store, code: str) -> None:
    """Another process at work: a catalogue is opened only once in each."""
    run(f"from tests.support.environments import *\n{code}", store.home)


def during(phase: str, action: Callable[[], object]) -> Callable[[str, int, int], None]:
    """A watcher that acts once, when that phase begins."""
    waiting = [action]

    def watch(now: str, done: int, total: int) -> None:
        if now == phase and waiting:
            waiting.pop()()

    return watch


@pytest.mark.parametrize("phase", ["mark", "packs", "compare", "remove", "loose"])
@pytest.mark.parametrize("loose", [False, True])
def test_content_that_becomes_needed_meanwhile_stays(store: Store, phase: str, loose: bool) -> None:
    """An ingest finds content in the store that the collection has already found to be garbage."""
    publish_environment(store, "venv", [99])
    put_content(store, range(5), loose=loose)
    put_content(store, range(5, 9))

    def ingest() -> None:
        beside(store, "publish_environment(store, 'new', range(5))")

    collect(store, Wish(grace=0), now=time.time() + LATER, progress=during(phase, ingest))

    assert all(is_there(store, number) for number in range(5))
    assert not any(is_there(store, number) for number in range(5, 9))


@pytest.mark.parametrize("phase", ["rewrite", "remove"])
def test_content_that_becomes_needed_while_its_pack_is_written_again_stays(store: Store, phase: str) -> None:
    put_content(store, range(1000, 1600))
    publish_environment(store, "venv", [1001])

    def ingest() -> None:
        beside(store, "publish_environment(store, 'new', [1002])")

    collect(store, Wish(grace=0), now=time.time() + LATER, progress=during(phase, ingest))

    assert is_there(store, 1001) and is_there(store, 1002)


def test_an_environment_that_is_used_meanwhile_stays(store: Store) -> None:
    now = time.time()
    path = publish_environment(store, "venv", range(5))
    used(path, 40 * DAY, now)
    collect(
        store,
        Wish(grace=0, unused_for=30 * DAY),
        now=now + LATER,
        progress=during("packs", lambda: used(path, 0, now)),
    )

    assert path.exists() and all(is_there(store, number) for number in range(5))


def test_an_ingest_that_has_not_published_yet_is_waited_for(store: Store) -> None:
    put_content(store, range(5))
    ingest = leases.shared(store)
    with ingest, pytest.raises(StoreLocked, match="in use by an ingest"):
        collect(store, Wish(grace=0), now=time.time() + LATER, patience=0.1)
    assert all(is_there(store, number) for number in range(5))


def test_a_second_collection_is_refused(store: Store) -> None:
    def second() -> None:
        with pytest.raises(StoreLocked):
            collect(store, Wish())
        beside(store, "from velo_import.store.gc import *; preview(store, Wish())")  # looking is free

    put_content(store, range(5))
    collect(store, Wish(), progress=during("packs", second))


@pytest.mark.parametrize("step", ["_remove_packs", "_remove_loose", "_rewrite"])
def test_a_collection_that_dies_leaves_all_that_is_needed(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    put_content(store, range(1000, 1600))
    publish_environment(store, "venv", [1001])
    publish_environment(store, "gone", range(5))
    put_content(store, range(20, 23), loose=True)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gc._Collection, step, die)
        with pytest.raises(KeyboardInterrupt):
            collect(store, Wish(forget=("gone",)), now=time.time() + LATER)
    assert is_there(store, 1001)
    swept(store)

    assert is_there(store, 1001) and not is_there(store, 1002) and not is_there(store, 1)


KILLED = """
from velo_import.store.gc import Wish, collect
import time
print("ready", flush=True)
while True:
    collect(store, Wish(grace=0), now=time.time() + 7200)
"""


def test_kill_9_while_others_ingest_loses_nothing(store: Store) -> None:
    """Collections without grace, killed at any moment, beside an ingest that goes on all the time."""
    needed: set[int] = set()
    for attempt in range(6):
        child = start(KILLED, store.home)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        until = time.monotonic() + 0.2
        number = 100 * attempt
        while time.monotonic() < until:
            number += 1
            with leases.shared(store):  # As everybody who writes has one.
                put_content(store, [number + 50_000])
            publish_environment(store, f"env{number}", [number, 1])
            needed.add(number)
        child.kill()
        child.communicate()
    collect(store, Wish(grace=0), now=time.time() + LATER)

    assert all(is_there(store, number) for number in needed | {1})


def test_a_full_disk_can_be_cleaned_up(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as disk:
        store = Store.open(disk / "home", create=True)
        publish_environment(store, "venv", range(10))
        for number in range(50, 53):
            put_content(store, range(1000 * number, 1000 * number + 250))
        with (disk / "filler").open("wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 65536)
                file.flush()
        report = collect(store, Wish(), now=time.time() + LATER)

        assert report.packs.count == 3
        assert all(is_there(store, number) for number in range(10))
        with Catalog.open(store) as catalog:
            assert len(catalog.packs()) == 1

# SPDX-License-Identifier: Apache-2.0
"""Several processes on one store, and processes that are killed while they write."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from tests.support.stores import BUILD, LIMIT, bytecode_pack, source, start, temporaries
from velo_import.host.files import stamp_of
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import open_pack

WRITE_FOREVER = """
import itertools
print("ready", flush=True)
for turn in itertools.count(int(sys.argv[2])):
    writers = []
    for n in range(3):
        writers.append(PackWriter(store, label=f"{turn}-{n}", kind="bytecode", build=BUILD))
        for number in range(20):
            writers[-1].add(os.urandom(20_000), source=source(turn * 100 + n * 20 + number))
    packs = seal_all(writers)
    with Catalog.open(store) as catalog, catalog.write() as changes:
        for pack in packs:
            changes.put_pack(pack)
"""

WRITE_THE_SAME = """
import json
packs = seal_all([writer_of(n) for n in range(15)])
with Catalog.open(store) as catalog, catalog.write() as changes:
    for pack in packs:
        changes.put_pack(pack)
print(json.dumps({pack.id: list(pack.stamp) for pack in packs}))
"""
WRITER_OF = """
def writer_of(n):
    writer = PackWriter(store, label=f"package-{n}", kind="bytecode", build=BUILD)
    for number in range(n * 20, n * 20 + 20):
        writer.add(payload(number), source=source(number))
    return writer
"""


def check(store: Store) -> int:
    """Every pack is whole, the catalogue opens at once and knows only packs that are there. How many?"""
    for path in store.packs.glob("*/*.pack"):
        with open_pack(path) as file:
            assert file.damaged() == []
    begin = time.perf_counter()
    with Catalog.open(store) as catalog:
        assert time.perf_counter() - begin < 1
        known = catalog.packs()
        assert None not in map(catalog.pack, known)
    return len(known)


def test_kill_at_any_moment_leaves_whole_packs(store: Store) -> None:
    chance = random.Random(7)
    recorded = 0
    for turn in range(10):
        child = start(WRITE_FOREVER, store.home, str(turn * 1000))
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.0, 0.15))
        child.kill()
        child.communicate(timeout=LIMIT)

        now = check(store)
        assert now >= recorded  # what was recorded is never lost
        recorded = now
    assert recorded > 0
    store.remove_leftovers(older_than=-1)
    assert temporaries(store.home) == []


def test_four_processes_with_the_same_packs_agree(store: Store) -> None:
    """A stamp that one of them put into a manifest stays valid, whoever came later."""
    children = [start(WRITER_OF + WRITE_THE_SAME, store.home) for _ in range(4)]
    answers = []
    for child in children:
        output, errors = child.communicate(timeout=LIMIT)
        assert child.returncode == 0, errors
        answers.append(json.loads(output))

    assert answers[1:] == answers[:-1]
    for pack_id, stamp in answers[0].items():
        assert list(stamp_of(store.pack_path(pack_id).stat())) == stamp
    assert check(store) == 15
    assert temporaries(store.home) == []


def test_two_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    children = [start("Catalog.open(store).close()", tmp_path / "new" / "home") for _ in range(4)]
    for child in children:
        _, errors = child.communicate(timeout=LIMIT)
        assert child.returncode == 0, errors
    assert check(Store.open(tmp_path / "new" / "home")) == 0


def test_catalogue_is_made_again_once_when_several_find_it_missing(store: Store) -> None:
    bytecode_pack(store, range(100))
    code = """
    with Catalog.open(store) as catalog:
        print(len(catalog.variants_of([source(n) for n in range(100)], BUILD, 0)))
    """
    children = [start(code, store.home) for _ in range(4)]
    for child in children:
        output, errors = child.communicate(timeout=LIMIT)
        assert (output, child.returncode) == ("100\n", 0), errors


def test_readers_are_right_while_others_write(store: Store) -> None:
    pack = bytecode_pack(store, range(500, 600))
    with Catalog.open(store) as catalog:
        with catalog.write() as changes:
            changes.put_pack(pack)
        child = start(WRITE_FOREVER, store.home, "1000")
        try:
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                assert len(catalog.variants_of(map(source, range(500, 600)), BUILD, 0)) == 100
        finally:
            child.kill()
            child.communicate(timeout=LIMIT)

# SPDX-License-Identifier: Apache-2.0
"""Collections against everybody else, in any order: ingests that publish early, late, in the middle of a
collection or never; readers with packs mapped; collections that die; a second collection.

The model is a set of numbers for each root. What a root names is there and whole after every step; after a
collection without grace, nothing else is.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.environments import content, manifest_of, publish_environment, put_content
from tests.support.stores import digest_of
from velo_import.errors import StoreLocked
from velo_import.host.files import publish
from velo_import.store import gc, gcplan, leases
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import LOOSE, Catalog
from velo_import.store.gc import collect
from velo_import.store.gcplan import Wish
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, open_pack
from velo_import.store.roots import register, unregister

KEYS = st.sampled_from(["one", "two", "three"])
NUMBERS = st.sets(st.integers(0, 30), max_size=8)
PHASES = st.sampled_from(["mark", "packs", "compare", "remove", "loose", "rewrite"])
DIGESTS = {digest_of(content(number)): number for number in range(31)}


class Dies(BaseException):
    """The process ends here."""


class Collections(RuleBasedStateMachine):
    @initialize()
    def open_store(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(gcplan, "_WORTH_BYTES", 1)  # packs are written again as soon as half is unused
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store.open(self.folder / "home", create=True)
        self.needed: dict[str, set[int]] = {}
        self.unpublished: dict[str, set[int]] = {}
        self.lease: AbstractContextManager[None] | None = None
        self.mapped: list[tuple[mmap.mmap, bytes]] = []

    # -- those who write ---------------------------------------------------------------------------

    @rule(numbers=NUMBERS, loose=st.booleans())
    def leave_garbage(self, numbers: set[int], loose: bool) -> None:
        put_content(self.store, numbers, loose=loose)

    @rule(numbers=NUMBERS, recorded=st.booleans())
    def store_again(self, numbers: set[int], recorded: bool) -> None:
        """Content that is there already, in one pack more; recorded, unless its writer died before that."""
        with PackWriter(self.store, label="again", kind="content") as writer:
            for number in numbers:
                writer.add(content(number))
            sealed = writer.seal()
        if sealed is not None and recorded:
            with Catalog.open(self.store) as catalog, catalog.write() as writing:
                writing.put_pack(sealed)

    @rule(key=KEYS, numbers=NUMBERS)
    def ingest(self, key: str, numbers: set[int]) -> None:
        publish_environment(self.store, key, numbers)
        self.needed[key] = numbers

    @rule(key=KEYS, numbers=NUMBERS)
    def write_elsewhere(self, key: str, numbers: set[int]) -> None:
        written = self.folder / f"{key}.velo"
        with leases.shared(self.store):
            put_content(self.store, numbers)
            written.write_bytes(manifest_of(numbers))
            register(self.store, written)
        written.unlink()
        self.needed[str(written)] = numbers

    @rule(key=KEYS)
    def give_up_elsewhere(self, key: str) -> None:
        name = str(self.folder / f"{key}.velo")
        unregister(self.store, name)
        self.needed.pop(name, None)

    @precondition(lambda self: self.lease is None)
    @rule(key=KEYS, numbers=NUMBERS)
    def begin_ingest(self, key: str, numbers: set[int]) -> None:
        self.lease = leases.shared(self.store)
        self.lease.__enter__()
        put_content(self.store, numbers)
        self.unpublished = {key: numbers}

    @precondition(lambda self: self.lease is not None)
    @rule(dies=st.booleans())
    def end_ingest(self, dies: bool) -> None:
        if not dies:
            for key, numbers in self.unpublished.items():
                self.publish(key, numbers)
        self.release()

    def publish(self, key: str, numbers: set[int]) -> None:
        """What an ingest does that finds everything in the store."""
        publish(self.store.manifest_folder(key) / "base.velo", [manifest_of(numbers)])
        self.needed[key] = numbers

    def release(self) -> None:
        if self.lease is not None:
            self.lease.__exit__(None, None, None)
            self.lease = None

    # -- those who read ----------------------------------------------------------------------------

    @rule()
    def map_packs(self) -> None:
        for path in self.store.packs.glob("*/*.pack"):
            with path.open("rb") as file:
                self.mapped.append((mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), path.read_bytes()))

    # -- collections -------------------------------------------------------------------------------

    @rule()
    def collect_what_is_old(self) -> None:
        before = set(self.files())
        collect(self.store, Wish(), patience=0)
        assert set(self.files()) == before

    @rule(forget=st.none() | KEYS)
    def collect_all(self, forget: str | None) -> None:
        names = tuple(name for name in [forget] if name in self.needed)
        try:
            self.collect(Wish(grace=0, forget=names))
        except StoreLocked:
            assert self.lease is not None
            return
        for name in names:
            del self.needed[name]
        if self.lease is None:
            self.collect(Wish(grace=0))  # what was written again leaves nothing behind
            self.only_what_is_needed_is_left()

    @precondition(lambda self: self.lease is None)
    @rule(phase=PHASES, key=KEYS, numbers=NUMBERS, forget=st.booleans(), loose=st.booleans())
    def collect_while_an_ingest_publishes(
        self, phase: str, key: str, numbers: set[int], forget: bool, loose: bool
    ) -> None:
        put_content(self.store, numbers, loose=loose)
        names = (key,) if forget and key in self.needed else ()
        waiting = [None]

        def watch(now: str, done: int, total: int) -> None:
            if now == phase and waiting:
                waiting.pop()
                with leases.shared(self.store):
                    present = self.present_without_catalogue()
                    if numbers <= present:  # what has gone would be read and stored again
                        self.publish(key, numbers)

        known = self.needed.get(key)
        collect(self.store, Wish(grace=0, forget=names), now=self.later(), progress=watch)
        if names and self.needed.get(key) is known:
            del self.needed[key]
        if key in self.needed and not (self.store.manifest_folder(key) / "base.velo").exists():
            del self.needed[key]  # published, and then given up as it was asked for

    @rule(step=st.integers(0, 6), forget=st.none() | KEYS)
    def collect_and_die(self, step: int, forget: str | None) -> None:
        names = tuple(name for name in [forget] if name in self.needed)
        left = [step]
        remove = gc.remove_quietly

        def removing(path: Path) -> None:
            if not left[0]:
                raise Dies
            left[0] -= 1
            remove(path)

        with self.patch.context() as patch:
            patch.setattr(gc, "remove_quietly", removing)
            try:
                self.collect(Wish(grace=0, forget=names))
            except (Dies, StoreLocked):
                pass
        for name in names:
            if not (self.store.manifest_folder(name) / "base.velo").exists():
                del self.needed[name]

    @rule()
    def a_second_collection_is_refused(self) -> None:
        with leases.maintenance(self.store), pytest.raises(StoreLocked):
            self.collect(Wish())

    def collect(self, wish: Wish) -> None:
        collect(self.store, wish, now=self.later(), patience=0)

    def later(self) -> float:
        return time.time() + 7200

    # -- what has to hold --------------------------------------------------------------------------

    @invariant()
    def what_is_needed_is_there_and_whole(self) -> None:
        wanted = set().union(*self.needed.values(), *self.unpublished.values() if self.lease else ())
        digests = {digest_of(content(number)) for number in wanted}
        with Catalog.open(self.store) as catalog:
            assert catalog.has_blobs(digests) == digests
            locations = catalog.locations(digests)
        for digest, location in locations.items():
            if location.where == LOOSE:
                assert Blobs(self.store).read(digest) == content(DIGESTS[digest])
            else:
                with open_pack(self.store.pack_path(location.pack_id.hex())) as file:
                    entry = file.find(digest)
                    assert entry is not None and file.read(entry) == content(DIGESTS[digest])

    @invariant()
    def what_is_mapped_stays(self) -> None:
        assert all(mapped[:] == data for mapped, data in self.mapped)

    def only_what_is_needed_is_left(self) -> None:
        wanted = {digest_of(content(number)) for number in set().union(*self.needed.values())}
        assert {bytes.fromhex(path.name) for path in self.store.loose.glob("*/*/*")} <= wanted
        for path in self.store.packs.glob("*/*.pack"):
            with open_pack(path) as file:
                sizes = [(entry.length + 192, entry.digest in wanted) for entry in file.entries]
            assert sum(size for size, is_wanted in sizes if is_wanted) * 2 >= sum(size for size, _ in sizes)

    def present_without_catalogue(self) -> set[int]:
        found = {DIGESTS[bytes.fromhex(path.name)] for path in self.store.loose.glob("*/*/*")}
        for path in self.store.packs.glob("*/*.pack"):
            with open_pack(path) as file:
                found.update(DIGESTS[entry.digest] for entry in file.entries)
        return found

    def files(self) -> list[Path]:
        return [*self.store.packs.glob("*/*.pack"), *self.store.loose.glob("*/*/*")]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.release()
            for mapped, _ in self.mapped:
                mapped.close()
            self.patch.undo()
            shutil.rmtree(self.folder)


class TestCollections(Collections.TestCase):
    settings = settings(
        max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.slow
class TestManyCollections(Collections.TestCase):
    settings = settings(TestCollections.settings, max_examples=500)

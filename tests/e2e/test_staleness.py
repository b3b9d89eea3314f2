# SPDX-License-Identifier: Apache-2.0
"""Never stale, tried at random: files change in any order, learners and ingests come in between, and after
each step plain and accelerated Python see the same (tests/staleness).

Check `stat` is the promise: whatever changes is seen at once. What `root` promises is that whatever changes
is seen at once if the folder on the path has changed as well, as it does when something is installed; there
each change is followed by that. `none` promises nothing of the kind: test_edits.py says what it does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.staleness.arms import Arms
from tests.staleness.world import (
    BRANCHES,
    BROKEN,
    FAR_AHEAD,
    FOLDERS,
    LONG_AGO,
    NAMES,
    NATIVE,
    SOURCES,
    World,
)
from tests.support.interpreters import Interpreter
from tests.support.running import Velo
from tests.support.tree import make_environment

MANY = int(os.environ.get("VELO_TEST_STEPS", "2000"))  # steps of a long run
TICK = 0.012  # seconds in which a folder can change without its times telling
PLACES = st.sampled_from(FOLDERS)
FILES = st.sampled_from(SOURCES)
NUMBERS = st.integers(0, 8_000_000)
QUESTION = "import sys, json, _imp, sysconfig; print(json.dumps([_imp.extension_suffixes()[0], sys.path]))"


def native_module(python: Path) -> tuple[Path, str]:
    """A small native module of this interpreter, and what such files are called."""
    suffix, folders = json.loads(subprocess.check_output([python, "-c", QUESTION]))
    for folder in folders:
        for path in sorted(Path(folder).glob("xxlimited.*.so")):
            return path, suffix
    pytest.skip("this Python has no xxlimited")


class Staleness(RuleBasedStateMachine):
    """The folders, both Pythons, and everything that can happen to files."""

    check = "stat"
    base: Path
    interpreter: Interpreter
    steps = served = images = 0

    @initialize(writes=st.booleans())
    def begin(self, writes: bool) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="velo-staleness-")).resolve()
        python = make_environment(self.folder / "venv", self.interpreter, self.base)
        velo = Velo(self.folder, python, self.folder)
        site = self.folder / "venv" / self.interpreter.library / "site-packages"
        self.world = World(self.folder, site, *native_module(python))
        self.arms = Arms(velo, writes, self.check)
        self.velo = velo
        self.path = ["project", "second", "via"]
        self.is_level = False  # both old processes have imported the same
        self.learn(waits=True)

    # -- looking -----------------------------------------------------------------------------------

    def entries(self) -> list[str]:
        return [str(self.folder / name) for name in self.path]

    def changed(self) -> None:
        """Look, after whatever has just happened."""
        if self.check == "root":
            # Processes that have asked the folder before need not ask it again.
            time.sleep(TICK)
            self.world.install_something()
            self.arms.compare_new(self.entries(), NAMES)
        else:
            self.arms.compare_forked(self.entries(), NAMES)
        self.stepped()

    def stepped(self) -> None:
        type(self).steps += 1

    @rule()
    def start_anew(self) -> None:
        self.arms.compare_new(self.entries(), NAMES)
        self.stepped()

    @precondition(lambda self: self.check == "stat")
    @rule(forgets=st.booleans())
    def import_again(self, forgets: bool) -> None:
        """In processes that have been running for a while, modules are taken out and imported again."""
        time.sleep(TICK)
        self.arms.compare_old(self.entries(), NAMES, "again", forgets=forgets)
        self.is_level = forgets
        time.sleep(TICK)
        self.stepped()

    @precondition(lambda self: self.check == "stat")
    @rule()
    def reload(self) -> None:
        """`invalidate_caches` and `importlib.reload` in processes that have been running for a while."""
        if not self.is_level:
            self.arms.compare_old(self.entries(), NAMES, "again", forgets=True)
            self.is_level = True
        self.arms.compare_old(self.entries(), NAMES, "reload", forgets=True)
        self.stepped()

    # -- learning ----------------------------------------------------------------------------------

    @rule(waits=st.booleans())
    def learn(self, waits: bool) -> None:
        """A start that learns; what happens next happens after that, or while it learns."""
        self.velo.wait_learned()
        self.arms.compare_new(self.entries(), NAMES, learns=True)
        if waits:
            self.velo.wait_learned()
            self.arms.restart()
            self.is_level = False
        self.changed()

    @rule(place=PLACES)
    def ingest(self, place: str) -> None:
        target = self.world.places[place]
        if target.is_dir():
            self.velo.ingest(target)
            self.arms.restart()
            self.is_level = False
        self.changed()

    @rule()
    def restart(self) -> None:
        self.arms.restart()
        self.is_level = False
        self.changed()

    # -- files -------------------------------------------------------------------------------------

    @rule(place=PLACES, name=FILES, number=NUMBERS, padding=st.sampled_from([0, 0, 1, 300]))
    def edit(self, place: str, name: str, number: int, padding: int) -> None:
        self.world.edit(self.world.places[place] / name, number, padding)
        self.changed()

    @rule(place=PLACES, name=FILES, number=NUMBERS)
    def edit_unnoticed(self, place: str, name: str, number: int) -> None:
        self.world.edit_unnoticed(self.world.places[place] / name, number)
        self.changed()

    @rule(place=PLACES, name=FILES, number=NUMBERS)
    def edit_within_the_second(self, place: str, name: str, number: int) -> None:
        self.world.edit_within_the_second(self.world.places[place] / name, number)
        self.changed()

    @rule(place=PLACES, name=FILES, number=NUMBERS, keeps_time=st.booleans())
    def replace(self, place: str, name: str, number: int, keeps_time: bool) -> None:
        self.world.replace(self.world.places[place] / name, number, keeps_time=keeps_time)
        self.changed()

    @rule(place=PLACES, name=FILES, number=st.integers(0, 3))
    def link_in(self, place: str, name: str, number: int) -> None:
        self.world.link_in(self.world.places[place] / name, number)
        self.changed()

    @rule(place=PLACES, name=FILES, seconds=st.sampled_from([0, LONG_AGO, FAR_AHEAD]))
    def set_times(self, place: str, name: str, seconds: int) -> None:
        self.world.set_times(self.world.places[place] / name, seconds)
        self.changed()

    @rule(place=PLACES, name=FILES)
    def delete(self, place: str, name: str) -> None:
        self.world.delete(self.world.places[place] / name)
        self.changed()

    @rule(place=PLACES, name=FILES, number=NUMBERS, vanishes=st.booleans())
    def change_listing_unnoticed(self, place: str, name: str, number: int, vanishes: bool) -> None:
        """A file comes or goes, and its folder gets back the time it had."""
        path = self.world.places[place] / name

        def change() -> None:
            if vanishes:
                self.world.delete(path)
            else:
                self.world.edit(path, number)

        self.world.in_the_same_moment(path.parent, change)
        self.changed()

    @rule(place=PLACES, name=FILES, how=st.sampled_from([*BROKEN, "folder", "dangling link"]))
    def spoil(self, place: str, name: str, how: str) -> None:
        self.world.spoil(self.world.places[place] / name, how)
        self.changed()

    @rule(place=PLACES, name=st.sampled_from(NATIVE), comes=st.booleans())
    def native(self, place: str, name: str, comes: bool) -> None:
        (self.world.native_in if comes else self.world.native_out)(place, name)
        self.changed()

    # -- folders -----------------------------------------------------------------------------------

    @rule(place=PLACES, number=NUMBERS, links=st.booleans())
    def upgrade(self, place: str, number: int, links: bool) -> None:
        self.world.upgrade(place, number, links=links)
        self.changed()

    @rule(place=PLACES, package=st.sampled_from(["box", "box/deep", "both"]))
    def become_a_namespace(self, place: str, package: str) -> None:
        self.world.delete(self.world.places[place] / package / "__init__.py")
        self.changed()

    @rule(place=PLACES, branch=st.sampled_from(BRANCHES))
    def commit(self, place: str, branch: str) -> None:
        self.world.commit(place, branch)
        self.changed()

    @rule(place=PLACES, branch=st.sampled_from(BRANCHES))
    def check_out(self, place: str, branch: str) -> None:
        self.world.check_out(place, branch)
        self.changed()

    @rule(place=PLACES, name=st.sampled_from(["box", "box/deep", "both", "space", "space/inner"]))
    def rename_package(self, place: str, name: str) -> None:
        self.world.rename_aside(self.world.places[place] / name)
        self.changed()

    @rule(name=st.sampled_from(["project", "second", "real-a"]))
    def rename_folder(self, name: str) -> None:
        self.world.rename_aside(self.folder / name)
        self.changed()

    @rule()
    def swap_projects(self) -> None:
        self.world.swap_projects()
        self.changed()

    @rule(
        place=PLACES,
        name=st.sampled_from(["", "box", "space"]),
        seconds=st.sampled_from([LONG_AGO, FAR_AHEAD]),
    )
    def set_times_of_folder(self, place: str, name: str, seconds: int) -> None:
        self.world.set_times(self.world.places[place] / name, seconds)
        self.changed()

    @precondition(lambda self: self.arms.writes)
    @rule()
    def forget_bytecode(self) -> None:
        self.world.forget_bytecode()
        self.changed()

    # -- links and paths ---------------------------------------------------------------------------

    @rule(where=st.sampled_from(["real-a", "real-b", "project", "nowhere"]))
    def retarget_folder(self, where: str) -> None:
        self.world.retarget(self.folder / "via", where)
        self.changed()

    @rule(
        place=PLACES,
        names=st.sampled_from(
            [
                ("linkbox", "outside-a"),
                ("linkbox", "outside-b"),
                ("linkbox", "nowhere"),
                ("linked.py", "outside-a/one.py"),
                ("linked.py", "outside-b/one.py"),
                ("linked.py", "nowhere.py"),
                ("linked.py", "outside-a"),
            ]
        ),
    )
    def retarget(self, place: str, names: tuple[str, str]) -> None:
        link, target = names
        self.world.retarget(self.world.places[place] / link, str(self.folder / target))
        self.changed()

    @rule(where=st.sampled_from(["outside-a", "outside-b", "nowhere", ""]))
    def write_path_file(self, where: str) -> None:
        self.world.write_path_file(where)
        self.arms.restart()
        self.is_level = False
        self.changed()

    @rule(path=st.permutations(["project", "second", "via"]), count=st.integers(1, 3))
    def change_path(self, path: list[str], count: int) -> None:
        self.path = path[:count]
        self.changed()

    def teardown(self) -> None:
        if not hasattr(self, "arms"):
            return
        try:
            self.arms.restart()
            self.velo.wait_learned()
        finally:
            type(self).served += self.arms.served
            type(self).images += self.arms.images
            shutil.rmtree(self.folder, ignore_errors=True)


def run(
    interpreter: Interpreter, base: Path, steps: int, *, check: str = "stat", derandomize: bool = False
) -> type[Staleness]:
    """At least this many steps, in walks of at most fifty. The first is always the dullest that can be."""
    machine = type("Staleness", (Staleness,), {"check": check, "base": base, "interpreter": interpreter})
    length = min(steps // 5, 50)
    while machine.steps < steps:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=max(1, (steps - machine.steps) // length),
                stateful_step_count=length,
                # A shorter walk to the same place would take minutes to find; the whole one is printed.
                phases=[Phase.generate],
                report_multiple_bugs=False,
                deadline=None,
                database=None,
                derandomize=derandomize,
                suppress_health_check=list(HealthCheck),
            ),
        )
    served = f"{machine.served} modules served, {machine.images} from images"
    print(f"{interpreter.name}: {machine.steps} steps, {served}, check {check}")
    return machine


def test_changes_at_random(interpreter: Interpreter, base_python: Path) -> None:
    """A short walk, the same each time."""
    assert run(interpreter, base_python, 60, derandomize=True).served > 100


def test_a_start_that_does_not_ask_is_found_out(interpreter: Interpreter, base_python: Path) -> None:
    """The walk notices a Velo that believes what it has learned."""
    with pytest.raises(AssertionError, match="what would be right"):
        run(interpreter, base_python, 60, check="none", derandomize=True)


@pytest.mark.core
@pytest.mark.slow
def test_many_changes_at_random(interpreter: Interpreter, base_python: Path) -> None:
    """A long walk, another each time; `VELO_TEST_STEPS` says how long."""
    assert run(interpreter, base_python, MANY).served > MANY


@pytest.mark.slow
def test_many_changes_at_random_asked_once_per_root(interpreter: Interpreter, base_python: Path) -> None:
    """Each change is accompanied by an installation, which is what check `root` promises to see."""
    run(interpreter, base_python, MANY // 8, check="root")

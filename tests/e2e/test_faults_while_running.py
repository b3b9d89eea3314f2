# SPDX-License-Identifier: Apache-2.0
"""What befalls the store, or the program, in the middle of a run: nobody notices but `velo doctor`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_faults import injection
from tests.support.running import LIMIT, VELO, Velo
from tests.support.tree import Tree

HALF = {
    "one.py": "VALUE = 1\n",
    "two.py": "import re\nVALUE = re.compile('t+wo').pattern\n",
    "box/__init__.py": "",
    "box/deep.py": "VALUE = 3\n",
}
REST = """
import two, box.deep, json, decimal
print(one.VALUE, two.VALUE, box.deep.VALUE, json.dumps([1]), decimal.Decimal(1))
"""


def put_a_file(home: Path) -> None:
    shutil.rmtree(home)
    home.write_text("")


def put_another(home: Path) -> None:
    shutil.rmtree(home)
    for name in ("manifests/v1", "packs/v1", "run"):
        (home / name).mkdir(parents=True, mode=0o700)


def shut(home: Path) -> None:
    for folder, _, _ in os.walk(home, topdown=False):
        os.chmod(folder, 0)


BEFALLS: dict[str, Callable[[Path], object]] = {
    "removed": shutil.rmtree,
    "moved": lambda home: home.rename(home.with_name("elsewhere")),
    "a file in its place": put_a_file,
    "another in its place": put_another,
    "open to all": lambda home: home.chmod(0o777),
    "shut": shut,
}


@pytest.mark.parametrize("learns", [False, True], ids=["readonly", "learning"])
@pytest.mark.parametrize("what", BEFALLS)
def test_the_store_goes_while_a_program_runs(tree: Tree, velo: Velo, what: str, learns: bool) -> None:
    """Half of the program is imported, then the store is another or gone; so it is when the program ends."""
    tree.write(HALF | {"app.py": "import one\nprint('half', flush=True)\ninput()\n" + REST})
    for _ in range(2):
        velo.learn("app.py", stdin="\n")
    plain = velo.plain("app.py", stdin="\n")
    variables: dict[str, str | None] = {**injection(velo), "VELO_STATS": None}
    if learns:
        variables["VELO_READONLY"] = None
    program = subprocess.Popen(
        [velo.python, "app.py"],
        cwd=velo.cwd,
        env=velo.plain_environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    first = program.stdout.readline()
    BEFALLS[what](velo.home)
    try:
        out, err = program.communicate("\n", timeout=LIMIT)
    finally:
        if what == "shut":
            for folder in (velo.home, *velo.home.rglob("*")):
                folder.chmod(0o700)

    assert (first + out, err, program.returncode) == plain.answer


@pytest.mark.parametrize("spare", [1, 2, 3, 6])
def test_few_descriptors_are_left(tree: Tree, velo: Velo, spare: int) -> None:
    """A program that has used up its descriptors but a few imports what it can import without Velo."""
    take = f"""
import one, os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    for _ in range({spare}):
        os.close(taken.pop())
"""
    # Who learns needs descriptors as well, so another program does.
    tree.write(HALF | {"app.py": take + REST, "other.py": "import one" + REST})
    velo.learn("other.py")

    result = velo.run("app.py")

    assert result.answer == velo.plain("app.py").answer
    assert result.served >= 4


PARTS = ("", "manifests", "manifests/v1/*/*.velo", "manifests/v1/*/remembered.table", "packs", "packs/v1/*/*")
PARTS += ("run", "run/hook", "run/hook/*", "run/learner", "run/*.lock", "run/ahead")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_store_may_not_be_read(tree: Tree, velo: Velo, part: str) -> None:
    """EACCES, which root meets as well once it has given up its privileges."""
    guard = ["setpriv", "--bounding-set", "-all"] if os.geteuid() == 0 else []
    if guard and shutil.which(guard[0]) is None:
        pytest.skip("needs setpriv, to be without privileges")
    tree.write(HALF | {"app.py": "import one" + REST, "new.py": "import one, unknown\n", "unknown.py": ""})
    for _ in range(2):
        velo.learn("app.py")
    variables = {**injection(velo), "VELO_READONLY": None, "VELO_STATS": None}
    paths = sorted(velo.home.glob(part)) if part else [velo.home]
    modes = {path: path.stat().st_mode & 0o777 for path in paths}
    for name in ("app.py", "new.py"):
        plain = velo.plain(name)
        for path in paths:
            path.chmod(0)
        try:
            done = subprocess.run(
                [*guard, velo.python, name],
                cwd=velo.cwd,
                env=velo.plain_environment(**variables),
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
            assert (done.stdout, done.stderr, done.returncode) == plain.answer, name
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        velo.wait_learned()


@pytest.mark.slow
def test_hundred_interpreters_start_while_the_store_is_rewritten(tree: Tree, velo: Velo) -> None:
    """Each sees a whole manifest or none, whichever moment it starts at; some are served."""
    tree.write(HALF | {"app.py": "import one" + REST})
    velo.ingest()
    plain = velo.plain("app.py").answer
    variables = injection(velo)
    environment = velo.plain_environment(**variables)
    statistics = Path(variables["VELO_STATS"])
    statistics.unlink(missing_ok=True)
    turn = 0
    ingest = None
    running: list[subprocess.Popen[str]] = []
    answers = []
    while len(answers) < 100:
        if ingest is None or ingest.poll() is not None:
            assert ingest is None or ingest.returncode == 0
            turn += 1
            (tree / f"more{turn}.py").write_text(f"VALUE = {turn}\n")
            command = [*VELO, "ingest", "--python", str(velo.python), str(velo.cwd)]
            ingest = subprocess.Popen(command, env=velo.velo_environment(), stdout=subprocess.DEVNULL)
        while len(running) < 10 and len(running) + len(answers) < 100:
            running.append(
                subprocess.Popen(
                    [velo.python, "app.py"],
                    cwd=velo.cwd,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for each in [each for each in running if each.poll() is not None]:
            answers.append((*each.communicate(), each.returncode))
            running.remove(each)
        time.sleep(0.005)
    assert ingest.wait(LIMIT) == 0

    assert answers == [plain] * 100
    served = [line for line in statistics.read_text().splitlines() if '"served": 0,' not in line]
    print(f"{turn} ingests, {len(served)} of 100 served")
    assert turn > 1
    assert len(served) > 50


@pytest.mark.core
def test_a_program_that_ends_without_memory(tree: Tree, velo: Velo) -> None:
    """Where every request for memory fails, the exit functions fail; the program ends all the same."""
    tree.write({"app.py": "import json, _testcapi\n_testcapi.set_nomemory(0)\n"})
    plain = velo.plain("app.py")
    if "No module named" in plain.stderr:
        pytest.skip("this Python cannot be told to have no memory")

    for _ in range(3):
        assert velo.learn("app.py").code == plain.code

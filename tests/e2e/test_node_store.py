# SPDX-License-Identifier: Apache-2.0
"""Node programs and a store that is full, read-only, somebody else's, gone, or written to by many at once:
they do what they do without it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import nodes
from tests.support.nodeprograms import NodeVelo
from tests.support.running import VELO
from tests.support.tree import Tree

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount or to be somebody else")
MODULES = 30
APP = {
    "app.js": f"for (let n = 0; n < {MODULES}; n++) console.log(n, require('./part' + n).length)\n",
    **{f"part{number}.js": f"module.exports = '{'x' * 4000}{number}'\n" for number in range(MODULES)},
}


@pytest.fixture
def project(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "project").write(APP)


@pytest.fixture
def velo(tmp_path: Path, project: Tree) -> NodeVelo:
    try:
        return NodeVelo(tmp_path / "store", nodes.node(nodes.HERE), project.folder)
    except nodes.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=160k,mode=700", "none", place]
    if subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@as_root
@pytest.mark.parametrize(
    "room", [0, 40960, *(pytest.param(room, marks=pytest.mark.slow) for room in (4096, 16384, 98304))]
)
def test_full_disk(velo: NodeVelo, small_disk: Path, room: int) -> None:
    """A store on a disk that is full, or fills up while programs or their learners write."""
    plain = velo.plain("app.js")
    velo.home = small_disk / "velo"
    velo.run("-e", "0")  # The store is there before the disk is full.
    filler = small_disk / "filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            while file.write(b"x" * 4096) == 4096:
                pass
    except OSError:
        pass
    os.truncate(filler, max(0, filler.stat().st_size - room))

    for _ in range(4):
        result = velo.learn("app.js")
        assert result.answer == plain.answer
        assert result.errors == 0, result.stats

    left = [path.name for path in velo.home.rglob("*") if path.name.startswith(".tmp")]
    left += [path.name for path in (velo.home / "run/node").glob("*.units")]
    assert not left, "unfinished files were left behind"


@as_root
def test_readonly_disk(velo: NodeVelo, project: Tree, small_disk: Path) -> None:
    """A learned store on a disk that became read-only serves, and nobody complains that it is."""
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    velo.home = small_disk / "velo"
    velo.same("app.js", served=MODULES)
    for _ in range(100):  # A learner that has just ended still has files open for a moment.
        if subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True).returncode == 0:
            break
        time.sleep(0.1)
    project.write(
        {"new.js": "console.log(require('./part1').length, require('./unknown'))\n", "unknown.js": ""}
    )

    assert velo.differs_not("app.js").served > MODULES
    velo.differs_not("new.js")


@as_root
@pytest.mark.parametrize("part", ["", "indexes", "packs"])
def test_what_others_own_is_not_believed(velo: NodeVelo, part: str) -> None:
    """Neither a store, nor an index, nor a pack of somebody else is executed, whoever that is."""
    velo.same("app.js", served=MODULES)
    paths = [path for path in (velo.home / part).rglob("*") if path.is_file()] if part else [velo.home]
    for path in paths:
        os.chown(path, 12345, -1)
    environment = {**run_environment(velo), "VELO_READONLY": "1"}

    done = subprocess.run(
        [velo.python, "app.js"], cwd=velo.cwd, env=environment, capture_output=True, text=True
    )

    assert (done.stdout, done.stderr, done.returncode) == velo.plain("app.js").answer
    statistics = velo.folder / "own.jsonl"
    assert not statistics.exists() or '"served":0,' in statistics.read_text()


def run_environment(velo: NodeVelo) -> dict[str, str]:
    """What `velo run` gives to programs, for starting some without it: it would mend the store."""
    said = subprocess.run([*VELO, "run", "--", "env", "-0"], env=velo.velo_environment(), capture_output=True)
    pairs = (pair.split("=", 1) for pair in said.stdout.decode().split("\0") if pair)
    return {**dict(pairs), "VELO_STATS": str(velo.folder / "own.jsonl")}


def test_many_programs_teach_at_once(velo: NodeVelo, project: Tree) -> None:
    """Programs that start and end together, all with something to learn, while learners write: each answers
    as plain Node does, and in the end all is learned and nothing unfinished is left.
    """
    environment = run_environment(velo)
    answers = []
    for turn in range(4):
        project.write({f"part{turn}.js": f"module.exports = 'turn {turn}'.repeat({turn + 1})\n"})
        for number in range(3):
            project.write({f"own{turn}{number}.js": f"console.log(require('./app'), {number})\n"})
        commands = [
            [velo.python, name] for name in ("app.js", *(f"own{turn}{number}.js" for number in range(3)))
        ] * 2
        running = [
            subprocess.Popen(
                words,
                cwd=velo.cwd,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for words in commands
        ]
        answers += [(*process.communicate(timeout=60), process.returncode) for process in running]
        assert answers[-len(commands) :] == [velo.plain(words[1]).answer for words in commands]
    velo.wait_learned()

    assert velo.learn("app.js").answer == velo.plain("app.js").answer
    assert velo.learn("own32.js").answer == velo.plain("own32.js").answer
    assert velo.run("own32.js").served == MODULES + 2
    left = [
        path.name for path in velo.home.rglob("*") if path.name.startswith(".tmp") or path.suffix == ".units"
    ]
    assert not left


def test_a_store_that_goes_while_a_program_runs(velo: NodeVelo, project: Tree) -> None:
    """What is not yet read of a store that is removed comes from the sources."""
    project.write(
        {
            "goes.js": """
                require('./part1');
                const { GOING } = process.env;
                if (GOING) require('fs').rmSync(GOING, { recursive: true, force: true });
                setTimeout(() => require('./app'), 5);
                """
        }
    )
    velo.same("goes.js", served=MODULES)
    plain = velo.plain("goes.js")

    result = velo.run("goes.js", env={"GOING": str(velo.home)})

    assert result.answer == plain.answer
    shutil.rmtree(velo.home, ignore_errors=True)
    velo.same("goes.js", served=MODULES)


@pytest.mark.parametrize("spare", [0, 1, 2, 4])
def test_few_descriptors_are_left(velo: NodeVelo, project: Tree, spare: int) -> None:
    """A program that has used up its descriptors fails where it would, with the words it would."""
    project.write(
        {
            "few.js": f"""
                const fs = require('fs');
                require('./part1');
                const open = [];
                try {{
                  for (;;) open.push(fs.openSync('/dev/null'));
                }} catch (error) {{ console.log(error.code); }}
                for (let n = 0; n < {spare}; n++) fs.closeSync(open.pop());
                try {{
                  console.log(require('./part2').length);
                }} catch (error) {{ console.log(error.message); }}
                for (const each of open) fs.closeSync(each);
                console.log(require('./part3').length);
                """
        }
    )
    velo.environment["LIMITED"] = "1"
    limited = ["sh", "-c", 'ulimit -n 60; exec "$0" "$@"', velo.python, "few.js"]
    plain = subprocess.run(
        limited, cwd=velo.cwd, env=velo.plain_environment(), capture_output=True, text=True
    )

    for _ in range(3):
        result = velo.run(command=limited)
        velo.wait_learned()
        assert result.answer == (plain.stdout, plain.stderr, plain.returncode)

# SPDX-License-Identifier: Apache-2.0
"""Learning happens behind the user's back: after the program, once, quietly, keeping nobody waiting."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.running import LIMIT, VELO, Velo, is_locked
from tests.support.tree import Tree

APP = {"app.py": "import helper, json; print(helper.VALUE)\n", "helper.py": "VALUE = 1\n"}


def files_of(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.core
def test_ingest_then_first_run_is_served(tree: Tree, velo: Velo) -> None:
    """After `velo ingest` of the project even the first run is served."""
    tree.write(APP).ingest()

    result = velo.run("app.py")

    assert result.answer == velo.plain("app.py").answer
    assert result.served >= 1


def test_what_is_ingested_after_learning_is_served(tree: Tree, velo: Velo) -> None:
    """What was learned said that nothing was ingested; what is ingested later is found all the same."""
    tree.write({"app.py": "import known\n", "known.py": "", "other/app.py": "import unknown\n"})
    tree.write({"other/unknown.py": "NAME = 'unknown'\n"})
    velo.both("app.py", served=1)

    velo.ingest(velo.cwd / "other")

    for program, served in (("app.py", 1), ("other/app.py", 1)):
        assert velo.run(program, env={"VELO_READONLY": "1"}).served == served


@pytest.mark.core
def test_ingest_of_an_environment(tree: Tree, velo: Velo, python: Path, site_packages: Tree) -> None:
    """After `velo ingest` of a virtual environment what is installed there is served at once."""
    site_packages.write({"library/__init__.py": "from library import deep\n", "library/deep.py": ""})
    tree.write({"app.py": "import library, json; print(library.deep.__file__)"})
    result = velo.command("ingest", python.parents[1])
    assert result.code == 0, result.stderr

    result = velo.run("app.py")

    assert result.answer == velo.plain("app.py").answer
    assert result.served >= 4  # library, library.deep, json and its parts


def test_learned_store_comes_to_rest(tree: Tree, velo: Velo) -> None:
    """Once everything is learned, another run writes nothing at all."""
    tree.write(APP)
    velo.learn("app.py")
    velo.learn("app.py")
    before = files_of(velo.home)

    velo.learn("app.py")

    assert before == files_of(velo.home)


def test_second_program_learns_its_own(tree: Tree, velo: Velo) -> None:
    """What one program learned is kept when another one learns."""
    tree.write(APP | {"other.py": "import separate, more.inner", "separate.py": "", "more/inner.py": ""})
    velo.learn("app.py")
    velo.learn("other.py")

    assert velo.run("app.py").served >= 1
    assert velo.run("other.py").served >= 1


def test_disabled(tree: Tree, velo: Velo) -> None:
    """VELO_DISABLE=1 switches everything off: nothing is served, counted, learned or written."""
    tree.write(APP)
    velo.learn("app.py")
    before = files_of(velo.home)

    result = velo.learn("app.py", env={"VELO_DISABLE": "1"})

    assert result.answer == velo.plain("app.py").answer
    assert result.stats == ()
    assert before == files_of(velo.home)


def test_disabled_from_the_start(tree: Tree, velo: Velo) -> None:
    """VELO_DISABLE=1 on a fresh machine leaves no store behind that a program filled."""
    tree.write(APP)

    velo.learn("app.py", env={"VELO_DISABLE": "1"})

    assert not list(velo.home.rglob("*.pack")) and not list(velo.home.rglob("*.velo"))


def test_readonly_uses_but_does_not_learn(tree: Tree, velo: Velo) -> None:
    """VELO_READONLY=1 serves what is known and learns and writes nothing."""
    tree.write(APP | {"new.py": "import helper, unknown\n", "unknown.py": ""})
    velo.learn("app.py")
    before = files_of(velo.home)

    known = velo.learn("app.py", env={"VELO_READONLY": "1"})
    unknown = velo.learn("new.py", env={"VELO_READONLY": "1"})

    assert known.served >= 1 and unknown.code == 0
    assert before == files_of(velo.home)


def test_readonly_on_a_fresh_machine(tree: Tree, velo: Velo) -> None:
    """VELO_READONLY=1 without a store is a plain run that makes no store."""
    tree.write(APP)

    result = velo.learn("app.py", env={"VELO_READONLY": "1"})

    assert result.answer == velo.plain("app.py").answer
    assert not velo.home.exists()


def test_verify(tree: Tree, velo: Velo) -> None:
    """VELO_VERIFY=1 checks every piece before use, and sound pieces are used."""
    tree.write(APP)

    velo.both("app.py", env={"VELO_VERIFY": "1"})


@pytest.mark.core
def test_nobody_waits_for_the_learner(tree: Tree, velo: Velo) -> None:
    """`velo run -- program | cat` ends with the program: the learner holds no end of the pipe."""
    tree.write(APP)
    environment = velo.velo_environment()
    pipe = subprocess.Popen(
        [*VELO, "run", "--", str(velo.python), "app.py"],
        cwd=velo.cwd,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with pipe:
        assert pipe.wait(LIMIT) == 0
        learning = any(is_locked(lock) for lock in velo.locks())
        began = time.monotonic()
        out, err = pipe.communicate(timeout=LIMIT)
        waited = time.monotonic() - began
        still_learning = any(is_locked(lock) for lock in velo.locks())

    assert (out, err) == (b"1\n", b"")
    assert learning, "nothing was learning when the program ended: the story proves nothing"
    assert still_learning or waited < 0.1
    velo.wait_learned()


def test_inherited_descriptors_are_not_kept(tree: Tree, velo: Velo) -> None:
    """A pipe that the program inherited as descriptor 5 is closed when the program ends."""
    tree.write(APP)
    reading, writing = os.pipe()
    try:
        command = 'exec 5>&"$PIPE"; exec "$@"'
        environment = velo.velo_environment(PIPE=str(writing))
        subprocess.run(
            ["bash", "-c", command, "-", *VELO, "run", "--", str(velo.python), "app.py"],
            cwd=velo.cwd,
            env=environment,
            pass_fds=[writing],
            check=True,
            capture_output=True,
        )
        learning = any(is_locked(lock) for lock in velo.locks())
        os.close(writing)
        writing = -1
        began = time.monotonic()
        assert os.read(reading, 1) == b""  # End of file: nobody else has the writing end.
        waited = time.monotonic() - began
        still_learning = any(is_locked(lock) for lock in velo.locks())
    finally:
        for descriptor in (reading, writing):
            if descriptor >= 0:
                os.close(descriptor)

    assert learning
    assert still_learning or waited < 0.1
    velo.wait_learned()


def test_learner_is_out_of_the_way(tree: Tree, velo: Velo) -> None:
    """The learner has left the session, the terminal, the process group and the current folder of the
    program.
    """
    tree.write(APP)
    velo.run("app.py")

    found: dict[int, tuple[bool, bool, str]] = {}
    while any(is_locked(lock) for lock in velo.locks()):
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                if is_learner(pid, velo):
                    away = os.getsid(pid) != os.getsid(0), os.getpgid(pid) != os.getpgid(0)
                    found[pid] = (*away, os.readlink(f"/proc/{pid}/cwd"))
            except OSError:
                continue

    assert found, "the learner was not seen"
    # It reads the project's settings first, where the program stood; a moment later it has left.
    assert all(facts == (True, True, "/") for facts in found.values()), found


def is_learner(pid: int, velo: Velo) -> bool:
    """Whether a process has this test's store in its environment or command line, and is not us."""
    try:
        told = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return os.fsencode(velo.home) in told and pid != os.getpid()


def test_hundred_programs_end_at_once(tree: Tree, velo: Velo) -> None:
    """A hundred programs that end together start one learner at a time, and all of them end well."""
    tree.write(APP)
    started = """
        for _ in $(seq 100); do "$@" >> "$OUT" 2>&1 || echo failed >> "$OUT" & done; wait
        """
    out = velo.folder / "out"
    prepared = velo.run("-c", "pass")  # Makes the store, as the first `velo run` ever does.
    assert prepared.code == 0
    velo.wait_learned()
    child = velo.run("-c", "import json, os; print(json.dumps(dict(os.environ)))").json
    velo.wait_learned()
    environment = {**child, "OUT": str(out), "VELO_STATS": str(velo.folder / "hundred.jsonl")}

    program = subprocess.Popen(
        ["bash", "-c", started, "-", str(velo.python), "app.py"], cwd=velo.cwd, env=environment
    )
    most = 0
    while program.poll() is None:
        most = max(most, count_learners(velo))
        time.sleep(0.05)
    velo.wait_learned()

    assert out.read_text().split() == ["1"] * 100
    assert most == 1, f"{most} learners at once"
    assert velo.run("app.py").served >= 1


def count_learners(velo: Velo) -> int:
    """Distinct sessions that learn: a learner and its compiling workers are one, and one that has given its
    lock back and only has to end is none.
    """
    sessions = set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            has_lock = b"FLOCK" in Path(f"/proc/{pid}/fdinfo/3").read_bytes()
            if b"learn" in command and has_lock and is_learner(pid, velo):
                sessions.add(os.getsid(pid))
        except OSError:
            continue
    return len(sessions)


def test_learner_that_cannot_start(tree: Tree, velo: Velo) -> None:
    """A learner that is gone costs speed and nothing else."""
    tree.write(APP)
    velo.run("-c", "pass")
    velo.wait_learned()
    (velo.home / "run" / "learner").write_bytes(b"/no/such/learner\0learn")
    environment = velo.velo_environment()
    injected = velo.run("-c", "import json, os; print(json.dumps(dict(os.environ)))").json
    (velo.home / "run" / "learner").write_bytes(b"/no/such/learner\0learn")

    done = subprocess.run(
        [velo.python, "app.py"],
        cwd=velo.cwd,
        env={**environment, "PYTHONPATH": injected["PYTHONPATH"]},
        capture_output=True,
        timeout=LIMIT,
    )

    assert (done.stdout, done.stderr, done.returncode) == (b"1\n", b"", 0)


def test_two_programs_at_once(tree: Tree, velo: Velo) -> None:
    """Two programs that run and learn at the same time disturb neither each other nor the store."""
    tree.write(
        {"one.py": "import a_one, time; time.sleep(.2)", "two.py": "import a_two, time; time.sleep(.2)"}
    )
    tree.write({"a_one.py": "", "a_two.py": "", "sub/three.py": ""})
    for _ in range(3):
        programs = [
            subprocess.Popen(
                [*VELO, "run", "--", str(velo.python), name], cwd=velo.cwd, env=velo.velo_environment()
            )
            for name in ("one.py", "two.py")
        ]
        assert [each.wait(LIMIT) for each in programs] == [0, 0]
        velo.wait_learned()

    assert velo.run("one.py").served >= 1
    assert velo.run("two.py").served >= 1


def test_rewritten_store_under_running_programs(tree: Tree, velo: Velo) -> None:
    """Programs that start while the store is written anew, again and again, see all of it or nothing."""
    tree.write(APP)
    velo.learn("app.py")
    programs = [
        subprocess.Popen(
            [*VELO, "run", "--", str(velo.python), "app.py"],
            cwd=velo.cwd,
            env=velo.velo_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(10)
    ]
    for turn in range(3):
        tree.write({f"more{turn}.py": ""})
        velo.ingest(tree.folder)

    for program in programs:
        with program:
            assert program.communicate(timeout=LIMIT)[0] == b"1\n"
            assert program.returncode == 0
    velo.wait_learned()


def test_killed_learner(tree: Tree, velo: Velo) -> None:
    """A learner killed at any moment leaves a store that the next run completes."""
    tree.write(APP)
    for delay in (0.0, 0.1, 0.25, 0.5):
        velo.run("app.py")
        time.sleep(delay)
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            if is_learner(pid, velo):
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
        velo.wait_learned()
        for record in (velo.home / "run").glob("*.vain"):  # After an attempt in vain the hook waits.
            record.unlink()

    velo.both("app.py")

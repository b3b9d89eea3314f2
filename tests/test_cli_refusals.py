# SPDX-License-Identifier: Apache-2.0
"""What a command refuses: one line says what, one line says what to do, and nothing was written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.running import VELO, Result, Velo, start
from tests.support.tree import Tree


def refused(result: Result, code: int) -> str:
    """The message of a refusal, which has a hint and no traceback."""
    assert (result.code, result.stdout) == (code, ""), result.stderr
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    return error


@pytest.fixture
def app(tree: Tree) -> Tree:
    return tree.write({"app.py": "import helper", "helper.py": ""})


def test_a_forgotten_variable_is_no_folder(velo: Velo, app: Tree) -> None:
    """`velo ingest "$PROJECT"` without that variable must not take in the current folder."""
    assert "no folder" in refused(velo.command("ingest", ""), 2)
    assert not velo.home.exists()


@pytest.mark.parametrize("output", ["folder", "file/app.velo"])
def test_a_place_that_cannot_hold_the_manifest_is_named(velo: Velo, app: Tree, output: str) -> None:
    """By the name that the user gave it, and not by that of a temporary file."""
    (velo.folder / "folder").mkdir()
    (velo.folder / "file").write_text("")
    target = velo.folder / output

    result = velo.command("ingest", "--python", velo.python, "--output", target, ".")

    assert f"could not write {target}: " in refused(result, 1)
    assert not list(velo.folder.glob(".tmp-*"))


def test_a_project_that_may_not_be_read_is_refused(velo: Velo, app: Tree) -> None:
    """An empty manifest would only look like success."""
    guard = ["setpriv", "--bounding-set", "-all"] if os.geteuid() == 0 else []
    if guard and not shutil.which(guard[0]):
        pytest.skip("needs setpriv, to be without privileges")
    folder = velo.folder / "closed"
    folder.mkdir(mode=0)

    command = [*guard, *VELO, "ingest", "--python", velo.python, folder]
    result = start(command, cwd=velo.cwd, environment=velo.velo_environment())

    assert f"cannot read {folder}" in refused(result, 1)


def test_a_store_that_is_a_link_to_itself_is_named(velo: Velo, app: Tree) -> None:
    """Whatever a system can say about a path comes with a hint."""
    velo.home.symlink_to(velo.home)

    assert "symbolic links" in refused(velo.command("ingest", "--python", velo.python, "."), 1)
    assert "symbolic links" in refused(velo.command("status"), 1)


def test_a_folder_that_is_gone_is_named(velo: Velo, app: Tree) -> None:
    """A shell can stand in a folder that somebody has removed."""
    command = ["sh", "-c", 'mkdir gone; cd gone; rmdir ../gone; exec "$@"', "sh", *VELO, "ingest", "."]

    result = start(command, cwd=velo.cwd, environment=velo.velo_environment())

    assert "the current folder" in refused(result, 1)


@pytest.mark.parametrize("words", [["ingest", "--python", "{python}", "."], ["config", "show"]])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_answer_that_does_not_arrive_is_an_error(velo: Velo, app: Tree, words: list[str]) -> None:
    """`velo status > report` on a full disk; the first and the short way of an ingest."""
    command = [*VELO, *(word.format(python=velo.python) for word in words)]
    full = ["sh", "-c", 'exec "$@" > /dev/full', "sh", *command]

    for _ in range(2):
        result = start(full, cwd=velo.cwd, environment=velo.velo_environment())
        assert refused(result, 1) == "error: could not write the answer: no space left on device"
    assert velo.command("status", env={"VELO_HOME": "/no/such/store"}).code == 10
    deaf = ["sh", "-c", 'exec "$@" 2> /dev/full', "sh", *VELO, "status"]
    environment = velo.velo_environment(VELO_HOME="/no/such/store")
    assert start(deaf, cwd=velo.cwd, environment=environment).code == 10


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_good_as_dev_null(velo: Velo, app: Tree, streams: str) -> None:
    """Daemons close them; no file of the store may get their numbers."""
    for words in (["ingest", "--python", velo.python, "."], ["doctor", "--python", velo.python], ["verify"]):
        command = ["sh", "-c", f'exec "$@" {streams}', "sh", *VELO, *words]
        assert start(command, cwd=velo.cwd, environment=velo.velo_environment()).code == 0, words
    assert velo.command("verify").code == 0
    assert velo.run("app.py").served >= 1


@pytest.mark.parametrize("command", ["trace", "pack"])
@pytest.mark.parametrize(("program", "code"), [("no-such-program", 127), ("/etc", 126)])
def test_what_cannot_start_is_told_as_by_run(velo: Velo, command: str, program: str, code: int) -> None:
    """The same words and the same exit code, whoever starts it."""
    told = refused(velo.command(command, "--", program), code)

    assert told == velo.run(command=[program]).stderr.splitlines()[0]


@pytest.mark.parametrize("content", ["x = [", None])
def test_a_broken_configuration_is_told_in_one_sentence(velo: Velo, content: str | None) -> None:
    """There is no key to name where the whole file is wrong."""
    path = velo.cwd / "velo.toml"
    path.write_bytes(b"\xff" if content is None else content.encode())

    assert f"error: {path}: not valid TOML: " in refused(velo.command("status"), 2)


@pytest.mark.parametrize("name", ["no.velo", "empty.velo", "missing.velo", "."])
def test_explain_is_not_told_by_a_file_that_is_no_manifest(velo: Velo, app: Tree, name: str) -> None:
    """As `velo run --manifest`: an answer from another manifest would mislead."""
    app.write({"no.velo": "hello", "empty.velo": ""})
    velo.learn("app.py")

    result = velo.command("explain", "--python", velo.python, "--manifest", name, "helper")

    assert name in refused(result, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ingest", "."],
        ["pack", "--", "true"],
        ["store", "share"],
        ["manifest", "tree", "disk:.", "--keep"],
        ["manifest", "export", "out", "--manifest", "disk:.", "--link-mode", "hardlink"],
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_readonly_means_every_command(
    velo: Velo, app: Tree, arguments: list[str], is_there: bool, tmp_path: Path
) -> None:
    """VELO_READONLY=1: use what the store has; learn and write nothing."""
    if is_there:
        velo.learn("app.py")
    before = {path: path.lstat().st_mtime_ns for path in velo.home.rglob("*")}

    message = refused(velo.command(*arguments, env={"VELO_READONLY": "1"}), 1)

    assert "VELO_READONLY" in message
    assert before == {path: path.lstat().st_mtime_ns for path in velo.home.rglob("*")}
    assert velo.home.exists() == is_there


def test_a_question_leaves_no_store_behind(velo: Velo, app: Tree) -> None:
    """`velo explain` prepares the store for what it tries, unless nothing is to be written."""
    answer = velo.command("explain", "--python", velo.python, "helper", env={"VELO_READONLY": "1"})

    assert answer.code == 0
    assert not velo.home.exists()

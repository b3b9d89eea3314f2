# SPDX-License-Identifier: Apache-2.0
"""`velo doctor` finds what keeps Velo from helping, and every complaint carries a way out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import HAS_NATIVE, VELO, Velo, start
from tests.support.tree import Tree

NEEDS_NATIVE = pytest.mark.skipif(not HAS_NATIVE, reason="only native code can use images")


def examine(
    velo: Velo, *flags: str, code: int = 0, **variables: str | None
) -> dict[str, list[dict[str, Any]]]:
    """The report by check; every complaint must have a hint."""
    result = velo.command("doctor", "--python", velo.python, "--json", *flags, env=variables)
    assert result.code == code, result.stdout
    checks = json.loads(result.stdout)["checks"]
    found: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        assert set(check) == {"mark", "name", "text", "hint"}
        assert check["hint"] or check["mark"] == "ok", check
        found.setdefault(check["name"], []).append(check)
    return found


def marks(found: dict[str, list[dict[str, Any]]], name: str) -> list[str]:
    return [check["mark"] for check in found[name]]


def test_a_fresh_machine_is_healthy(velo: Velo) -> None:
    """Before the first run nothing is wrong: every check is ok, and says what to do next."""
    found = examine(velo)

    assert {check["mark"] for checks in found.values() for check in checks} == {"ok"}
    assert "does not exist yet" in found["store"][0]["text"]


@pytest.mark.core
def test_a_learned_environment_is_healthy(velo: Velo, tree: Tree) -> None:
    """After a run: learner, last learn, hook and manifest are all there."""
    tree.write({"app.py": "import helper", "helper.py": ""})
    velo.learn("app.py")

    found = examine(velo)

    assert {check["mark"] for checks in found.values() for check in checks} == {"ok"}
    assert "min ago" in found["last learn"][0]["text"]
    assert found["hook"][0]["text"].startswith("active")
    assert found["manifests"][0]["text"].startswith("upper.velo")
    assert str(velo.python) in found["interpreter"][0]["text"]


def test_the_page_can_be_pasted(velo: Velo) -> None:
    """Plain text, one check a line, hints below, the verdict on stderr."""
    result = velo.command("doctor", "--python", velo.python)

    assert result.code == 0
    assert all(
        line.startswith(("ok    ", "warn  ", "fail  ", "      hint: ")) for line in result.stdout.splitlines()
    )
    assert result.stderr.endswith("0 failed, 0 warnings\n")


@pytest.mark.parametrize("variable", ["VELO_DISABLE", "VELO_READONLY", "PYTHONVERBOSE"])
def test_variables_that_switch_off_are_named(velo: Velo, variable: str) -> None:
    """The most frequent answer to "why is it not faster"."""
    found = examine(velo, **{variable: "1"})

    assert any(variable in check["text"] for check in found["variables"])
    assert "warn" in marks(found, "variables")


@pytest.mark.parametrize("content", ["no manifest", None])
def test_a_named_manifest_that_is_none_is_told(velo: Velo, content: str | None) -> None:
    """Programs pass over it in silence."""
    path = velo.folder / "app.velo"
    if content is not None:
        path.write_text(content)

    found = examine(velo, VELO_MANIFEST=str(path))

    assert [check["mark"] for check in found["variables"]] == ["warn"]
    assert "VELO_MANIFEST" in found["variables"][0]["text"] and str(path) in found["variables"][0]["text"]


def test_flags_are_explained(velo: Velo) -> None:
    """-I, -E and -S cannot be seen from here, so they are told."""
    assert "-I, -E and -S" in examine(velo)["flags"][0]["text"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_made_fails(velo: Velo) -> None:
    """VELO_HOME in a folder of somebody else."""
    assert "fail" in marks(examine(velo, code=1, VELO_HOME="/velo"), "store")


def test_a_store_below_a_file_fails(velo: Velo) -> None:
    """VELO_HOME that can be no folder."""
    (velo.folder / "file").write_text("")

    assert "fail" in marks(examine(velo, code=1, VELO_HOME=str(velo.folder / "file" / "store")), "store")


def test_a_store_that_others_can_write_fails(velo: Velo, tree: Tree) -> None:
    """What lies there is executed: the hook refuses it, and the doctor says so."""
    tree.write({"app.py": ""})
    velo.learn("app.py")
    velo.home.chmod(0o777)

    assert "fail" in marks(examine(velo, code=1), "store")


@pytest.mark.parametrize(("mode", "mark"), [(0o755, "ok"), (0o777, "fail"), (None, "warn")])
def test_a_shared_store_is_judged(velo: Velo, tmp_path: Path, mode: int | None, mark: str) -> None:
    """Whose code comes from there is said; one that others may write, or that is not there, is a finding."""
    folder = tmp_path / "theirs"
    if mode is not None:
        (folder / "manifests").mkdir(parents=True)
        folder.chmod(mode)
    velo.environment["VELO_SHARED"] = str(folder)

    finding = examine(velo, code=int(mark == "fail"))["shared store"][0]

    assert finding["mark"] == mark
    assert str(folder) in finding["text"]


def test_a_broken_learner_is_found(velo: Velo, tree: Tree) -> None:
    """Velo was moved or its environment deleted: the command in the store no longer works."""
    tree.write({"app.py": ""})
    velo.learn("app.py")
    (velo.home / "run" / "learner").write_bytes(b"/no/such/python\0learn")

    assert marks(examine(velo, code=1), "learner") == ["fail"]


def test_a_failed_learning_run_is_told(velo: Velo) -> None:
    """Nobody saw it: it ran detached."""
    velo.run("-c", "pass")
    velo.wait_learned()
    subprocess.run([*_learner(velo)], input=b"nonsense", env=velo.velo_environment(), check=False)

    check = examine(velo)["last learn"][0]
    assert check["mark"] == "warn"
    assert "notes" in check["text"]


def test_a_learner_that_never_ends_is_told(velo: Velo, tree: Tree) -> None:
    """A container's first process takes all others with it when it ends, so each start is a first one."""
    tree.write({"app.py": "import helper", "helper.py": ""})
    velo.run("app.py", env={"VELO_READONLY": None})
    velo.wait_learned()
    for path in [*velo.home.rglob("*.velo"), velo.home / "run" / "last-learn.json"]:
        path.unlink()
    assert examine(velo)["last learn"][0]["mark"] == "ok"

    for path in (velo.home / "run").glob("*.used"):
        os.utime(path, (1e9, 1e9))

    found = examine(velo)["last learn"][0]
    assert found["mark"] == "warn" and "velo ingest" in found["hint"]


def test_a_damaged_manifest_is_found(velo: Velo, tree: Tree) -> None:
    """The program runs on as if Velo were not there; here is why."""
    tree.write({"app.py": "import helper", "helper.py": ""}).ingest()
    path = next(velo.home.rglob("base.velo"))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:200])

    found = examine(velo, code=1)

    assert "fail" in marks(found, "manifests")
    assert "warn" in marks(found, "hook")


@pytest.mark.parametrize(
    ("pattern", "name", "text"),
    [
        ("upper.velo", "manifests", "damaged"),
        ("*.pack", "manifests", "packs were copied, restored or written to"),
        ("*.pack", "hook", "pack missing"),
        ("*.code", "hook code", "is damaged"),
        ("remembered.table", "hook", "remembered: "),
        pytest.param("images.table", "hook", "images: ", marks=NEEDS_NATIVE),
        ("metadata.table", "distributions", "is damaged"),
        ("contents.table", "distributions", "contents.table: "),
        ("learner", "learner", "does not work"),
    ],
)
def test_the_damaged_file_is_named(velo: Velo, tree: Tree, pattern: str, name: str, text: str) -> None:
    """Whatever a start reads and cannot use: programs run as without Velo, and here is why."""
    asks = "import helper, re\nfrom importlib import metadata\nlist(metadata.distributions())"
    tree.write({"app.py": asks, "helper.py": ""})
    for _ in range(3):
        velo.learn("app.py")
    paths = [path for path in velo.home.rglob(pattern) if path.is_file()]
    assert paths
    for path in paths:
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    result = velo.command("doctor", "--python", velo.python, "--json")

    findings = [check for check in json.loads(result.stdout)["checks"] if check["name"] == name]
    assert any(each["mark"] != "ok" and text in each["text"] and each["hint"] for each in findings), findings


def test_lost_packs_are_found(velo: Velo, tree: Tree) -> None:
    """Somebody cleaned the store by hand."""
    tree.write({"app.py": "import helper", "helper.py": ""}).ingest()
    for path in velo.home.rglob("*.pack"):
        path.unlink()

    assert "warn" in marks(examine(velo), "manifests")


@pytest.mark.parametrize("name", ["2.7", "3.10"])
def test_an_unsupported_interpreter_fails(velo: Velo, name: str, tmp_path: Path) -> None:
    """With its version, and what is needed instead."""
    from tests.support import interpreters

    strangers = {each.name: each for each in interpreters.foreign()}
    if name not in strangers:
        pytest.skip(f"no Python {name} here")
    result = velo.command("doctor", "--python", strangers[name].resolve())

    assert result.code == 1
    assert "fail  interpreter" in result.stdout


def test_an_interpreter_may_be_named_from_here(velo: Velo) -> None:
    """`--python .venv/bin/python`, as for every other command."""
    here = os.path.relpath(velo.python, velo.cwd)
    result = velo.command("doctor", "--python", here, "--json")

    assert result.code == 0, result.stdout


def test_a_store_that_cannot_be_entered_is_a_finding(velo: Velo, tree: Tree) -> None:
    """The very thing that people call the doctor for must not end it."""
    tree.write({"app.py": ""})
    velo.learn("app.py")
    velo.home.chmod(0)
    guard = ["setpriv", "--bounding-set", "-all"] if os.geteuid() == 0 else []
    if guard and not shutil.which(guard[0]):
        pytest.skip("root may enter everywhere, and there is no setpriv to give that up")

    command = [*guard, *VELO, "doctor", "--python", velo.python]
    result = start(command, cwd=velo.cwd, environment=velo.velo_environment())
    velo.home.chmod(0o700)

    assert result.code == 1, result.stderr
    assert "fail  store: " in result.stdout
    assert "checks, 1 failed" in result.stderr


def test_a_missing_interpreter_fails(velo: Velo) -> None:
    """A typo in --python."""
    result = velo.command("doctor", "--python", "/no/such/python")

    assert result.code == 1
    assert "fail  interpreter: cannot run" in result.stdout


def test_another_sitecustomize_is_named(velo: Velo, site_packages: Tree) -> None:
    """It is run as before; people who debug want to know that there are two. Debian's Pythons have their own,
    which comes first.
    """
    site_packages.write({"sitecustomize.py": ""})
    next_one = velo.plain("-c", "import sitecustomize; print(sitecustomize.__file__)").stdout.strip()

    assert next_one in examine(velo)["sitecustomize"][0]["text"]
    assert next_one.endswith("sitecustomize.py")


def test_a_wrong_configuration_is_a_warning(velo: Velo) -> None:
    """It does not stop a program, so it has to be seen here."""
    (velo.cwd / "velo.toml").write_text('check = "weekly"\n')

    assert marks(examine(velo), "configuration") == ["warn"]


def test_a_careless_check_is_a_warning(velo: Velo) -> None:
    """`none` on a tree that can change means stale code."""
    assert marks(examine(velo, VELO_CHECK="none"), "check") == ["warn"]


def test_an_enabled_environment_is_recognised(velo: Velo, site_packages: Tree) -> None:
    """Also when it was enabled by a Velo that has moved since."""
    velo.command("enable", velo.python.parents[1])
    assert marks(examine(velo), "enabled") == ["ok"]

    path = site_packages / "velo.pth"
    path.write_text(path.read_text().replace("sitecustomize", "elsewhere"))
    assert marks(examine(velo), "enabled") == ["warn"]


def _learner(velo: Velo) -> list[str]:
    return (velo.home / "run" / "learner").read_text().split("\0")

# SPDX-License-Identifier: Apache-2.0
"""Shadow mode: a manifest that lies is found out, counted and named, and the program gets Python's answer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import Result, Velo
from tests.support.tree import Tree
from velo_import.format import manifest as m

APP = {
    "app.py": "import both, helper, other\nprint(both.VALUE, helper.VALUE, other.VALUE)\n",
    "helper.py": "VALUE = 'helper'\n",
    "other.py": "VALUE = 'other!'\n",
    "both.py": "VALUE = 'module'\n",
    "both/__init__.py": "VALUE = 'package'\n",
}
SHADOW = {"VELO_CHECK": "shadow"}

Change = Callable[[dict[str, m.ModuleRecord]], None]


def remove(modules: dict[str, m.ModuleRecord]) -> None:
    del modules["helper"]


def invent(modules: dict[str, m.ModuleRecord]) -> None:
    modules["invented"] = modules["helper"]._replace(tail="invented")


def exchange_code(modules: dict[str, m.ModuleRecord]) -> None:
    other = modules["other"]
    modules["helper"] = modules["helper"]._replace(pack=other.pack, offset=other.offset, length=other.length)


def forget_package(modules: dict[str, m.ModuleRecord]) -> None:
    modules["both"] = modules["both"]._replace(flags=0)


def lie(velo: Velo, change: Change) -> None:
    """Change what the manifests say of the project's folder, and sign them again."""
    found = sorted((velo.home / "manifests").rglob("*.velo"))
    assert found
    for path in found:
        manifest = m.decode(path.read_bytes())
        folders = []
        for folder in manifest.folders:
            modules = {module.tail: module for module in folder.modules}
            if folder.path == str(velo.cwd):
                change(modules)
            folders.append(folder._replace(modules=tuple(modules.values())))
        path.unlink()
        path.write_bytes(m.encode(manifest._replace(folders=folders)))
        path.chmod(0o600)


def differed(result: Result) -> int:
    return sum(each["differed"] for each in result.stats)


@pytest.fixture
def app(tree: Tree, velo: Velo) -> Tree:
    tree.write(APP)
    velo.both("app.py", served=3)
    return tree


@pytest.mark.core
def test_nothing_to_find(app: Tree, velo: Velo) -> None:
    """Where all is well the program is served as ever, all of it is compared, and nothing differs."""
    plain = velo.plain("app.py")

    result = velo.run("app.py", env=SHADOW)

    assert result.answer == plain.answer
    assert result.served >= 3
    assert differed(result) == 0
    assert sum(each["compared"] for each in result.stats) >= 6  # each found, each loaded
    assert not [reason for reason in result.reasons if reason.startswith("shadow")]


LIES = [
    pytest.param(remove, "app.py", "helper: Velo finds nothing", id="a module left out"),
    pytest.param(invent, "absent.py", "invented: Python finds nothing", id="a module invented"),
    pytest.param(exchange_code, "app.py", "helper: code: co_names", id="another module's code"),
    pytest.param(forget_package, "app.py", "both: origin", id="a package taken for a module"),
]


@pytest.mark.core
@pytest.mark.parametrize(("change", "program", "named"), LIES)
def test_lies_are_found_out(app: Tree, velo: Velo, change: Change, program: str, named: str) -> None:
    """The difference is counted, logged and reported, and the program does what it does without Velo."""
    app.write({"absent.py": "try:\n    import invented\nexcept ImportError as e:\n    print(e)\n"})
    app.write({"other.py": "THIS = VALUE = 'other!'\n"})
    velo.both("app.py", served=3)
    velo.learn("absent.py")
    lie(velo, change)
    log = velo.folder / "log"

    result = velo.run(program, env={**SHADOW, "VELO_LOG": str(log), "VELO_READONLY": "1"})

    assert result.answer == velo.plain(program).answer
    assert differed(result) == 1, result.stats
    assert result.reasons[f"shadow: {named.partition(': ')[2]}"] == 1
    module, _, what = named.partition(": ")
    assert f"{module}: shadow: {what}; Python's answer is used" in log.read_text()


def test_a_lie_would_be_believed_without(app: Tree, velo: Velo) -> None:
    """The lie that these tests tell is one: without shadow mode it changes the program."""
    app.write({"other.py": "THIS = VALUE = 'other!'\n"})
    velo.environment["VELO_REMEMBER"] = "none"  # The lie is told in a pack, and images stand in for packs.
    velo.both("app.py", served=3)
    lie(velo, exchange_code)

    assert velo.run("app.py", env={"VELO_READONLY": "1"}).stdout != velo.plain("app.py").stdout


def test_stale_cached_file_is_pythons_answer(app: Tree, velo: Velo) -> None:
    """An edit of equal size within the second is seen by Velo and not by Python; in shadow mode Python's
    answer counts, as wrong as it is.
    """
    velo.plain("app.py")  # leaves .pyc files
    app.write_unnoticed("helper.py", "VALUE = 'edited'\n")

    plain = velo.plain("app.py")
    result = velo.run("app.py", env=SHADOW)

    assert "helper" in plain.stdout
    assert result.answer == plain.answer
    assert result.reasons["shadow: code: co_consts"] == 1
    assert "edited" in velo.run("app.py").stdout


def test_where_a_module_is_writes_nothing(app: Tree, velo: Velo) -> None:
    """A program that only asks where a module is leaves no cached file behind, as without Velo."""
    app.forget_bytecode()
    app.write({"ask.py": "import importlib.util as u; print(u.find_spec('helper'))"})

    result = velo.run("ask.py", env=SHADOW)

    assert "helper.py" in result.stdout
    assert not (app / "__pycache__").exists()


def test_errors_are_pythons(app: Tree, velo: Velo) -> None:
    """A module that cannot be compiled any more, or raises, fails as it does without Velo."""
    app.write({"app.py": "import helper\n", "helper.py": "VALUE = = 1\n"})
    first = velo.run("app.py", env=SHADOW)
    assert first.answer == velo.plain("app.py").answer

    app.write({"helper.py": "raise ValueError('on purpose')\n"})
    velo.learn("app.py")
    second = velo.run("app.py", env=SHADOW)
    assert second.answer == velo.plain("app.py").answer
    assert differed(first) == differed(second) == 0


def test_children_compare_too(app: Tree, velo: Velo) -> None:
    """A forked child and a started one each count what they saw themselves."""
    app.write(
        {
            "parent.py": """
                import helper, os, subprocess, sys
                subprocess.run([sys.executable, "app.py"], check=True)
                if os.fork() == 0:
                    import other
                    sys.exit(0)
                os.wait()
                """
        }
    )
    velo.both("parent.py")

    result = velo.run("parent.py", env=SHADOW)

    assert result.answer == velo.plain("parent.py").answer
    assert len(result.stats) == 3
    assert all(each["compared"] for each in result.stats)
    assert differed(result) == 0


def test_doctor_sums_up(app: Tree, velo: Velo) -> None:
    """`velo doctor` says how much was compared, and warns with the names of what differed."""

    def shadows(**variables: str) -> list[dict[str, str]]:
        report = json.loads(velo.command("doctor", "--python", velo.python, "--json", env=variables).stdout)
        return [check for check in report["checks"] if check["name"] == "shadow"]

    assert shadows() == []
    velo.learn("app.py", env=SHADOW)
    (seen,) = shadows()
    assert seen["mark"] == "ok"
    assert "of 1 programs compared with Python's, no difference" in seen["text"]
    assert "every answer is compared" in shadows(**SHADOW)[0]["text"]

    lie(velo, remove)
    velo.run("app.py", env=SHADOW)
    (seen,) = shadows()
    assert seen["mark"] == "warn"
    assert "1 differed, Python's were used; the last: helper: Velo finds nothing" in seen["text"]


def test_damaged_records_are_skipped(app: Tree, velo: Velo) -> None:
    """What a full disk or a crash left of the records does not keep the doctor from speaking."""
    velo.learn("app.py", env=SHADOW)
    (path,) = (velo.home / "run").glob("*.shadow")
    with open(path, "ab") as file:
        file.write(b'\xff\n[]\n{"compared": "x"}\n{"compared": 1, "diff')

    report = json.loads(velo.command("doctor", "--python", velo.python, "--json").stdout)

    assert "of 1 programs" in next(each for each in report["checks"] if each["name"] == "shadow")["text"]


def test_records_stay_small(app: Tree, velo: Velo) -> None:
    """However many programs run, what is kept of them is bounded; read-only stores get none."""
    velo.learn("app.py", env={**SHADOW, "VELO_READONLY": "1"})
    assert not list((velo.home / "run").glob("*.shadow*"))
    velo.learn("app.py", env=SHADOW)
    (path,) = (velo.home / "run").glob("*.shadow")
    line = path.read_bytes()
    path.write_bytes(line * ((1 << 18) // len(line) + 1))

    velo.learn("app.py", env=SHADOW)
    velo.learn("app.py", env=SHADOW)

    assert path.read_bytes().count(b"\n") == 1
    assert Path(f"{path}.old").stat().st_size < 1.1 * (1 << 18)


def test_by_flag_and_by_file(app: Tree, velo: Velo) -> None:
    """`--check shadow` and `check = "shadow"` do what the variable does; `velo env` passes it on."""
    assert sum(each["compared"] for each in velo.run("app.py", flags=["--check", "shadow"]).stats)
    app.write({"velo.toml": 'check = "shadow"\n'})
    assert sum(each["compared"] for each in velo.run("app.py").stats)
    assert "VELO_CHECK=shadow" in velo.command("env").stdout.replace("'", "").replace('"', "")


@pytest.mark.core
def test_real_packages_agree(tree: Tree, velo: Velo) -> None:
    """Packages of this very test environment and much of the standard library: thousands of comparisons,
    twin and native, and none differs.
    """
    import click
    import packaging

    names = (
        "asyncio, concurrent.futures, dataclasses, email.mime.text, http.server, json.tool, logging.config"
    )
    names += ", multiprocessing.pool, re, sqlite3, unittest.mock, xml.dom.minidom, click, packaging.version"
    tree.write({"app.py": f"import {names}\nprint('done')\n"})
    folders = {os.path.dirname(os.path.dirname(each.__file__)) for each in (click, packaging)}
    environment = {"PYTHONPATH": os.pathsep.join(sorted(folders))}
    velo.learn("app.py", env=environment)
    velo.learn("app.py", env=environment)

    result = velo.run("app.py", env={**environment, **SHADOW, "VELO_READONLY": "1"})

    assert result.answer == velo.plain("app.py", env=environment).answer
    assert differed(result) == 0, result.reasons
    assert result.served > 150
    assert sum(each["compared"] for each in result.stats) > 300

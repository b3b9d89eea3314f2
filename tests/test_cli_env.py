# SPDX-License-Identifier: Apache-2.0
"""`velo env`, `velo enable`, `velo disable`: injection by hand, in every shell, and out without trace."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree
from velo_import.launch.enable import Site, enabled_files, files_for, find_sites, start_code
from velo_import.launch.environment import node_options
from velo_import.launch.injection import injection_folder, preload_file

ODD_HOME = 'it\'s a "store" $HOME `x` \\ é'


@pytest.mark.parametrize("shell", ["sh", "bash", "zsh", "fish"])
def test_the_output_can_be_evaluated(velo: Velo, shell: str) -> None:
    """Quotes, blanks, dollars and backslashes in a path arrive as they are."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    home = str(velo.folder / ODD_HOME)
    form = {"sh": "posix"}.get(shell, shell)
    code = velo.command("env", "--shell", form, env={"VELO_HOME": home, "PYTHONPATH": "/a b:"}).stdout

    done = subprocess.run(
        [shell, "-c", f'{code}\nprintf \'%s\\n\' "$VELO_HOME" "$PYTHONPATH"'],
        env={"PATH": os.environ["PATH"], "HOME": str(velo.user)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == f"{home}\n{injection_folder()}:/a b:\n"


def test_powershell_quotes_are_doubled(velo: Velo) -> None:
    """PowerShell knows no backslash in single quotes."""
    code = velo.command("env", "--shell", "powershell", env={"VELO_HOME": "/it's"}).stdout

    assert "$env:VELO_HOME = '/it''s'\n" in code


def test_json_is_one_object_of_names_and_values(velo: Velo) -> None:
    """For programs that set the environment themselves."""
    assert velo.command("env", "--json").json == {
        "PYTHONPATH": injection_folder(),
        "NODE_OPTIONS": node_options("", preload_file()),
        "VELO_HOME": str(velo.home),
    }


def test_the_shell_is_taken_from_the_environment(velo: Velo) -> None:
    """A fish user need not say so."""
    assert velo.command("env", env={"SHELL": "/usr/bin/fish"}).stdout.startswith("set -gx PYTHONPATH ")
    assert "; export PYTHONPATH" in velo.command("env", env={"SHELL": "/bin/dash"}).stdout


def test_a_shell_that_evaluated_it_learns_and_serves(velo: Velo, tree: Tree) -> None:
    """`eval "$(velo env)"`, then plain python: the second start is served."""
    tree.write({"app.py": "import helper; print(helper.x)", "helper.py": "x = 1"})
    injected = velo.command("env", "--json").json
    target = velo.folder / "stats"

    for _ in range(2):
        assert velo.plain("app.py", env={**injected, "VELO_STATS": str(target)}).stdout == "1\n"
        velo.wait_learned()
    assert velo.plain("app.py", env={**injected, "VELO_STATS": str(target)}).stdout == "1\n"

    assert '"served": 0' not in target.read_text().splitlines()[-1]


def test_disabled_is_said_aloud(velo: Velo) -> None:
    """Somebody who evaluates this and sees no effect should know why."""
    assert velo.command("env", env={"VELO_DISABLE": "1"}).stderr.startswith("warning: VELO_DISABLE is set")


@pytest.mark.core
def test_enable_serves_plain_and_isolated_python(velo: Velo, site_packages: Tree) -> None:
    """After `velo enable` neither `velo run` nor a variable is needed, and -I and -E work."""
    site_packages.write({"helper.py": "x = 1"})
    assert velo.command("enable", velo.python.parents[1]).code == 0
    target = velo.folder / "stats"

    for flags in ([], [], [], ["-I"], ["-E"]):
        target.unlink(missing_ok=True)
        result = velo.plain(*flags, "-c", "import helper; print(helper.x)", env={"VELO_STATS": str(target)})
        assert result.answer == ("1\n", "", 0)
        velo.wait_learned()
        last = target.read_text()

    assert '"served": 0' not in last


def test_disable_leaves_no_trace(velo: Velo, site_packages: Tree) -> None:
    """The environment is as it was, file by file."""
    site_packages.write({"helper.py": "x = 1"})
    before = site_packages.listing()
    environment = velo.python.parents[1]

    wrote = velo.command("enable", environment, "--json").json["files"]
    removed = velo.command("disable", environment, "--json").json["files"]

    assert sorted(wrote) == sorted(removed)
    assert wrote
    assert site_packages.listing() == before
    assert "nothing to remove" in velo.command("disable", environment).stderr


def test_enable_twice_is_enable_once(velo: Velo, site_packages: Tree) -> None:
    """Doing it again only brings paths up to date."""
    environment = velo.python.parents[1]
    first = velo.command("enable", environment, "--json").json
    assert velo.command("enable", environment, "--json").json == first


def test_an_uninstalled_velo_stays_silent(velo: Velo, site_packages: Tree) -> None:
    """A .pth whose Velo is gone must not print at every start of that Python."""
    site = find_sites(velo.python.parents[1])[0]
    for name, content in files_for(site, "/no/such/folder", str(velo.home)).items():
        site_packages.write({name: content})

    assert velo.plain("-X", "dev", "-c", "print(1)").answer == ("1\n", "", 0)


def test_a_file_of_the_same_name_is_not_ours(velo: Velo, site_packages: Tree) -> None:
    """Neither overwritten nor removed."""
    site_packages.write({"velo.pth": "/somewhere/else\n"})
    environment = velo.python.parents[1]

    result = velo.command("enable", environment)
    velo.command("disable", environment)

    assert result.code == 1
    assert "exists and is not Velo's" in result.stderr
    assert (site_packages / "velo.pth").read_text() == "/somewhere/else\n"


@pytest.mark.parametrize("kind", ["missing", "plain folder", "pypy", "old"])
def test_what_cannot_be_enabled_is_refused_with_a_hint(velo: Velo, tmp_path: Path, kind: str) -> None:
    """A shared Python, another implementation, an old version: exit code 2, and what to do instead."""
    target = tmp_path / "target"
    if kind != "missing":
        target.mkdir()
    if kind in ("pypy", "old"):
        (target / "pyvenv.cfg").write_text("")
        library = "pypy3.10" if kind == "pypy" else "python3.10"
        (target / "lib" / library / "site-packages").mkdir(parents=True)

    result = velo.command("enable", target)

    assert result.code == 2
    assert "\nhint: " in result.stderr


def test_newer_pythons_get_an_entry_point(tmp_path: Path) -> None:
    """From 3.15 on `.start` replaces the import line; site ignores the `.pth` of the same name then."""
    old = files_for(Site(tmp_path, (3, 14)), "/inject", "/store")
    new = files_for(Site(tmp_path, (3, 15)), "/inject", "/store")

    assert set(old) == {"velo.pth"}
    assert set(new) == {"velo.pth", "velo.start", "_velo_start.py"}
    assert new["velo.start"].splitlines()[-1] == "_velo_start:install"
    assert all(content.isascii() for content in new.values())
    for name, content in new.items():
        (tmp_path / name).write_text(content)
    assert {path.name for path in enabled_files(Site(tmp_path, (3, 15)))} == set(new)


def test_the_entry_point_module_works_and_leaves(tmp_path: Path) -> None:
    """Called as site calls it: our sitecustomize runs in its `.pth` mode, and the module goes."""
    inject = tmp_path / 'in"ject é'
    inject.mkdir()
    (inject / "sitecustomize.py").write_text(
        "import sys; sys.seen = (__name__, __file__, VELO_HOME_DEFAULT)\n"
    )
    for name, content in files_for(Site(tmp_path, (3, 15)), str(inject), "/store").items():
        (tmp_path / name).write_text(content)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pkgutil\n"
        "pkgutil.resolve_name('_velo_start:install')()\n"
        "print(sys.seen, '_velo_start' in sys.modules)"
    )
    import sys

    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)

    expected = ("_velo_pth", str(inject / "sitecustomize.py"), "/store")
    assert (done.stdout, done.stderr) == (f"{expected} False\n", "")


def test_start_code_swallows_everything(tmp_path: Path) -> None:
    """Also a sitecustomize that is damaged."""
    damaged = tmp_path / "sitecustomize.py"
    damaged.write_text("def broken(:\n")

    exec(start_code(str(damaged), "/store"), {})


def test_an_environment_that_cannot_be_written_says_so(velo: Velo, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk or somebody else's folder: what failed and what to check, and nothing half-written."""
    import errno

    from velo_import.errors import VeloError
    from velo_import.launch import enable

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise VeloError(f"could not write {path}: {os.strerror(errno.EROFS).lower()}", hint="set VELO_HOME")

    monkeypatch.setattr(enable, "publish", refuse)
    with pytest.raises(VeloError, match=r"velo\.pth: read-only") as caught:
        enable.enable(velo.python.parents[1], str(velo.home))

    assert caught.value.hint == "check the owner and the free space of that folder"

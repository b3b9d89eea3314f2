# SPDX-License-Identifier: Apache-2.0
"""What the user asked for, by flag, variable and file, is what is in force; what cannot be used is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.running import CHECKOUT, Velo
from velo_import.config import env, paths, settings
from velo_import.errors import UsageFault

HOME_KEYS = {"HOME": "/nobody", "XDG_CONFIG_HOME": "/nobody/config", "XDG_CACHE_HOME": "/nobody/cache"}


def load(folder: Path, flags: dict[str, object] | None = None, **variables: str) -> settings.Settings:
    return settings.load({**HOME_KEYS, **variables}, str(folder), flags)


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    """A user who configured nothing gets the cache folder, automatic checks, and learning."""
    found = load(tmp_path)

    assert (found.home, found.check, found.learn_enabled) == ("/nobody/cache/velo", "auto", True)
    assert {value.origin for value in found.values.values()} == {"default"}
    assert found.ingest_jobs is None


def test_precedence_is_flag_variable_project_pyproject_user(tmp_path: Path) -> None:
    """Each weaker source is seen once the stronger one is taken away."""
    project = tmp_path / "project"
    user = tmp_path / "config" / "velo"
    project.mkdir()
    user.mkdir(parents=True)
    (project / "velo.toml").write_text('check = "root"\n')
    (project / "pyproject.toml").write_text('[tool.velo]\ncheck = "none"\n')
    (user / "config.toml").write_text('check = "stat"\n')
    variables = {"XDG_CONFIG_HOME": str(tmp_path / "config")}

    seen = [load(project, {"check": "none"}, VELO_CHECK="stat", **variables).values["check"]]
    seen.append(load(project, VELO_CHECK="stat", **variables).values["check"])
    for name in (project / "velo.toml", project / "pyproject.toml", user / "config.toml"):
        seen.append(load(project, **variables).values["check"])
        name.unlink()
    seen.append(load(project, **variables).values["check"])

    assert [value.value for value in seen] == ["none", "stat", "root", "none", "stat", "auto"]
    assert [value.origin for value in seen] == [
        "flag",
        "variable VELO_CHECK",
        str(project / "velo.toml"),
        str(project / "pyproject.toml"),
        str(user / "config.toml"),
        "default",
    ]


def test_the_nearest_file_upward_counts(tmp_path: Path) -> None:
    """In a subfolder of a project the project's file holds, and its paths are relative to the file."""
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "velo.toml").write_text('home = "far"\n')
    (tmp_path / "a" / "velo.toml").write_text('home = "near"\n')

    assert load(deep).home == str(tmp_path / "a" / "near")


def test_a_pyproject_without_us_is_not_parsed(tmp_path: Path) -> None:
    """Most projects have one; broken or not, it is none of our business."""
    (tmp_path / "pyproject.toml").write_text("[project\n")

    assert load(tmp_path).files == ()


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('chekc = "stat"\n', "chekc", "unknown key"),
        ('check = "sometimes"\n', "check", "must be one of auto, stat, root, none"),
        ("home = 3\n", "home", "must be a path"),
        ("[learn]\nenabled = 1\n", "learn.enabled", "must be true or false"),
        ("[learn]\ncpu_seconds = 0\n", "learn.cpu_seconds", "must be a whole number above zero"),
        ("[ingest]\njobs = true\n", "ingest.jobs", "must be a whole number above zero"),
        ('[store]\nmax_size = "much"\n', "store.max_size", "must be a size like 500MB"),
        ("[store]\nmax_size = 0\n", "store.max_size", "must be a whole number above zero"),
        ("[store]\nmax_size = false\n", "store.max_size", "must be a whole number above zero"),
        ("check = \n", "", "not valid TOML"),
        ("check = 'st\udcffat'\n", "", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_reported_and_not_obeyed(tmp_path: Path, text: str, key: str, message: str) -> None:
    """The value falls back, and the problem carries file, key and what is wanted."""
    (tmp_path / "velo.toml").write_bytes(text.encode("utf-8", "surrogateescape"))

    found = load(tmp_path)

    assert [(problem.file, problem.key) for problem in found.problems] == [(str(tmp_path / "velo.toml"), key)]
    assert found.problems[0].message.startswith(message)
    assert found.check == "auto"


def test_commands_that_report_refuse_a_wrong_value(tmp_path: Path) -> None:
    """A typo in a value must not silently mean the default; an unknown key may belong to a later Velo."""
    (tmp_path / "velo.toml").write_text('check = "sometimes"\n')
    with pytest.raises(UsageFault, match="must be one of"):
        settings.require_valid(load(tmp_path))

    (tmp_path / "velo.toml").write_text("future = 1\n")
    assert settings.require_valid(load(tmp_path)).check == "auto"


def test_validate_says_what_is_wrong(velo: Velo) -> None:
    """`velo config validate` names file, key and fault, hints at the keys, and fails."""
    (velo.cwd / "velo.toml").write_text("[learn]\nfast = true\n")

    result = velo.command("config", "validate")

    assert (result.code, result.stdout) == (1, f"{velo.cwd}/velo.toml: learn.fast: unknown key\n")
    assert "hint: the keys are home, check, learn.enabled" in result.stderr
    problem = {"file": f"{velo.cwd}/velo.toml", "key": "learn.fast", "message": "unknown key"}
    assert velo.command("config", "validate", "--json").stdout.count("unknown key") == 1
    (velo.cwd / "velo.toml").unlink()
    assert velo.command("config", "validate", "--json").json == {"schema": 1, "files": [], "problems": []}
    assert problem["key"] == "learn.fast"


def test_show_names_every_origin(velo: Velo) -> None:
    """`velo config show` is the answer to "why does it use that folder"."""
    (velo.cwd / "velo.toml").write_text('check = "root"\n')

    values = velo.command("config", "show", "--json").json["values"]

    assert values["home"] == {"value": str(velo.home), "origin": "variable VELO_HOME"}
    assert values["check"] == {"value": "root", "origin": f"{velo.cwd}/velo.toml"}
    assert set(values) == {key.name for key in settings.KEYS}
    assert velo.command("config", "path").stdout == f"{velo.cwd}/velo.toml\n"


def test_readme_table_is_the_list_of_variables() -> None:
    """The README documents every variable, in the words of config/env.py."""
    assert env.table() in (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_every_variable_in_the_code_is_documented() -> None:
    """The hook cannot import the list, so its source is searched for names that are not in it."""
    known = {variable.name for variable in env.VARIABLES} | {"VELO_HOME_DEFAULT"}
    sources = [*(CHECKOUT / "velo_import").rglob("*.py"), *(CHECKOUT / "sitecustomize").glob("*.py")]
    used = {name for path in sources for name in re.findall(r"\bVELO_[A-Z_]+\b", path.read_text("utf-8"))}

    assert used <= known, used - known


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere platformdirs itself is asked")
@pytest.mark.parametrize("config", ["", "/somewhere/config"])
def test_user_file_is_where_platformdirs_puts_it(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    """`velo run` cannot afford to import platformdirs, so its rule is repeated, and compared here."""
    import platformdirs

    monkeypatch.setenv("XDG_CONFIG_HOME", config)
    expected = str(Path(platformdirs.user_config_dir("velo")) / "config.toml")

    assert paths.user_file({"XDG_CONFIG_HOME": config}) == expected


@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": None}, {"VELO_HOME": "elsewhere"}], ids=str)
def test_command_line_and_hook_agree_on_the_store(velo: Velo, variables: dict[str, str | None]) -> None:
    """Injected by hand without VELO_HOME, the hook uses the folder that `velo store path` prints."""
    if "VELO_HOME" in variables:
        variables = {"VELO_HOME": str(velo.folder / "elsewhere")}
    else:
        variables = {**variables, "VELO_HOME": None}
    home = Path(velo.command("store", "path", env=variables).stdout.rstrip("\n"))
    home.mkdir(mode=0o700, parents=True)
    target = velo.folder / "stats"

    velo.plain(
        "-c",
        "pass",
        env={**variables, "PYTHONPATH": str(CHECKOUT / "sitecustomize"), "VELO_STATS": str(target)},
    )

    assert target.exists(), f"the hook did not find {home}"

# SPDX-License-Identifier: Apache-2.0
"""Which Python a folder belongs to, and clear refusals of all that is none or not ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from velo_import.errors import VeloError
from velo_import.format.manifest import manifest_key
from velo_import.ingest.interpreter import probe
from velo_import.ingest.owner import find_python

MARK = "velo-probe:"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def environment(folder: Path) -> Path:
    """The least that counts as a virtual environment of the Python that runs the tests."""
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"home = {os.path.dirname(sys.executable)}\n")
    (folder / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    return folder


def test_an_interpreter_says_who_it_is(tmp_path):
    home = environment(tmp_path / "env")

    answer = probe(str(home / "bin" / "python"))

    assert answer.prefix == str(home)
    assert answer.cache_tag == sys.implementation.cache_tag
    assert answer.suffixes[-2:] == (".py", ".pyc")
    assert os.path.dirname(os.__file__) in answer.stdlib
    assert set(answer.stdlib) <= set(answer.sys_path)
    assert manifest_key(answer.build(), answer.prefix) != manifest_key(answer.build(2), answer.prefix)


def test_lines_that_a_pth_file_prints_are_not_taken_for_the_answer(tmp_path):
    home = environment(tmp_path / "env")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = home / "lib" / version / "site-packages"
    site.mkdir(parents=True)
    (site / "noise.pth").write_text("import sys; print('implementation=noise')\n")

    assert probe(str(home / "bin" / "python")).implementation == "cpython"


def test_the_users_variables_do_not_change_the_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")

    assert str(tmp_path) not in probe(sys.executable).sys_path


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (r"implementation=pypy\0version=3.10.14\0end=\0", "is pypy"),
        (r"implementation=cpython\0version=3.10.2\0end=\0", "is Python 3.10.2"),
        (r"implementation=cpython\0version=2.7.18\0end=\0", "is Python 2.7.18"),
        (r"implementation=graalpy\0version=3.11.0\0end=\0", "is graalpy"),
    ],
)
def test_a_python_that_velo_cannot_speed_up_is_refused_by_name(tmp_path, answer, message):
    python = script(tmp_path / "python", f"printf '{MARK}{answer}'")

    with pytest.raises(VeloError, match=message) as refusal:
        probe(str(python))

    assert "3.11 or later" in refusal.value.message + refusal.value.hint


def test_a_program_that_is_no_python_is_refused(tmp_path):
    python = script(tmp_path / "python", "echo 'Fatal: no module named encodings' >&2; exit 3")

    with pytest.raises(VeloError, match=r"exit code 3.*encodings") as refusal:
        probe(str(python))

    assert refusal.value.hint


def test_a_missing_interpreter_is_refused(tmp_path):
    with pytest.raises(VeloError, match=r"cannot run .*No such file") as refusal:
        probe(str(tmp_path / "python3.99"))

    assert "--python" in refusal.value.hint


def test_an_environment_has_its_own_python(tmp_path):
    home = environment(tmp_path / "env")

    assert find_python(home) == str(home / "bin" / "python")


def test_so_has_its_site_packages_and_what_lies_below(tmp_path):
    home = environment(tmp_path / "env")
    package = home / "lib" / "python3.12" / "site-packages" / "package"
    package.mkdir(parents=True)

    assert find_python(package.parent) == find_python(package) == str(home / "bin" / "python")


def test_a_project_uses_the_environment_inside_it(tmp_path):
    home = environment(tmp_path / "project" / ".venv")

    assert find_python(tmp_path / "project", {}) == str(home / "bin" / "python")


def test_a_project_uses_the_active_environment_else(tmp_path):
    home = environment(tmp_path / "env")
    (tmp_path / "project").mkdir()

    assert find_python(tmp_path / "project", {"VIRTUAL_ENV": str(home)}) == str(home / "bin" / "python")


def test_a_project_uses_python3_on_the_path_at_last(tmp_path):
    python = script(tmp_path / "bin" / "python3", "true")
    (tmp_path / "project").mkdir()

    assert find_python(tmp_path / "project", {"PATH": str(tmp_path / "bin")}) == str(python)
    with pytest.raises(VeloError, match="no python found"):
        find_python(tmp_path / "project", {"PATH": str(tmp_path)})


def test_an_environment_whose_python_has_gone_is_called_broken(tmp_path):
    home = environment(tmp_path / "env")
    (home / "bin" / "python").unlink()
    (home / "bin" / "python").symlink_to("/nowhere/python3")

    with pytest.raises(VeloError, match="is broken") as refusal:
        find_python(home)

    assert refusal.value.hint


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(VeloError, match="no such folder"):
        find_python(tmp_path / "missing")
    with pytest.raises(VeloError, match="not a folder"):
        find_python(tmp_path / "file")

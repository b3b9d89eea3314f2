# SPDX-License-Identifier: Apache-2.0
"""A folder's listing: the native reader and its Python twin give the same answers; then sanitizers."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from tests.support.native import compiled, run_under_sanitizers
from velo_import import _native
from velo_import.host import folders as twin
from velo_import.host.files import stamp_of

Reader = Callable[..., tuple[Any, ...]]

# Some file systems tell no types: every name has to be asked for.
UNTYPED = """
#undef readdir
#include <dirent.h>
struct dirent *untyped_readdir(DIR *folder);
struct dirent *untyped_readdir(DIR *folder)
{
    struct dirent *entry = readdir(folder);
    if (entry)
        entry->d_type = DT_UNKNOWN;
    return entry;
}
"""


class Seen(NamedTuple):
    name: str
    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    mode: int
    is_link: bool


def loaded(path: Path) -> Reader:
    loader = ExtensionFileLoader("folders", str(path))
    spec = spec_from_loader("folders", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    reader: Reader = module.read_folder
    return reader


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return loaded(compiled("folders", tmp_path_factory.mktemp("native"), "-O2"))


@pytest.fixture(scope="module")
def untyped(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("untyped")
    (folder / "untyped.c").write_text(UNTYPED)
    return loaded(compiled("folders", folder, "-Dreaddir=untyped_readdir", str(folder / "untyped.c")))


@pytest.fixture(params=["native", "untyped", "twin"])
def read_folder(request: pytest.FixtureRequest) -> Reader:
    """Each of the bodies of one interface."""
    return twin.read_folder if request.param == "twin" else request.getfixturevalue(request.param)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of everything."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a.py").write_text("a = 1\n")
    (folder / "empty").touch()
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "below").mkdir()
    (folder / "to_file").symlink_to("a.py")
    (folder / "to_folder").symlink_to("below")
    (folder / "to_nothing.py").symlink_to("nowhere")
    (folder / "to_itself").symlink_to("to_itself")
    (folder / "..almost").touch()
    os.mkfifo(folder / "pipe")
    (folder / ("long" * 60)).touch()
    with open(os.fsencode(folder) + b"/\xff\xfe.py", "wb"):
        pass
    return folder


def test_everything_is_named_once_and_files_have_their_stamps(read_folder, tree):
    mtime_ns, ctime_ns, ino, mode, files, folders, links, others = read_folder(str(tree), (), Seen)

    status = tree.stat()
    assert (mtime_ns, ctime_ns, ino, mode) == (
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        status.st_mode,
    )
    assert sorted([*(file.name for file in files), *folders, *links, *others]) == sorted(os.listdir(tree))
    assert folders == ["below"] and links == ["to_folder"]
    assert sorted(others) == ["pipe", "to_itself", "to_nothing.py"]
    for file in files:
        assert type(file) is Seen
        status = (tree / file.name).stat()
        assert (file.size, file.mtime_ns, file.ctime_ns, file.ino) == stamp_of(status)
        assert file.mode == status.st_mode
        assert file.is_link is (tree / file.name).is_symlink()


def test_given_suffixes_other_files_are_only_names(read_folder, tree):
    *_, files, folders, links, others = read_folder(str(tree), (".py", ".longer.than.any.name"), Seen)

    assert sorted(file.name for file in files) == ["a.py", "to_file", os.fsdecode(b"\xff\xfe.py")]
    assert {"empty", "run", "..almost"} <= set(others)
    assert folders == ["below"] and links == ["to_folder"]


def test_sockets_and_thousands_of_names(read_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # The path of a socket may not be long.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for number in range(3000):
            (tmp_path / f"{number:04}{'x' * (number % 100)}").touch()

        *_, files, folders, links, others = read_folder(str(tmp_path), (), Seen)

    assert len({file.name for file in files}) == 3000
    assert (folders, links, others) == ([], [], ["socket"])


@pytest.mark.parametrize("name", ["missing", "a.py", "to_itself", "pipe", "x" * 300])
def test_what_is_no_folder_is_an_error_that_names_it(read_folder, tree, name):
    with pytest.raises(OSError) as caught:
        read_folder(str(tree / name), (), Seen)
    assert caught.value.filename == str(tree / name)


def test_a_path_with_a_nul_is_refused(read_folder):
    with pytest.raises(ValueError):
        read_folder("/tmp\0x", (), Seen)


def test_no_access_time_and_no_descriptor_is_left_behind(read_folder, tree):
    os.utime(tree, ns=(10**18, 2 * 10**18))
    before = os.listdir("/proc/self/fd")

    read_folder(str(tree), (), Seen)

    assert tree.stat().st_atime_ns == 10**18
    assert os.listdir("/proc/self/fd") == before


def test_a_folder_of_somebody_else_is_listed_too(read_folder, tree):
    """O_NOATIME is for the owner of a folder only."""
    if os.geteuid() != 0:
        pytest.skip("giving a folder away needs root")
    tree.parent.chmod(0o755)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.seteuid(4321)
            code = 0 if len(read_folder("/usr", (), Seen)[5]) else 1
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_the_native_reader_is_taken_where_it_is_there(monkeypatch):
    found = SimpleNamespace(read_folder=object())
    monkeypatch.setattr(_native, "folders", found, raising=False)
    assert twin.fastest_reader() is found.read_folder

    monkeypatch.delattr(_native, "folders")
    monkeypatch.setitem(sys.modules, "velo_import._native.folders", None)
    assert twin.fastest_reader() is twin.read_folder


def test_native_under_sanitizers(tmp_path, tree):
    """Every path through folders.c, errors included, without a finding of AddressSanitizer or UBSan."""
    script = f"""
import os, sys
sys.path.insert(0, sys.argv[1])
import folders
class Seen(tuple):
    pass
tree = {str(tree)!r}
for number in range(500):
    open(os.path.join(tree, "n" * (number % 200 + 1) + str(number)), "w").close()
for suffixes in ((), (".py",), (".py", "x" * 1000), ("",)):
    for _ in range(20):
        seen = folders.read_folder(tree, suffixes, Seen)
        assert sum(map(len, seen[4:])) == len(os.listdir(tree)), seen
wrong = [(), (5, (), Seen), (tree, [], Seen), (tree, (5,), Seen), (tree, ("\\udcff",), Seen)]
wrong += [("a\\0", (), Seen), (tree, (), 5), (tree, (), dict)]
wrong += [(tree + "/x", (), Seen), ("/dev/null", (), Seen)]
for given in wrong:
    try:
        folders.read_folder(*given)
    except (OSError, TypeError, ValueError):
        pass
    else:
        sys.exit(f"took {{given}}")
print("all paths")
"""
    done = run_under_sanitizers("folders", tmp_path, script)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "all paths\n"
    assert "runtime error" not in done.stderr

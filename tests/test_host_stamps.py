# SPDX-License-Identifier: Apache-2.0
"""Stamps of many paths: the native reader and its Python twin give the same bytes, whatever the threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.native import compiled
from velo_import import _native
from velo_import.host import stamps as twin
from velo_import.host.stamps import SIZE, fastest, stamps, stamps_of

Reader = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    loader = ExtensionFileLoader(
        "folders", str(compiled("folders", tmp_path_factory.mktemp("native"), "-O2"))
    )
    spec = spec_from_loader("folders", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    reader: Reader = module.stamps
    return reader


@pytest.fixture(params=["native", "twin"])
def read(request: pytest.FixtureRequest) -> Reader:
    return stamps if request.param == "twin" else request.getfixturevalue("native")


def expected(path: Path) -> bytes:
    try:
        found = path.stat()
    except OSError:
        return bytes(SIZE)
    size = 0 if os.path.isdir(path) else found.st_size
    numbers = (size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode)
    return b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)


@pytest.fixture
def tree(tmp_path: Path) -> list[Path]:
    """Folders, each before what lies in it."""
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", ns=(0, -1))
    (tmp_path / "to_file").symlink_to("a.py")
    (tmp_path / "to_folder").symlink_to("below")
    (tmp_path / "to_nothing").symlink_to("nowhere")
    (tmp_path / "to_itself").symlink_to("to_itself")
    os.mkfifo(below / "pipe")
    (below / os.fsdecode(b"\xff\xfe")).touch()
    names = ("a.py", "old", "to_file", "to_folder", "to_nothing", "to_itself", "missing", "x" * 300)
    return [tmp_path, *(tmp_path / name for name in names), below, *sorted(below.iterdir())]


def as_names(paths: list[Path]) -> bytes:
    """Folders in full, and below each of them names."""
    names = []
    folder = None
    for path in paths:
        if path.parent == folder and path.name != "below":
            names.append(os.fsencode(path.name))
        else:
            folder = path
            names.append(os.fsencode(path))
    return b"".join(name + b"\0" for name in names)


def test_every_path_has_the_stamp_that_stat_gives(read, tree):
    assert read(as_names(tree)) == b"".join(map(expected, tree))


@pytest.mark.parametrize("folder", [b"/" + b"x" * 5000, b"/" + b"y/" * 2040, b"/nowhere"])
def test_what_lies_in_a_folder_that_cannot_be_is_not_there(read, tree, folder):
    names = as_names(tree) + folder + b"\0" + b"a.py\0" + as_names(tree)
    found = b"".join(map(expected, tree))
    assert read(names) == found + bytes(2 * SIZE) + found


def test_below_the_root_folder(read):
    assert read(b"/\0etc\0/etc/\0hostname\0") == b"".join(
        expected(Path(path)) for path in ("/", "/etc", "/etc", "/etc/hostname")
    )


def test_nothing_is_asked_of_nothing(read):
    assert read(b"") == b""


def test_a_path_without_an_end_is_refused(native):
    with pytest.raises(ValueError):
        native(b"/tmp")


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("repetitions", [0, 1, 500])
def test_threads_change_nothing(tree, threads, repetitions):
    names = as_names(tree) * repetitions
    assert stamps_of(names, threads) == b"".join(map(expected, tree)) * repetitions


def test_without_another_thread_it_is_done_all_the_same(tree, monkeypatch):
    def refuse(work: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(twin._thread, "start_new_thread", refuse)
    assert stamps_of(as_names(tree) * 50, 4) == b"".join(map(expected, tree)) * 50


def test_the_native_reader_is_taken_where_it_is_there(monkeypatch):
    found = SimpleNamespace(stamps=object())
    monkeypatch.setattr(_native, "folders", found, raising=False)
    assert fastest() is (found.stamps if sys.byteorder == "little" else stamps)

    monkeypatch.delattr(_native, "folders")
    monkeypatch.setitem(sys.modules, "velo_import._native.folders", None)
    assert fastest() is stamps

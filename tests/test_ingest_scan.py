# SPDX-License-Identifier: Apache-2.0
"""What a walk sees, and the trees that would lead a careless one astray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from velo_import.format.manifest import SITE, STDLIB, TREE
from velo_import.host.stamps import stamps_of
from velo_import.ingest import scan as scanning
from velo_import.ingest.scan import FINE_TICK_NS, Area, Folder, Scan, area_kind, list_folder, scan


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text(name)
    return folder


def by_path(found: Scan, top: Path) -> dict[str, Folder]:
    return {os.path.relpath(folder.path, top): folder for folder in found.folders}


def test_every_folder_and_file_is_seen_with_its_stamp(tmp_path):
    fill(tmp_path, "a.py", "pkg/__init__.py", "pkg/data.txt", "pkg/sub/b.py")

    found = scan([Area(str(tmp_path), TREE)])

    assert set(by_path(found, tmp_path)) == {".", "pkg", "pkg/sub"}
    (entry,) = by_path(found, tmp_path)["pkg/sub"].files
    status = os.stat(tmp_path / "pkg/sub/b.py")
    assert entry[:5] == ("b.py", 12, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def test_two_walks_over_one_tree_see_the_same(tmp_path):
    fill(tmp_path, "a.py", "b/c.py")
    areas = [Area(str(tmp_path), TREE)]

    first, second = scan(areas), scan(areas, slow=True)

    assert first.watched() == second.watched()


@pytest.mark.parametrize(
    "change",
    [
        lambda top: (top / "a.py").write_text("other"),
        lambda top: (top / "b" / "new").mkdir(),
        lambda top: (top / "b" / "c.py").unlink(),
        lambda top: os.utime(top / "a.py"),
        lambda top: (top / "a.py").chmod(0o755),
        lambda top: (top / "a.py").rename(top / "b.py"),
        lambda top: (top / "b" / "new.py").symlink_to("c.py"),
        lambda top: (top / "nowhere").write_text("a link to it is in the tree"),
        lambda top: (top / "other" / "pyvenv.cfg").unlink(),
    ],
)
def test_any_change_is_seen_without_another_walk(tmp_path, change: Callable[[Path], object]):
    top = fill(tmp_path / "top", "a.py", "b/c.py", "other/pyvenv.cfg", "other/d.py")
    (top / "b" / "broken.py").symlink_to("../nowhere")
    names, stamps, kinds = scan([Area(str(top), TREE)]).watched()
    kinds_before = stamps_of(kinds, 1)
    assert stamps_of(names, 2) == stamps

    change(top)

    assert (stamps_of(names, 2), stamps_of(kinds, 1)) != (stamps, kinds_before)


def test_a_folder_belongs_to_the_innermost_area_and_is_seen_once(tmp_path):
    stdlib = fill(
        tmp_path / "lib", "os.py", "lib-dynload/_a.so", "site-packages/pkg/__init__.py", "test/support.py"
    )
    site = stdlib / "site-packages"
    areas = [
        Area(str(stdlib), STDLIB),
        Area(str(stdlib / "lib-dynload"), STDLIB),
        Area(str(site), SITE),
    ]

    found = scan(areas)

    owners = {name: found.areas[folder.area].path for name, folder in by_path(found, stdlib).items()}
    assert owners == {
        ".": str(stdlib),
        "lib-dynload": str(stdlib / "lib-dynload"),
        "site-packages": str(site),
        "site-packages/pkg": str(site),
    }


def test_the_standard_librarys_tests_and_other_peoples_packages_are_not_entered(tmp_path):
    fill(tmp_path, "os.py", "test/a.py", "site-packages/b.py", "idlelib/idle_test/c.py", "unittest/d.py")

    found = scan([Area(str(tmp_path), STDLIB)])

    assert set(by_path(found, tmp_path)) == {".", "idlelib", "unittest"}
    # They are listed all the same: a search must know that the names are there.
    assert by_path(found, tmp_path)["."].folders == ("idlelib", "site-packages", "test", "unittest")


def test_histories_and_environments_inside_a_project_are_not_entered(tmp_path):
    fill(
        tmp_path, "app.py", ".git/config", "node_modules/x/y.py", "env/pyvenv.cfg", "env/lib/z.py", "src/m.py"
    )

    assert set(by_path(scan([Area(str(tmp_path), TREE)]), tmp_path)) == {".", "src"}


def test_the_store_is_not_entered(tmp_path):
    fill(tmp_path, "app.py", "velo/packs/x")

    found = scan([Area(str(tmp_path), None)], avoid=str(tmp_path / "velo"))

    assert set(by_path(found, tmp_path)) == {"."}


def test_a_folder_that_no_import_can_name_is_not_importable(tmp_path):
    fill(tmp_path, "pkg-1.0.dist-info/licenses/a.txt", "pkg/a.py")

    importable = {
        name
        for name, folder in by_path(scan([Area(str(tmp_path), SITE)]), tmp_path).items()
        if folder.importable
    }

    assert importable == {".", "pkg"}


def test_links_that_lead_in_circles_end_the_walk(tmp_path):
    fill(tmp_path, "pkg/a.py")
    (tmp_path / "pkg" / "again").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "broken.py").symlink_to("nowhere.py")

    found = by_path(scan([Area(str(tmp_path), TREE)]), tmp_path)

    assert set(found) == {".", "pkg"}
    assert found["pkg"].links == ("again",)
    assert found["."].others == ("broken.py", "self")


def test_a_link_to_a_file_has_the_stamp_of_the_file(tmp_path):
    fill(tmp_path, "real.py")
    (tmp_path / "alias.py").symlink_to("real.py")

    alias, real = by_path(scan([Area(str(tmp_path), TREE)]), tmp_path)["."].files

    assert alias.is_link and not real.is_link
    assert alias[1:6] == real[1:6]


def test_names_that_are_not_utf8_are_kept_byte_by_byte(tmp_path):
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.py"
    with open(raw, "wb"):
        pass

    found = scan([Area(str(tmp_path), TREE)])

    assert [os.fsencode(entry.name) for entry in found.folders[0].files] == [b"\xff\xfe.py"]
    names, stamps, _ = found.watched()
    assert stamps_of(names, 1) == stamps


def test_pipes_and_sockets_are_listed_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")

    (folder,) = scan([Area(str(tmp_path), TREE)]).folders

    assert folder.files == () and folder.others == ("pipe.py",)


def test_a_folder_that_cannot_be_read_is_reported_and_the_rest_is_seen(tmp_path, monkeypatch):
    fill(tmp_path, "open/a.py", "closed/b.py")
    real = scanning.read_folder

    def refuse(path: str, *more: object) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path, *more)

    monkeypatch.setattr(scanning, "read_folder", refuse)
    found = scan([Area(str(tmp_path), TREE)])

    assert set(by_path(found, tmp_path)) == {".", "open"}
    assert found.unreadable == ((str(tmp_path / "closed"), "Permission denied"),)


def test_a_missing_area_is_reported(tmp_path):
    found = scan([Area(str(tmp_path / "gone"), TREE)])

    assert found.folders == () and len(found.unreadable) == 1


def test_a_file_written_this_moment_is_waited_for(tmp_path):
    """Two writes within one tick of the clock leave one stamp, so a fresh stamp proves nothing yet."""
    fill(tmp_path, "fresh.py")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    found = scan([Area(str(tmp_path), TREE)], sleep=sleep)
    done = time.time_ns()

    assert waits
    assert all(entry.ctime_ns + FINE_TICK_NS <= done for entry in found.folders[0].files)


def test_a_folder_that_never_holds_still_is_left_out(tmp_path):
    fill(tmp_path, "log/a.txt", "calm/b.py")

    def scribble(seconds: float) -> None:
        time.sleep(seconds)
        (tmp_path / "log" / f"{time.time_ns()}.txt").touch()

    found = scan([Area(str(tmp_path), TREE)], sleep=scribble)

    assert found.unsettled == (str(tmp_path / "log"),)
    assert set(by_path(found, tmp_path)) == {".", "calm"}


def test_a_file_that_never_holds_still_costs_neither_its_folder_nor_what_is_below(tmp_path):
    fill(tmp_path, "server.log", "app.py", "pkg/b.py", "pkg/trace.log")

    def scribble(seconds: float) -> None:
        time.sleep(seconds)
        for name in ("server.log", "pkg/trace.log"):
            (tmp_path / name).write_text(str(time.time_ns()))

    found = scan([Area(str(tmp_path), TREE)], sleep=scribble)

    assert found.unsettled == ()
    assert found.changing == {str(tmp_path / "server.log"), str(tmp_path / "pkg/trace.log")}
    assert set(by_path(found, tmp_path)) == {".", "pkg"}

    learned = scan([Area(str(tmp_path), TREE)], only={str(tmp_path): 0}, sleep=scribble)
    assert learned.unsettled == (str(tmp_path),) and not learned.changing


def test_a_clock_that_was_set_back_does_not_make_us_wait_for_it(tmp_path, monkeypatch):
    fill(tmp_path, "a.py")
    monkeypatch.setattr(scanning.time, "time_ns", lambda: 1_000_000_000)

    found = scan([Area(str(tmp_path), TREE)], sleep=lambda seconds: pytest.fail("waited"))

    assert found.unsettled == (str(tmp_path),)


def test_only_the_folders_asked_for_are_listed(tmp_path):
    fill(tmp_path, "a/b/c.py", "a/d.py", "a/e.txt")

    found = scan([Area(str(tmp_path), TREE)], only={str(tmp_path / "a"): 0}, suffixes=(".py",))

    (folder,) = found.folders
    assert folder.folders == ("b",) and folder.importable
    assert [entry.name for entry in folder.files] == ["d.py"] and folder.others == ("e.txt",)


def test_kinds_of_areas():
    assert area_kind("/usr/lib/python3.12", ["/usr/lib/python3.12"]) == STDLIB
    assert area_kind("/env/lib/python3.12/site-packages", []) == SITE
    assert area_kind("/usr/lib/python3/dist-packages", []) == SITE
    assert area_kind("/home/me/project", []) == TREE


def test_listing_keeps_every_name(tmp_path):
    fill(tmp_path, "a.py", "folder/x")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "dead").symlink_to("nowhere")

    assert sorted(list_folder(str(tmp_path)).names()) == sorted(os.listdir(tmp_path))

# SPDX-License-Identifier: Apache-2.0
"""What an ingest notes of symbolic links, on real folders."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from velo_import.format.manifest import NO_DIGEST, SYMBOLIC_LINK, TREE, FileRecord
from velo_import.ingest.links import note_links
from velo_import.ingest.plan import Draft, file_record
from velo_import.ingest.scan import Area, scan
from velo_import.ingest.selection import Selection


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    (project / "pkg").mkdir(parents=True)
    (project / "pkg" / "a.py").write_text("a = 1")
    (project / "alias.py").symlink_to("pkg/a.py")
    (project / "lib64").symlink_to("pkg")
    (project / "gone").symlink_to("../no/such\nplace")
    (tmp_path / "projectile").mkdir()
    (tmp_path / "projectile" / "outside").symlink_to("x")
    return project


def noted(project: Path) -> dict[str, FileRecord]:
    """The draft after all files below the project were planned, and its links noted."""
    scanned = scan([Area(str(project.parent), None)])
    draft = Draft.empty()
    for folder in scanned.folders:
        for entry in folder.files:
            path = f"{folder.path}/{entry.name}"
            draft.files[path] = file_record(path, entry, b"\x11" * 32)
    note_links(draft, scanned, str(project))
    return {os.path.relpath(path, project): record for path, record in draft.files.items()}


def test_links_to_files_keep_the_vnode_of_the_file(project: Path) -> None:
    """Imports go through them, so digest and stamp stay; the text comes along."""
    record = noted(project)["alias.py"]

    assert record.link == "pkg/a.py"
    assert record.digest == b"\x11" * 32
    assert record.size == 5 and record.ino == (project / "pkg/a.py").stat().st_ino
    assert record.flags == SYMBOLIC_LINK
    assert stat.S_ISREG(record.mode)


def test_links_to_folders_and_to_nothing_get_a_vnode(project: Path) -> None:
    """Without content: their text is all there is to them. So do links to content that is left out."""
    records = noted(project)

    (project / "settings").symlink_to("pkg/a.py")
    scanned = scan([Area(str(project), TREE)])
    draft = Draft.empty()
    note_links(draft, scanned, str(project))
    records["settings"] = draft.files[str(project / "settings")]
    for name, text in (("lib64", "pkg"), ("gone", "../no/such\nplace"), ("settings", "pkg/a.py")):
        assert records[name].link == text
        assert (records[name].digest, records[name].size) == (NO_DIGEST, 0)
        assert stat.S_ISLNK(records[name].mode)


def test_only_links_below_what_is_ingested_are_noted(project: Path) -> None:
    """Not those of a neighbour with a name that begins alike; and files are no links."""
    records = noted(project)

    assert "../projectile/outside" not in records
    assert records["pkg/a.py"].link == ""


def test_links_that_the_user_leaves_out_are_not_noted(project: Path) -> None:
    """As files are, by the patterns of the ingest."""
    scanned = scan([Area(str(project), None)])
    draft = Draft.empty()
    note_links(draft, scanned, str(project), Selection(str(project), exclude=["lib*"]))

    assert [os.path.basename(path) for path in draft.files] == ["alias.py", "gone"]


def test_what_is_no_link_or_has_gone_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets and pipes stand in a listing beside broken links; a link may vanish after it was listed."""
    os.mkfifo(project / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(project)
        server.bind("socket")
        scanned = scan([Area(str(project), None)])
    (project / "gone").unlink()
    draft = Draft.empty()
    note_links(draft, scanned, str(project))

    assert set(draft.files) == {str(project / "lib64"), str(project / "alias.py")}

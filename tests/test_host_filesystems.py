# SPDX-License-Identifier: Apache-2.0
"""What kind of file system a path lives on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from velo_import.host import filesystems
from velo_import.host.filesystems import filesystem_of, mounts_in, named

TABLE = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 27 0:50 / /home rw,relatime shared:7 master:2 - nfs4 server:/home rw
41 40 254:0 /fast /home/fast rw - xfs /dev/vdb rw
42 27 0:51 / /mnt/with\040blank\134slash ro - squashfs /dev/loop0 ro
43 27 0:52 / /twice rw - ext4 /dev/vdc rw
44 43 0:53 / /twice rw - tmpfs tmpfs rw
45 27 0:54 / /cloud rw - fuse.sshfs me@there rw
broken line
"""


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_mounts", lambda: mounts_in(TABLE))


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "ext4"),
        ("/usr/lib/python3", "ext4"),
        ("/home/me/project", "nfs4"),
        ("/homeless", "ext4"),
        ("/home/fast/venv", "xfs"),
        ("/mnt/with blank\\slash/x", "squashfs"),
        ("/twice/x", "tmpfs"),
        ("/cloud", "fuse.sshfs"),
    ],
)
def test_longest_and_latest_mount_wins(path: str, name: str) -> None:
    assert filesystem_of(path).name == name


@pytest.mark.parametrize(
    "name", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "fuse.sshfs", "fuse"]
)
def test_network(name: str) -> None:
    assert named(name).network


@pytest.mark.parametrize("name", ["ext4", "xfs", "tmpfs", "overlay", "virtiofs", "fuse.mergerfs", "fuseblk"])
def test_local(name: str) -> None:
    assert not named(name).network


def test_immutable_and_coarse() -> None:
    assert named("squashfs").immutable
    assert named("erofs").immutable
    assert not named("ext4").immutable
    assert named("vfat").coarse_clock
    assert not named("ext4").coarse_clock


def test_symbolic_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    monkeypatch.setattr(filesystems, "_mounts", lambda: {"/": "ext4", str(target.resolve()): "nfs4"})

    assert filesystem_of(tmp_path / "link" / "file").network


def test_without_a_mount_table_everything_is_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_mounts", dict)

    assert not filesystem_of("/anywhere").network


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/mountinfo")
def test_this_machine() -> None:
    assert filesystem_of("/proc/self").name == "proc"
    assert filesystem_of(".").name != "unknown"

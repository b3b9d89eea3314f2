# SPDX-License-Identifier: Apache-2.0
"""File systems of our own, whose power can be cut: loop devices. For root on Linux; others skip, saying why.

The surprise: mount options decide what a power cut can do. Without delayed allocation's safety net a renamed
file that was not flushed is empty afterwards, which is what users of such disks report.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Kind of file system, and the options it is mounted with: the kindest ext4 and the harshest.
KINDS = (
    ("ext4", "data=ordered"),
    ("ext4", "data=writeback,noauto_da_alloc"),
    ("xfs", "noquota"),
)
_SIZE = {"ext4": 320 << 20, "xfs": 320 << 20}  # XFS refuses less than 300 MB.
_MAKE = {
    # No kernel thread that goes on preparing tables behind our back.
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}


class Disk:
    """A mounted file system in one file."""

    def __init__(self, image: Path, folder: Path, kind: str, options: str) -> None:
        self.image = image
        self.folder = folder
        self._mount = ["mount", "-t", kind, "-o", f"loop,{options}", str(image), str(folder)]

    def restart(self) -> None:
        """After a power cut: the journal is replayed, and nothing is left in memory."""
        self.unmount()
        self.mount()

    def mount(self) -> None:
        subprocess.run(self._mount, check=True)

    def unmount(self) -> None:
        """Others may look at all disks of a busy machine for a moment; then it is asked again."""
        deadline = time.monotonic() + 20
        while subprocess.run(["umount", str(self.folder)], check=time.monotonic() > deadline).returncode:
            time.sleep(0.1)


@contextmanager
def disk(where: Path, kind: str, options: str) -> Iterator[Disk]:
    """A new file system, mounted; the test is skipped where that cannot be."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("cutting the power of a disk needs root on Linux")
    if shutil.which(_MAKE[kind][0]) is None:
        pytest.skip(f"{_MAKE[kind][0]} is not installed")
    where.mkdir(parents=True)
    image, folder = where / "image", where / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(_SIZE[kind])
    subprocess.run([*_MAKE[kind], str(image)], check=True, capture_output=True)
    made = Disk(image, folder, kind, options)
    try:
        made.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"mounting is refused here: {error}")
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        image.unlink()

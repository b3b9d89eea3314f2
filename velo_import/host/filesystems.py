# SPDX-License-Identifier: Apache-2.0
"""What kind of file system a path lives on: how dear a request is, how far its clocks can be trusted.

Knows the kernel's mount table; what follows from the answer (which check, which store) is decided elsewhere.
Its surprise: FUSE counts as a network unless its name is known, because the kernel cannot tell.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_NETWORK = """nfs nfs3 nfs4 cifs smb3 smbfs 9p ceph lustre gpfs glusterfs afs beegfs coda ncpfs orangefs
    pvfs2 panfs wekafs ocfs2 gfs2 davfs"""
_IMMUTABLE = "squashfs erofs iso9660 cramfs romfs fuse.squashfuse fuse.squashfuse_ll fuse.erofsfuse"
# Whole seconds, or worse, in the stamps of files.
_COARSE = "vfat msdos exfat ext2 ext3 hfs hfsplus minix qnx4 sysv fuse.exfat"
_LOCAL_FUSE = """fuseblk fuse.fuse-overlayfs fuse.mergerfs fuse.bindfs fuse.unionfs fuse.gocryptfs fuse.cryfs
    fuse.encfs fuse.ntfs-3g fuse.exfat fuse.lxcfs fuse.zfs fuse.squashfuse fuse.squashfuse_ll
    fuse.erofsfuse"""
NETWORK, IMMUTABLE, COARSE, LOCAL_FUSE = (
    frozenset(names.split()) for names in (_NETWORK, _IMMUTABLE, _COARSE, _LOCAL_FUSE)
)


class FileSystem(NamedTuple):
    """A kind of file system, and what can be relied on there."""

    name: str
    network: bool = False
    immutable: bool = False
    coarse_clock: bool = False


def named(name: str) -> FileSystem:
    fuse = name == "fuse" or name.startswith("fuse.")
    return FileSystem(
        name,
        network=name in NETWORK or (fuse and name not in LOCAL_FUSE),
        immutable=name in IMMUTABLE,
        coarse_clock=name in COARSE,
    )


def filesystem_of(path: str | os.PathLike[str]) -> FileSystem:
    """The file system that holds a path; a local one where the kernel keeps no mount table."""
    place = os.path.realpath(path)
    mounts = _mounts()
    while place not in mounts and place != os.path.dirname(place):
        place = os.path.dirname(place)
    return named(mounts.get(place, "unknown"))


@lru_cache(maxsize=1)
def _mounts() -> dict[str, str]:
    try:
        table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return {}
    return mounts_in(table)


def mounts_in(table: str) -> dict[str, str]:
    """Mount point -> type, out of the text of /proc/self/mountinfo (proc(5))."""
    mounts = {}
    for line in table.split("\n"):
        place, separator, rest = line.partition(" - ")
        fields = place.split(" ")
        if separator and len(fields) > 4:
            # A later line covers an earlier one with the same mount point.
            mounts[_unescape(fields[4])] = rest.split(" ", 1)[0]
    return mounts


def _unescape(text: str) -> str:
    # Blank, tab, newline and backslash are written as \\040, \\011, \\012, \\134; other bytes as they are.
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)

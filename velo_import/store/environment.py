# SPDX-License-Identifier: Apache-2.0
"""LMDB with care: opened only when its file is whole, and its errors are turned into ours.

Knows the file and the library; the tables and what is in them are catalog.py's. Its surprise: LMDB maps the
file and believes it, so a file that lost its end would end our process with SIGBUS, not with an exception.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct

import lmdb

from ..errors import StoreCorrupt, VeloError
from ..host import files

_READERS = 1024
_TABLES = 16
_LOCK_BYTES = 64 * (_READERS + 2)  # what LMDB makes of them: a cache line each, and its own three
# LMDB's own layout: a page header of 16 bytes, then the meta record (magic ... last page number).
_META = Struct("<16xI20xI92xQ")
_MAGIC = 0xBEEFC0DE


def open_environment(folder: Path, *, map_size: int = 0, readonly: bool = False) -> lmdb.Environment:
    path = os.fsencode(folder)  # as text, names that are not UTF-8 would be refused
    if readonly:
        # A lock file cannot be written there; nobody who could write would share it with us anyway.
        lock = os.access(folder / "lock.mdb", os.W_OK)
        return lmdb.open(path, readonly=True, create=False, max_dbs=_TABLES, lock=lock)
    files.private_folder(folder)
    _reserve_lock_file(folder / "lock.mdb")
    return lmdb.open(
        path, map_size=map_size, max_dbs=_TABLES, max_readers=_READERS, mode=0o600, meminit=False
    )


def _reserve_lock_file(path: Path) -> None:
    """Give LMDB's lock file all of its blocks: it is written through a map, where a full disk is a SIGBUS."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_blocks * 512 < _LOCK_BYTES:
            os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
    finally:
        os.close(descriptor)


def is_whole(folder: Path) -> bool:
    """Whether the file may be mapped: LMDB checks little, and missing bytes would end us with SIGBUS.

    It may honestly be shorter than its newest state says (the last pages can be free and never written), so
    a short one is read by another process first.
    """
    lock = folder / "lock.mdb"
    if os.path.lexists(lock) and not os.path.isfile(lock):
        return False
    try:
        file = files.open_quietly(folder / "data.mdb")
    except OSError:
        return False
    try:
        needed = 0
        page = 4096
        for number in (0, 1):
            data = os.pread(file, _META.size, number * page)
            magic, page, last = _META.unpack(data.ljust(_META.size, b"\0"))
            if magic != _MAGIC or page.bit_count() != 1:
                return False
            needed = max(needed, (last + 1) * page)
        if os.fstat(file).st_size >= needed:
            return True
    except OSError:  # a folder, a pipe
        return False
    finally:
        os.close(file)
    probe = [sys.executable, "-I", "-S", "-c", _PROBE, str(folder), *sys.path]
    return subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


_PROBE = """
import os, sys
folder, sys.path[:] = sys.argv[1], sys.argv[2:]
import lmdb
environment = lmdb.open(os.fsencode(folder), readonly=True, lock=False, create=False, max_dbs=16)
with environment.begin() as transaction:
    for name, _ in transaction.cursor():
        for row in transaction.cursor(environment.open_db(name, txn=transaction, create=False)):
            pass
"""


def set_aside(folder: Path) -> None:
    """Keep one damaged catalogue for whoever wants to know what happened to it."""
    if os.path.lexists(folder):
        aside = folder.with_name("meta.db.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            folder.rename(aside)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn LMDB's errors, and the disk's, into ours."""
    try:
        with files.explained(folder):
            yield
    except (lmdb.MapFullError, lmdb.MapResizedError):
        raise
    except (
        lmdb.InvalidError,
        lmdb.CorruptedError,
        lmdb.PageNotFoundError,
        lmdb.PanicError,
        lmdb.VersionMismatchError,
        lmdb.NotFoundError,
    ) as error:
        raise StoreCorrupt(
            f"the catalogue {folder} is damaged", hint="remove that folder: it is made again"
        ) from error
    except lmdb.Error as error:
        reason = str(error).rpartition(": ")[2].lower()
        raise VeloError(
            f"the catalogue {folder} cannot be used: {reason}",
            hint="check the free space and the permissions there, or set VELO_HOME to another folder",
        ) from error

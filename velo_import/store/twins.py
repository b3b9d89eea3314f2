# SPDX-License-Identifier: Apache-2.0
"""Executable twins of loose blobs: an executable bit belongs to an inode, so a hard link that is to have it
needs an inode of its own.

Knows how one is made; who links to it is export.py's business. The surprise: a twin is made when it is first
asked for, and counts as a left-over once nothing links to it any more: the blob itself is all it takes to
make it again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..errors import VeloError
from ..host.files import flush_all, open_quietly, rename_all
from .blobs import Blobs, give_up
from .layout import Store


def executable_twin(store: Store, digest: bytes) -> Path | None:
    """A file with the content of a loose blob that everybody may execute and nobody write.

    None where it cannot be made, because the store is read-only, the disk full or the blob damaged.
    """
    twin = store.executable_path(digest)
    if twin.exists():
        return twin
    with suppress(OSError, VeloError):
        file = open_quietly(store.loose_path(digest))
        try:
            staged = Blobs(store).stage(file)
        finally:
            os.close(file)
        try:
            if staged.blob.digest == digest:
                os.chmod(staged.temporary, 0o555)
                flush_all([staged.temporary])
                rename_all([(staged.temporary, twin)])
                return twin
        finally:
            give_up([staged])
    return None

# SPDX-License-Identifier: Apache-2.0
"""A store that other accounts may read: what is opened to them, and what never is.

Content (packs, loose blobs, manifests) is opened; the catalogue and `run/` stay private, because locks and
learning are the owner's alone. Its surprise: the gate is the store's own folder. What is below it has always
been readable, so that one change of mode shares everything and one takes it all back.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..host.files import explained
from .layout import Store

OPEN, CLOSED = 0o755, 0o700


def is_shared(store: Store) -> bool:
    """Whether other accounts can look into the store."""
    return bool(os.stat(store.home).st_mode & stat.S_IXOTH)


def share(store: Store) -> list[Path]:
    """Let everybody read the content. Gives the folders above the store that others cannot pass."""
    store.require_writable()
    with explained(store.home, "share"):
        for private in (store.run, store.catalogue):
            if private.exists():
                os.chmod(private, CLOSED)
        for part in (store.loose, store.packs, store.manifests):
            for folder, _, _ in os.walk(part.parent):
                os.chmod(folder, OPEN)
        os.chmod(store.home, OPEN)
    return [parent for parent in store.home.parents if not os.stat(parent).st_mode & stat.S_IXOTH]


def unshare(store: Store) -> None:
    """Close the store to everybody else. Programs that have mapped something keep it until they end."""
    store.require_writable()
    with explained(store.home, "close"):
        os.chmod(store.home, CLOSED)

# SPDX-License-Identifier: Apache-2.0
"""Files that are in memory and files that are not, for stories about cold starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import pagecache


def is_in_memory(path: Path) -> bool:
    """Whether any of the file is in the page cache; of our own files the kernel says so."""
    return pagecache.residency([path]).resident > 0


def evicted(path: Path) -> Path:
    """The file, no longer in memory; skips the story where the file system keeps everything there."""
    os.sync()
    pagecache.evict([path])
    if is_in_memory(path):
        pytest.skip("this file system has no cold files")
    return path

# SPDX-License-Identifier: Apache-2.0
from typing import TypeVar

Entry = TypeVar("Entry", bound=tuple[object, ...])

def read_folder(
    path: str, suffixes: tuple[str, ...], make: type[Entry], /
) -> tuple[int, int, int, int, list[Entry], list[str], list[str], list[str]]:
    """The Python twin, velo_import/host/folders.py, says what it gives. Raises OSError."""

def stamps(paths: bytes, /) -> bytes:
    """The Python twin, velo_import/host/stamps.py, says what it gives."""

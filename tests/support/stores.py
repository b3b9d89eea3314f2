# SPDX-License-Identifier: Apache-2.0
"""Small stores and packs for tests, and children that work on them. No assertions."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, SealedPack

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = "cpython-312-cb0d0d0a"
LIMIT = 60

# What every child begins with.
PREAMBLE = f"""
import os, resource, sys
from pathlib import Path
sys.path.insert(0, {str(CHECKOUT)!r})
from tests.support.stores import *
from velo_import.errors import *
from velo_import.store.catalog import Catalog
from velo_import.store.packs import *
home = Path(sys.argv[1])
store = Store.open(home, create=True)
"""


def digest_of(data: bytes) -> bytes:
    return blake3(data).digest()


def source(number: int) -> bytes:
    """The digest of an imagined source file."""
    return digest_of(b"source %d" % number)


def payload(number: int) -> bytes:
    """Bytes of many lengths, the same in every process."""
    return (b"payload %d " % number) * (number % 97)


def bytecode_pack(store: Store, numbers: range, label: str = "demo-1.0") -> SealedPack:
    writer = PackWriter(store, label=label, kind="bytecode", build=BUILD)
    for number in numbers:
        writer.add(payload(number), source=source(number))
    sealed = writer.seal()
    assert sealed is not None
    return sealed


def replace(path: Path, data: bytes) -> None:
    """Change a sealed file behind the store's back."""
    path.chmod(0o600)
    path.write_bytes(data)


def flip_bit(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    replace(path, bytes(data))


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".tmp-*") if path.is_file()]


def start(code: str, home: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """A child that runs `code` with `home` and `store` defined."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), str(home), *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, home: Path, *arguments: str) -> str:
    """What such a child printed; it has to end well."""
    child = start(code, home, *arguments)
    output, errors = child.communicate(timeout=LIMIT)
    assert child.returncode == 0, errors
    return output


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size, for those who may mount; the test is skipped for others."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small disk needs root on Linux")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "velo-test", str(folder)],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip(f"mounting is refused here: {mounted.stderr.decode(errors='replace').strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)

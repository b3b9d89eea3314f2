# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the crash rig. `pytest -m crash` runs all of it, the default suite a short form of each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.rig import Rig, Server, build_shim


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("rig")
    running = Server(folder, build_shim(folder))
    yield running
    running.close()


@pytest.fixture
def rig(server: Server, tmp_path: Path) -> Rig:
    """A store that is not there yet, in a folder of this machine's disk."""
    return Rig(server, tmp_path / "disk" / "home", tmp_path / "project", random.Random(11))

# SPDX-License-Identifier: Apache-2.0
"""What every benchmark of whole programs begins with: its options, a work folder, an interpreter, a record.

Knows where each benchmark's store is; what is measured is the benchmark's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import records
from bench.arms import CHECKOUT, Velo, find_velo
from bench.environment import work_folder
from bench.interpreters import Interpreter, find_interpreter
from bench.measure import BenchmarkFault, become_subreaper


@dataclass(frozen=True)
class Setting:
    """One benchmark's options, where it works, with which Python, and the record that it fills."""

    options: argparse.Namespace
    work: Path
    interpreter: Interpreter
    record: dict[str, Any]

    def home(self, purpose: str) -> Path:
        """The store of one purpose; no two measurements share one."""
        return self.work / "homes" / f"{self.interpreter.tag}-{purpose}"

    def velo(self, purpose: str) -> Velo:
        """Velo with an empty store for this purpose; its version goes into the record."""
        velo = find_velo(self.home(purpose), self.options.velo)
        if velo is None:
            raise BenchmarkFault("velo not found: install it, or run from a checkout with its requirements")
        velo.forget()
        self.record["velo"] = velo.version
        return velo


def begin(kind: str, parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Setting:
    """Read the options of `bench.<kind>` and stand in the checkout, as parent of all that is left."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    os.chdir(CHECKOUT)
    become_subreaper()
    interpreter = find_interpreter(options.python)
    record = records.header(kind, f"bench.{kind}", words) | {"python": interpreter.version}
    return Setting(options, work_folder(options.work), interpreter, record)

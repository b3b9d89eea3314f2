# SPDX-License-Identifier: Apache-2.0
"""Finding a CPython by version or path, and where it keeps what a start reads. Knows no environment and no
arm.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.arms import clean_variables
from bench.measure import BenchmarkFault

_PROBE = """
import json, os, sys, sysconfig
library = os.path.join(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("LDLIBRARY") or "-")
print(json.dumps({
    "executable": os.path.realpath(sys.executable), "version": sys.version.split()[0],
    "implementation": sys.implementation.name, "tag": sys.implementation.cache_tag,
    "stdlib": os.path.dirname(os.__file__), "library": library if os.path.isfile(library) else "",
}))
"""


@dataclass(frozen=True)
class Interpreter:
    executable: Path
    version: str
    implementation: str
    tag: str
    stdlib: Path
    library: Path | None

    @property
    def short(self) -> str:
        """`3.12`"""
        return ".".join(self.version.split(".")[:2])


def probe(command: str | Path) -> Interpreter | None:
    """Ask an executable what it is; None when it does not run or is no Python of this century."""
    try:
        done = subprocess.run(
            [str(command), "-I", "-c", _PROBE],
            capture_output=True,
            env=clean_variables(os.environ),
            timeout=30,
        )
        facts = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return Interpreter(
        Path(facts["executable"]),
        facts["version"],
        facts["implementation"],
        facts["tag"],
        Path(facts["stdlib"]),
        Path(facts["library"]) if facts["library"] else None,
    )


def find_interpreter(request: str) -> Interpreter:
    """A path, or a version such as `3.12`: this interpreter, then PATH, then what pyenv and uv installed."""
    for candidate in _candidates(request):
        found = probe(candidate)
        if found is None or found.implementation != "cpython":
            continue
        if os.sep in request or f"{found.version}.".startswith(f"{request}."):
            return found
    raise BenchmarkFault(f"no CPython {request} found")


def _candidates(request: str) -> Iterator[str | Path]:
    if os.sep in request:
        yield request
        return
    yield sys.executable
    for folder in os.get_exec_path():
        yield from sorted(Path(folder).glob(f"python{request}")) if folder else ()
    for tool, arguments in (("pyenv", ["root"]), ("uv", ["python", "dir"])):
        if (command := shutil.which(tool)) is not None:
            answer = subprocess.run([command, *arguments], capture_output=True, text=True).stdout.strip()
            for pattern in (f"versions/{request}*/bin/python3", f"cpython-{request}*/bin/python3"):
                yield from sorted(Path(answer).glob(pattern)) if answer else ()

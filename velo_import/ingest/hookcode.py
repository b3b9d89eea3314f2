# SPDX-License-Identifier: Apache-2.0
"""The hook's own bytecode, per interpreter build, in the store: a start must not compile the hook first.

Knows the file that `sitecustomize` reads (FORMAT.md, section 2). The surprise: the code carries importlib's
file name, because CPython cuts frames of that name out of tracebacks.
"""

from __future__ import annotations

import _imp
import os
import subprocess
from pathlib import Path

from velo_import.errors import VeloError
from velo_import.format.manifest import HASH_KEY, Build
from velo_import.host.files import private_folder, publish
from velo_import.ingest.interpreter import Interpreter
from velo_import.store.layout import Store

MAGIC = b"VELOHOOK"
HOOK = Path(__file__).parents[1] / "hook"

# Run by the target interpreter: its own compiler and its own marshal. It says first who it is, because the
# name a program gives for its interpreter may lead to another one.
COMPILE = """
import _frozen_importlib_external as external, marshal, os, sys
folder = sys.argv[1]
status = os.stat(os.path.join(folder, "__init__.py"))
codes = {}
for name in sorted(os.listdir(folder)):
    if name.endswith(".py") and name != "__init__.py":
        with open(os.path.join(folder, name), "rb") as file:
            code = compile(file.read(), "<frozen importlib._bootstrap_external>", "exec", 0, True, 2)
        codes[name[:-3]] = marshal.dumps(code)
tag = sys.implementation.cache_tag + "-" + external.MAGIC_NUMBER.hex()
stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
sys.stdout.buffer.write(tag.encode() + b"\\0" + marshal.dumps((stamp, codes)))
"""


def place(store: Store, build: Build) -> Path:
    """Where the hook's code for that build is, if it is there."""
    return store.run / "hook" / f"{build.tag}.code"


def is_whole(path: Path) -> bool:
    """Whether a start will believe this file, as far as its checksum tells."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return data[:8] == MAGIC and data[8:16] == _imp.source_hash(HASH_KEY, data[16:])


def write(store: Store, interpreter: Interpreter) -> Path:
    """Compile the hook for one interpreter build and publish it; keeps the file that is there if it is equal.

    Raises:
        VeloError: the interpreter fails to compile it, or the store cannot be written.
    """
    try:
        body = _compiled(interpreter.executable, HOOK)
    except (OSError, subprocess.SubprocessError) as error:
        raise VeloError(
            f"{interpreter.executable} could not compile the hook: {error}",
            hint="run `velo doctor` in that environment",
        ) from error
    build = interpreter.build(0)
    if not body.startswith(build.tag.encode() + b"\0"):
        raise VeloError(
            f"{interpreter.executable} is not the interpreter that the program ran under",
            hint="start the program by the full path of its interpreter",
        )
    private_folder(store.run / "hook")
    target = place(store, build)
    data = MAGIC + _imp.source_hash(HASH_KEY, body) + body
    if not target.exists() or target.read_bytes() != data:
        publish(target, [data], mode=0o600)
    return target


def _compiled(executable: str, folder: Path) -> bytes:
    return subprocess.run(
        [executable, "-I", "-S", "-c", COMPILE, str(folder)],
        env={**os.environ, "VELO_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    ).stdout

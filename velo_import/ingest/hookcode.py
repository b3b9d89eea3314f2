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

from velo_import.format.manifest import HASH_KEY
from velo_import.host.files import private_folder, publish
from velo_import.ingest.interpreter import Interpreter
from velo_import.store.layout import Store

MAGIC = b"VELOHOOK"

# Run by the target interpreter: its own compiler and its own marshal.
COMPILE = """
import marshal, os, sys
folder = sys.argv[1]
stamps, codes = [], {}
for name in sorted(os.listdir(folder)):
    if name.endswith(".py") and name != "__init__.py":
        path = os.path.join(folder, name)
        status = os.stat(path)
        with open(path, "rb") as file:
            code = compile(file.read(), "<frozen importlib._bootstrap_external>", "exec", 0, True, 2)
        stamps.append((name, (status.st_mtime_ns, status.st_ctime_ns, status.st_size)))
        codes[name[:-3]] = marshal.dumps(code)
sys.stdout.buffer.write(marshal.dumps((tuple(stamps), codes)))
"""


def write(store: Store, interpreter: Interpreter) -> Path:
    """Compile the hook for one interpreter build and publish it; keeps the file that is there if it is equal.

    Raises:
        VeloError: the interpreter fails to compile it, or the store cannot be written.
    """
    folder = Path(__file__).parents[1] / "hook"
    body = subprocess.run(
        [interpreter.executable, "-I", "-S", "-c", COMPILE, str(folder)],
        env={**os.environ, "VELO_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    ).stdout
    target = private_folder(store.run / "hook") / f"{interpreter.build(0).tag}.code"
    data = MAGIC + _imp.source_hash(HASH_KEY, body) + body
    if not target.exists() or target.read_bytes() != data:
        publish(target, [data], mode=0o600)
    return target

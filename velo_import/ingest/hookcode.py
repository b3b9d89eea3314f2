# SPDX-License-Identifier: Apache-2.0
"""The hook's own bytecode, per interpreter build, in the store: a start must not compile the hook first.

Knows the file that `sitecustomize` reads (FORMAT.md, section 2). The surprise: the code carries importlib's
file name, because CPython cuts frames of that name out of tracebacks.
"""

from __future__ import annotations

import _imp
import marshal
import os
import struct
import subprocess
from pathlib import Path
from struct import Struct

from velo_import.errors import VeloError
from velo_import.format.manifest import HASH_KEY, Build
from velo_import.host.files import private_folder, publish
from velo_import.ingest.interpreter import Interpreter
from velo_import.store.layout import Store

MAGIC = b"VELOHOOK"
HOOK = Path(__file__).parents[1] / "hook"

HEADER = Struct("<8s8sQ")  # Magic, checksum of the index, its length.
# What every start unmarshals: one piece, and the first. The others are for some, or for want of the native
# module. The loader is run when the first module is found, where auditors may listen to any unmarshalling.
EARLY = ("ahead", "calm", "counts", "install", "loader")

# Run by the target interpreter: its own compiler and its own marshal. It says first who it is, because the
# name a program gives for its interpreter may lead to another one. Annotations are left out: a third of what
# unmarshalling costs.
COMPILE = """
import _frozen_importlib_external as external, _imp, ast, marshal, os, sys
class WithoutTypes(ast.NodeTransformer):
    def visit_arg(self, node):
        node.annotation = None
        return node
    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)
    def visit_AnnAssign(self, node):
        bare = ast.Assign([node.target], node.value) if node.value else ast.Pass()
        return ast.copy_location(bare, node)
    def visit_If(self, node):
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)
folder, key, *early = sys.argv[1:]
status = os.stat(os.path.join(folder, "__init__.py"))
names = [name[:-3] for name in os.listdir(folder) if name.endswith(".py") and name != "__init__.py"]
codes = {}
for name in sorted(names):
    with open(os.path.join(folder, name + ".py"), "rb") as file:
        tree = ast.fix_missing_locations(WithoutTypes().visit(ast.parse(file.read())))
    codes[name] = compile(tree, "<frozen importlib._bootstrap_external>", "exec", 0, True, 2)
parts = {"": {name: codes.pop(name) for name in early}, **codes}
texts = []
places = {}
for name, part in parts.items():
    text = marshal.dumps(part)
    places[name] = sum(map(len, texts)), len(text), _imp.source_hash(int(key), text)
    texts.append(text)
tag = sys.implementation.cache_tag + "-" + external.MAGIC_NUMBER.hex()
stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
index = tag.encode() + b"\\0" + marshal.dumps((stamp, places))
sys.stdout.buffer.write(b"".join((len(index).to_bytes(8, "little"), index, *texts)))
"""


def place(store: Store, build: Build) -> Path:
    """Where the hook's code for that build is, if it is there."""
    return store.run / "hook" / f"{build.tag}.code"


def is_whole(path: Path) -> bool:
    """Whether a start will believe all of this file, as far as its checksums tell."""
    try:
        data = path.read_bytes()
        magic, check, length = HEADER.unpack_from(data)
        index, codes = data[HEADER.size : HEADER.size + length], data[HEADER.size + length :]
        if magic != MAGIC or check != _imp.source_hash(HASH_KEY, index):
            return False
        _, places = marshal.loads(index[index.index(b"\0") + 1 :])
        return all(
            _imp.source_hash(HASH_KEY, codes[start : start + size]) == each
            for start, size, each in places.values()
        )
    except (OSError, struct.error, ValueError, EOFError, TypeError):
        return False


def write(store: Store, interpreter: Interpreter) -> Path:
    """Compile the hook for one interpreter build and publish it; keeps the file that is there if it is equal.

    Raises:
        VeloError: the interpreter fails to compile it, or the store cannot be written.
    """
    try:
        compiled = _compiled(interpreter.executable, HOOK)
    except (OSError, subprocess.SubprocessError) as error:
        raise VeloError(
            f"{interpreter.executable} could not compile the hook: {error}",
            hint="run `velo doctor` in that environment",
        ) from error
    build = interpreter.build(0)
    length = int.from_bytes(compiled[:8], "little")
    index = compiled[8 : 8 + length]
    if not index.startswith(build.tag.encode() + b"\0"):
        raise VeloError(
            f"{interpreter.executable} is not the interpreter that the program ran under",
            hint="start the program by the full path of its interpreter",
        )
    private_folder(store.run / "hook")
    target = place(store, build)
    data = HEADER.pack(MAGIC, _imp.source_hash(HASH_KEY, index), length) + compiled[8:]
    if not target.exists() or target.read_bytes() != data:
        publish(target, [data], mode=0o600)
    return target


def _compiled(executable: str, folder: Path) -> bytes:
    """The length of the index, the index, and the code of all modules."""
    return subprocess.run(
        [executable, "-I", "-S", "-c", COMPILE, str(folder), str(HASH_KEY), *EARLY],
        env={**os.environ, "VELO_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    ).stdout

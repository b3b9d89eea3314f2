# SPDX-License-Identifier: Apache-2.0
"""Small projects on disk: written from a dict, listed, put back. Knows files, nothing of Velo's store."""

from __future__ import annotations

import os
import shutil
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.interpreters import Interpreter
from tests.support.running import Velo


class Tree:
    """A folder of source files; names are relative, a value of None deletes."""

    def __init__(self, folder: Path, velo: Velo | None = None) -> None:
        self.folder = folder
        self.velo = velo
        folder.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def write(self, files: Mapping[str, str | bytes | None]) -> Tree:
        for name, content in files.items():
            path = self.folder / name
            if content is None:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
        return self

    def write_unnoticed(self, name: str, content: str) -> Tree:
        """Replace a file in place, then set its times back: only ctime can tell, as in a same-second edit."""
        path = self.folder / name
        before = path.stat()
        with open(path, "r+b") as file:  # Same inode: editors and `sed -i` are kinder than this.
            file.truncate(0)
            file.write(textwrap.dedent(content).encode())
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return self

    def archive(self, name: str, files: Mapping[str, str]) -> Path:
        path = self.folder / name
        with zipfile.ZipFile(path, "w") as archive:
            for inner, content in files.items():
                archive.writestr(inner, textwrap.dedent(content))
        return path

    def ingest(self, *flags: str) -> Tree:
        assert self.velo is not None
        self.velo.ingest(self.folder, *flags)
        return self

    def listing(self) -> dict[str, tuple[int, int, int]]:
        """Every path below, with what Velo must not touch: mode, inode and, for files, mtime."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            status = path.lstat()
            found[str(path.relative_to(self.folder))] = (
                status.st_mode,
                status.st_ino,
                0 if path.is_dir() else status.st_mtime_ns,
            )
        return found

    def forget_bytecode(self) -> None:
        """Remove every __pycache__, so that the next run finds the tree as it was written."""
        for path in sorted(self.folder.rglob("__pycache__")):
            shutil.rmtree(path)


def make_environment(folder: Path, interpreter: Interpreter, executable: Path) -> Path:
    """A virtual environment without pip, made by hand in a millisecond; its Python is `bin/python`."""
    (folder / "bin").mkdir(parents=True)
    (folder / interpreter.library / "site-packages").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(
        f"home = {executable.parent}\ninclude-system-site-packages = false\n"
        f"version = {'.'.join(map(str, interpreter.version))}\n"
    )
    (folder / "bin" / "python").symlink_to(executable)
    return folder / "bin" / "python"

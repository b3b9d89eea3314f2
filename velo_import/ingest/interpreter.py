# SPDX-License-Identifier: Apache-2.0
"""Which Python a folder belongs to, and what that Python says about itself.

Knows virtual environments, installation prefixes and projects, and asks an interpreter by running it; what
the answer means for a manifest is left to format/manifest.py. The surprise: the question is asked in Python
2 syntax, because a clear refusal of 2.7 needs an answer from 2.7.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from velo_import.errors import VeloError
from velo_import.format.manifest import Build

OLDEST = (3, 11)
PATIENCE_SECONDS = (
    60.0  # A cold interpreter on a slow network disk needs seconds; a hung one would need for ever.
)

# Runs inside the interpreter in question. A marker precedes the answer: a `.pth` line may print before us.
MARKER = b"velo-probe:"
QUESTION = r"""
import sys
out = getattr(sys.stdout, "buffer", sys.stdout)
def say(name, value):
    out.write((name + "=" + value + "\0").encode("utf-8", "surrogateescape"))
out.write("velo-probe:".encode("ascii"))
name = getattr(getattr(sys, "implementation", None), "name", "cpython")
say("implementation", "pypy" if hasattr(sys, "pypy_version_info") else name)
say("version", ".".join(map(str, sys.version_info[:3])))
if sys.version_info >= (3, 11) and name == "cpython":
    import _imp, os
    from importlib import machinery, util
    say("executable", sys.executable or "")
    say("prefix", sys.prefix)
    say("base_prefix", sys.base_prefix)
    say("cache_tag", sys.implementation.cache_tag or "")
    say("magic", util.MAGIC_NUMBER.hex())
    say("abiflags", getattr(sys, "abiflags", ""))
    say("gil_disabled", "1" if "t" in getattr(sys, "abiflags", "") else "")
    for suffix in _imp.extension_suffixes() + machinery.SOURCE_SUFFIXES + machinery.BYTECODE_SUFFIXES:
        say("suffix", suffix)
    say("stdlib", getattr(sys, "_stdlib_dir", None) or os.path.dirname(os.__file__))
    for folder in sys.path:
        say("path", folder)
say("end", "")
"""


class Interpreter(NamedTuple):
    """What one CPython says about itself; every field is its own answer, none is guessed from a path."""

    executable: str
    prefix: str
    base_prefix: str
    version: str
    implementation: str
    cache_tag: str
    magic: bytes
    abiflags: str
    suffixes: tuple[str, ...]  # In the order in which the standard finder tries them.
    gil_disabled: bool
    stdlib: tuple[str, ...]
    sys_path: tuple[
        str, ...
    ]  # As a plain start gives it, without the script's own folder; may name missing folders.

    def build(self, optimisation: int = 0) -> Build:
        return Build(self.cache_tag, self.magic, optimisation, self.abiflags, self.suffixes)


class Probe:
    """A question on its way: the interpreter starts while the caller goes on working."""

    def __init__(self, python: str) -> None:
        self._python = python
        try:
            # -B: the question must not leave .pyc files in the user's environment.
            self._process = subprocess.Popen(
                [python, "-E", "-s", "-B", "-c", QUESTION],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_plain_environment(os.environ),
                cwd="/",
            )
        except OSError as error:
            raise VeloError(
                f"cannot run {_shown(python)}: {error.strerror}",
                hint="give a CPython 3.11 or later with --python",
            ) from None

    def answer(self) -> Interpreter:
        """The interpreter's answer; refuses what Velo cannot accelerate."""
        try:
            output, complaint = self._process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.abandon()
            raise VeloError(
                f"{_shown(self._python)} gave no answer in {PATIENCE_SECONDS:.0f} s",
                hint="run it by hand: a .pth file or sitecustomize there may be waiting for something",
            ) from None
        return _read_answer(self._python, output, complaint, self._process.returncode)

    def abandon(self) -> None:
        """Stop asking; used when the caller has failed in the meantime."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def probe(python: str) -> Interpreter:
    """Ask `python` (a path, or a name on PATH) who it is."""
    return Probe(python).answer()


def find_python(folder: Path, environ: Mapping[str, str] | None = None) -> str:
    """The interpreter that `folder` belongs to: environment, prefix, site-packages or project."""
    environ = os.environ if environ is None else environ
    if not folder.exists():
        raise VeloError(
            f"no such folder: {_shown(folder)}", hint="give a virtual environment, site-packages or project"
        )
    if not folder.is_dir():
        raise VeloError(
            f"not a folder: {_shown(folder)}", hint="give a virtual environment, site-packages or project"
        )

    if (folder / "pyvenv.cfg").is_file():
        return _python_of_environment(folder)
    owner = _owner_of_site_folder(folder)
    if owner is not None:
        return owner
    if any(
        folder.glob("lib/python3*/os.py")
    ):  # An installation prefix: CPython's own, conda, a container image.
        found = _first_runnable(folder, ("python3", "python"))
        if found is not None:
            return found
    for inside in (folder / ".venv", folder / "venv"):
        if (inside / "pyvenv.cfg").is_file():
            return _python_of_environment(inside)
    active = environ.get("VIRTUAL_ENV") or environ.get("CONDA_PREFIX")
    if active:
        return _python_of_environment(Path(active))
    on_path = shutil.which("python3", path=environ.get("PATH"))
    if on_path is None:
        raise VeloError(
            f"no python found for {_shown(folder)}",
            hint="activate its environment, or name the interpreter with --python",
        )
    return on_path


def _python_of_environment(environment: Path) -> str:
    found = _first_runnable(environment, ("python", "python3"))
    if found is None:
        raise VeloError(
            f"environment {_shown(environment)} is broken: bin/python is missing or leads nowhere",
            hint="create the environment anew, or name an interpreter with --python",
        )
    return found


def _first_runnable(prefix: Path, names: tuple[str, ...]) -> str | None:
    for name in names:
        candidate = prefix / "bin" / name
        if os.access(candidate, os.X_OK):
            return str(candidate)
    return None


def _owner_of_site_folder(folder: Path) -> str | None:
    """The interpreter of the nearest site-packages or dist-packages that is, or lies above, `folder`."""
    absolute = Path(os.path.abspath(folder))
    for place in (absolute, *absolute.parents):
        if place.name not in ("site-packages", "dist-packages"):
            continue
        prefix = place.parent.parent.parent  # <prefix>/lib/pythonX.Y/site-packages
        if (prefix / "pyvenv.cfg").is_file():
            return _python_of_environment(prefix)
        return _first_runnable(prefix, (place.parent.name, "python3"))
    return None


def _plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The child's environment without what changes Python's answer, and with Velo switched off."""
    unwanted = ("PYTHON", "VELO", "__PYVENV")
    plain = {name: value for name, value in environ.items() if not name.startswith(unwanted)}
    plain["VELO_DISABLE"] = "1"  # The environment may have been prepared by `velo enable`.
    return plain


def _read_answer(python: str, output: bytes, complaint: bytes, returncode: int) -> Interpreter:
    text = output.rpartition(MARKER)[2].decode("utf-8", "surrogateescape")
    said: dict[str, list[str]] = {}
    for record in text.split("\0"):
        name, _, value = record.partition("=")
        said.setdefault(name, []).append(value)
    if MARKER not in output or "end" not in said:
        last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise VeloError(
            f"{_shown(python)} does not work as a Python interpreter (exit code {returncode})"
            + (f": {last}" if last else ""),
            hint="create the environment anew, or name another interpreter with --python",
        )
    implementation, version = said["implementation"][0], said["version"][0]
    if implementation != "cpython":
        raise VeloError(
            f"{_shown(python)} is {implementation}, and its bytecode is not CPython's",
            hint="programs run unchanged under it; Velo speeds up CPython 3.11 or later",
        )
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise VeloError(
            f"{_shown(python)} is Python {version}; Velo needs 3.11 or later",
            hint="programs run unchanged under it; name a later interpreter with --python",
        )
    one = {name: values[0] for name, values in said.items()}
    if not one["cache_tag"]:
        raise VeloError(
            f"{_shown(python)} has bytecode caching switched off in its build",
            hint="name another with --python",
        )
    path = tuple(dict.fromkeys(folder for folder in said.get("path", ()) if folder.startswith("/")))
    return Interpreter(
        executable=one["executable"] or python,
        prefix=one["prefix"],
        base_prefix=one["base_prefix"],
        version=version,
        implementation=implementation,
        cache_tag=one["cache_tag"],
        magic=bytes.fromhex(one["magic"]),
        abiflags=one["abiflags"],
        suffixes=tuple(said["suffix"]),
        gil_disabled=bool(one["gil_disabled"]),
        stdlib=_stdlib_folders(one["stdlib"], path),
        sys_path=path,
    )


def _stdlib_folders(main: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """The folders of `path` that hold the standard library: that of os.py, and lib-dynload wherever it is."""
    return tuple(folder for folder in path if folder == main or os.path.basename(folder) == "lib-dynload")


def _shown(path: str | Path) -> str:
    """A path for a message: names that are not UTF-8 must not break the terminal."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")

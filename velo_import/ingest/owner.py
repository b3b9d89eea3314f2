# SPDX-License-Identifier: Apache-2.0
"""Which interpreter a folder belongs to, and the question that every interpreter is asked.

Knows virtual environments, installation prefixes and projects; running the interpreter is interpreter.py's.
Imports next to nothing: an unchanged environment is recognised before anything else is loaded. The surprise:
the question is asked in Python 2 syntax, because a clear refusal of 2.7 needs an answer from 2.7.
"""

from __future__ import annotations

import os

from velo_import.errors import VeloError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

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


def find_python(folder: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> str:
    """The interpreter that `folder` belongs to: environment, prefix, site-packages or project."""
    environ = os.environ if environ is None else environ
    folder = os.fspath(folder)
    if not os.path.exists(folder):
        raise VeloError(
            f"no such folder: {shown(folder)}", hint="give a virtual environment, site-packages or project"
        )
    if not os.path.isdir(folder):
        raise VeloError(
            f"not a folder: {shown(folder)}", hint="give a virtual environment, site-packages or project"
        )

    if _is_environment(folder):
        return _python_of_environment(folder)
    owner = _owner_of_site_folder(folder)
    if owner is not None:
        return owner
    if _holds_standard_library(folder):  # An installation: CPython's own, conda, a container image.
        found = _first_runnable(folder, ("python3", "python"))
        if found is not None:
            return found
    for inside in (".venv", "venv"):
        if _is_environment(os.path.join(folder, inside)):
            return _python_of_environment(os.path.join(folder, inside))
    active = environ.get("VIRTUAL_ENV") or environ.get("CONDA_PREFIX")
    if active:
        return _python_of_environment(active)
    import shutil  # 4 ms that an environment of its own need not pay

    on_path = shutil.which("python3", path=environ.get("PATH"))
    if on_path is None:
        raise VeloError(
            f"no python found for {shown(folder)}",
            hint="activate its environment, or name the interpreter with --python",
        )
    return on_path


def in_full(python: str) -> str:
    """An interpreter's path that holds in every folder; a name on PATH as it is."""
    return os.path.abspath(python) if "/" in python else python


def _is_environment(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "pyvenv.cfg"))


def _holds_standard_library(folder: str) -> bool:
    libraries = os.path.join(folder, "lib")
    try:
        names = [name for name in os.listdir(libraries) if name.startswith("python3")]
    except OSError:
        return False
    return any(os.path.exists(os.path.join(libraries, name, "os.py")) for name in names)


def _python_of_environment(environment: str) -> str:
    found = _first_runnable(environment, ("python", "python3"))
    if found is None:
        raise VeloError(
            f"environment {shown(environment)} is broken: bin/python is missing or leads nowhere",
            hint="create the environment anew, or name an interpreter with --python",
        )
    return found


def _first_runnable(prefix: str, names: tuple[str, ...]) -> str | None:
    for name in names:
        candidate = os.path.join(prefix, "bin", name)
        if os.access(candidate, os.X_OK):
            return candidate
    return None


def _owner_of_site_folder(folder: str) -> str | None:
    """The interpreter of the nearest site-packages or dist-packages that is, or lies above, `folder`."""
    place = os.path.abspath(folder)
    while place != os.path.dirname(place):
        if os.path.basename(place) in ("site-packages", "dist-packages"):
            library = os.path.dirname(place)  # <prefix>/lib/pythonX.Y/site-packages
            prefix = os.path.dirname(os.path.dirname(library))
            if _is_environment(prefix):
                return _python_of_environment(prefix)
            return _first_runnable(prefix, (os.path.basename(library), "python3"))
        place = os.path.dirname(place)
    return None


def answer_in(output: bytes) -> bytes:
    """What an interpreter said to the question; empty if it said nothing to it."""
    return output.rpartition(MARKER)[2] if MARKER in output else b""


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The child's environment without what changes Python's answer, and with Velo switched off."""
    unwanted = ("PYTHON", "VELO", "__PYVENV")
    plain = {name: value for name, value in environ.items() if not name.startswith(unwanted)}
    plain["VELO_DISABLE"] = "1"  # The environment may have been prepared by `velo enable`.
    return plain


def shown(path: str) -> str:
    """A path for a message: names that are not UTF-8 must not break the terminal."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")

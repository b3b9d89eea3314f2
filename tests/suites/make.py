# SPDX-License-Identifier: Apache-2.0
"""What a suite runs in: an environment of its own, the unpacked sdist, and an interpreter that has its tests.

Made once in the work folder and found again. The surprise: Debian keeps CPython's tests in a package of their
own, and `ensurepip` in another. They are not installed into the sid root (others use that root as it is) but
unpacked into a copy of the interpreter's library.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.support import sid
from tests.support.interpreters import Interpreter
from tests.support.running import clean_environment
from tests.sweep.make import find_uv

from .suites import Suite

PIP = "python3-pip-whl"
QUESTION = "import json, os, sys; print(json.dumps([os.path.dirname(os.__file__), sys.version.split()[0]]))"


class Missing(Exception):
    """The suite cannot be run here; the text says why."""


def library(python: Path) -> tuple[Path, str]:
    """The folder of the standard library, and the exact version."""
    done = subprocess.run([python, "-I", "-c", QUESTION], capture_output=True, text=True, check=True)
    folder, version = json.loads(done.stdout)
    return Path(folder), version


def interpreter_with_tests(interpreter: Interpreter, work: Path) -> Path:
    """The executable of an interpreter whose library has the package `test`, whole."""
    python = interpreter.resolve()
    stdlib, _ = library(python)
    if (stdlib / "test" / "test_importlib").is_dir():
        return python
    if interpreter.path is None:
        return with_debian_tests(python, stdlib, work / f"debian-{interpreter.name}")
    raise Missing(f"{python} has no tests of CPython")


def with_debian_tests(python: Path, stdlib: Path, folder: Path) -> Path:
    """A copy of the sid root's interpreter and library below `folder`, with the tests of the same version."""
    copy = folder / "usr" / "bin" / python.name
    if (folder / "complete").exists():
        return copy
    shutil.rmtree(folder, ignore_errors=True)
    copy.parent.mkdir(parents=True)
    shutil.copy2(python, copy)
    shutil.copytree(stdlib, folder / "usr" / "lib" / stdlib.name, symlinks=True)
    for package in (f"lib{stdlib.name}-testsuite", f"{stdlib.name}-venv", PIP):
        unpack_debian(package, folder)
    # Debian has one wheel of pip for all of its Pythons; this machine may have another in the same place.
    for facts in {path.resolve() for path in (folder / "usr" / "lib" / stdlib.name).glob("_sysconfig*_*")}:
        facts.write_text(
            facts.read_text().replace("/usr/share/python-wheels", f"{folder}/usr/share/python-wheels")
        )
    (folder / "complete").touch()
    return copy


def unpack_debian(package: str, folder: Path) -> None:
    """Unpack a package of the release that the sid root was made of, as its index says."""
    (index,) = (sid.folder() / "var" / "lib" / "apt" / "lists").glob("*_Packages")
    _, _, rest = index.read_text().partition(f"Package: {package}\n")
    fields = dict(line.split(": ", 1) for line in rest.partition("\n\n")[0].splitlines() if ": " in line)
    if "Filename" not in fields:
        raise Missing(f"Debian sid has no {package} at present")
    target = folder / Path(fields["Filename"]).name
    try:
        urllib.request.urlretrieve(f"{sid.mirror()}/{fields['Filename']}", target)
        if hashlib.sha256(target.read_bytes()).hexdigest() != fields["SHA256"]:
            raise Missing(f"{target.name} is not what the index of the sid root says")
        subprocess.run(["dpkg-deb", "-x", target, folder], check=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        raise Missing(f"{target.name}: {problem}") from problem
    target.unlink()


@dataclass(frozen=True)
class Made:
    """What a suite runs in. `base` is the interpreter that environments are made of; `python` is that of the
    suite's own environment, None where each part makes one.
    """

    folder: Path
    base: Path
    interpreter: Interpreter
    python: Path | None
    here: Path  # the folder to stand in
    stdlib: Path
    version: str


def make(suite: Suite, interpreter: Interpreter, work: Path) -> Made:
    """Make it, or find it as it was made earlier."""
    if not suite.is_for(interpreter.name):
        raise Missing(f"is for {', '.join(suite.only)} only")
    place = work / interpreter.name / suite.name
    here, ready = place / "source", place / "ready"
    is_regrtest = suite.kind == "regrtest"
    base = interpreter_with_tests(interpreter, work) if is_regrtest else interpreter.resolve()
    if not ready.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if not is_regrtest:
            _install(suite, base, place)
        if suite.source:
            unpack(download(suite.source, work / "sources"), here)
            for package in suite.native:
                add_native(package, place / "venv", here)
        else:
            here.mkdir()
        ready.touch()
    stdlib, version = library(base)
    python = None if is_regrtest else place / "venv" / "bin" / "python"
    return Made(place, base, interpreter, python, here, stdlib, version)


def add_native(package: str, environment: Path, source: Path) -> None:
    """Give a package of the sdist, which hides the installed one from those who stand there, what that has
    more of: the native modules.
    """
    for each in environment.glob(f"lib/python*/site-packages/{package}/*.so"):
        shutil.copy2(each, source / package)


def _install(suite: Suite, base: Path, place: Path) -> None:
    uv = find_uv()
    variables = clean_environment(Path.home(), UV_LINK_MODE="copy")
    commands = [
        ["venv", "-q", "--no-project", "--python", str(base), str(place / "venv")],
        ["pip", "install", "-q", "--python", str(place / "venv" / "bin" / "python"), "--compile-bytecode"],
    ]
    commands[1] += suite.install
    for command in commands:
        done = subprocess.run([uv, *command], env=variables, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"{suite.name}: {done.stderr.strip()[-600:]}")


def download(requirement: str, folder: Path) -> Path:
    """The sdist of `name==version`."""
    folder.mkdir(parents=True, exist_ok=True)
    name, _, version = requirement.partition("==")
    pattern = f"{name}-{version}.tar.gz"
    if not (folder / pattern).exists():
        command = ["-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "-d", str(folder)]
        done = subprocess.run([sys.executable, *command, requirement], capture_output=True, text=True)
        if not (folder / pattern).exists():
            raise Missing(f"no sdist of {requirement}: {done.stderr.strip()[-600:]}")
    return folder / pattern


def unpack(archive: Path, target: Path) -> None:
    """The one folder inside of the archive becomes `target`."""
    with tarfile.open(archive) as opened:
        opened.extractall(target.parent / "unpacked", filter="data")
    (inner,) = (target.parent / "unpacked").iterdir()
    inner.rename(target)
    inner.parent.rmdir()

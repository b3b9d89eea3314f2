# SPDX-License-Identifier: Apache-2.0
"""A Debian sid root: the newest CPythons, made by debootstrap in half a minute and kept in a cache folder.

`python -m tests.support.sid` makes it (or finds it) and prints its interpreters. Needs root, apt and a
network; without them `Unavailable` says what was missing, and the tests skip with that reason.

Surprise: nothing is run by chroot. The interpreters are told by patchelf to use the loader and the libraries
of their own root (DT_RPATH, which the extension modules inherit), so they are ordinary executables here: they
see the same paths as the test, and the learner can run them by the path that it was told. Inside a chroot
that path would mean nothing outside, and Velo with all its dependencies would have to be installed once more
in there.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ((3, 15), (3, 14))
LIMIT = 400  # Seconds for one step; far more than a slow mirror needs, far less than a CI job allows.
LAYOUT = 1  # Part of the folder's name: raise it when an existing root would no longer do.


class Unavailable(Exception):
    """There is no sid root and none can be made; the text says why."""


def folder() -> Path:
    """Where the root is kept; VELO_TESTS_SID names another place."""
    if named := os.environ.get("VELO_TESTS_SID"):
        return Path(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "velo-tests" / f"sid-{LAYOUT}"


def mirror() -> str:
    """Where the root's packages came from, as debootstrap wrote it down."""
    return (folder() / "etc" / "apt" / "sources.list").read_text().split()[1]


def interpreter(version: tuple[int, ...]) -> Path:
    """The executable of one version, making the root on first use."""
    path = root() / "usr" / "bin" / f"python{version[0]}.{version[1]}"
    if not path.exists():
        raise Unavailable(f"Debian sid has no {path.name} at present")
    return path


@functools.cache
def attempt() -> Path | str:
    """The root, or the reason why there is none. Tried once in a session: a failure takes as long as a
    success.
    """
    try:
        return ready()
    except Unavailable as reason:
        return str(reason)


def root() -> Path:
    answer = attempt()
    if isinstance(answer, str):
        raise Unavailable(answer)
    return answer


def ready() -> Path:
    place = folder()
    if (place / "ready").exists():
        return place
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Unavailable("a Debian sid root can only be made by root on Linux")
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(
        f"{place}.lock", "w"
    ) as lock:  # Two test runs on one machine: the second waits, then finds it ready.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "ready").exists():
            make(place)
    return place


def make(place: Path) -> None:
    """Bootstrap into `place`; an unfinished attempt of earlier is thrown away."""
    tools = {name: shutil.which(name) for name in ("debootstrap", "patchelf")}
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        if shutil.which("apt-get") is None:
            raise Unavailable(f"there is no {' and no '.join(missing)}, and no apt-get to install it")
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing)
    shutil.rmtree(place, ignore_errors=True)
    packages = [f"python{major}.{minor}" for major, minor in VERSIONS]
    try:
        bootstrap(place, packages)
    except Unavailable:  # Sid drops and gains versions; python3 is always there.
        shutil.rmtree(place, ignore_errors=True)
        bootstrap(place, ["python3"])
    for executable in sorted((place / "usr" / "bin").glob("python3.*[0-9]")):
        detach(place, executable)
    (place / "ready").touch()


def bootstrap(place: Path, packages: list[str]) -> None:
    run("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", "sid", str(place))


def detach(place: Path, executable: Path) -> None:
    """Let one interpreter of the root run outside of it."""
    loaders = sorted((place / "usr").glob("lib*/ld-linux*.so.*"))
    libraries = sorted((place / "usr" / "lib").glob("*-linux-gnu"))
    if not loaders or not libraries:
        raise Unavailable(f"no dynamic loader in {place}")
    path = ":".join(str(each) for each in libraries)
    run(
        "patchelf",
        "--force-rpath",
        "--set-rpath",
        path,
        "--set-interpreter",
        str(loaders[0]),
        str(executable),
    )
    # Debian's own sitecustomize is a link to /etc; keep it inside, it is a real case of one that we must
    # chain to.
    for link in (place / "usr" / "lib" / executable.name).iterdir():
        if link.is_symlink() and os.readlink(link).startswith("/"):
            target = place / os.readlink(link).lstrip("/")
            link.unlink()
            link.symlink_to(target)


def run(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, timeout=LIMIT
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unavailable(f"{command[0]}: {problem}") from problem
    if done.returncode != 0:
        last = (done.stdout.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise Unavailable(f"{command[0]} failed ({last})")


if __name__ == "__main__":
    try:
        for found in sorted((root() / "usr" / "bin").glob("python3.*[0-9]")):
            print(found)
    except Unavailable as reason:
        sys.exit(f"no Debian sid root: {reason}")

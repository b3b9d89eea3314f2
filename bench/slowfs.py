# SPDX-License-Identifier: Apache-2.0
"""Building slowfs.c and mounting a folder through it. Knows nothing about what is run on the mount.

Each `mounted` block is a fresh mount, so it starts with an empty client cache, as a job does that has just
been placed on a machine; within it names and attributes are remembered for three seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.measure import BenchmarkFault, companion

SOURCE = Path(__file__).with_name("slowfs.c")
_OPTIONS = "ro,attr_timeout=3,entry_timeout=3,negative_timeout=3"


class Unavailable(Exception):
    """This machine cannot mount it; the message is the reason to print."""


def compile_slowfs(work: Path) -> Path:
    """The server's executable, compiled when the source has changed."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    target = work / f"slowfs-{digest}"
    if target.exists():
        return target
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or shutil.which("pkg-config") is None:
        raise Unavailable("no C compiler or no pkg-config")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True)
    if flags.returncode != 0:
        raise Unavailable("libfuse 3 headers missing: apt-get install libfuse3-dev fuse3")
    fresh = target.with_suffix(f".{os.getpid()}")
    built = subprocess.run(
        [compiler, "-O2", "-Wall", "-Wextra", str(SOURCE), "-o", str(fresh), *flags.stdout.split()],
        capture_output=True,
        text=True,
    )
    if built.returncode != 0:
        raise Unavailable(f"slowfs.c does not compile: {built.stderr.strip()[-300:]}")
    fresh.rename(target)
    return target


def require(work: Path) -> Path:
    """The executable, after checking everything that mounting needs."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise Unavailable("/dev/fuse is missing or not ours to open")
    if shutil.which("fusermount3") is None:
        raise Unavailable("fusermount3 missing: apt-get install fuse3")
    return compile_slowfs(work)


@contextlib.contextmanager
def mounted(server: Path, source: Path, target: Path, delay_us: int) -> Iterator[dict[str, int]]:
    """`source` readable at `target`; after the block the yielded dictionary holds the requests by kind."""
    counts: dict[str, int] = {}
    command = [str(server), f"--source={source}", f"--delay-us={delay_us}", str(target), "-f", "-o", _OPTIONS]
    with companion(command) as process:
        _wait_until(lambda: _is_mounted(target), process)
        try:
            yield counts
        finally:
            _unmount(target)
            report = process.communicate(timeout=10)[1].decode()
            for line in report.splitlines()[-1:]:
                counts.update(
                    (name, int(number)) for name, _, number in (w.partition("=") for w in line.split())
                )


def _is_mounted(target: Path) -> bool:
    wanted = str(target).replace(" ", "\\040")  # as mountinfo writes it
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(line.split(" ", 5)[4] == wanted for line in lines)


def _wait_until(condition, process: subprocess.Popen[bytes], timeout: float = 5.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            message = process.stderr.read().decode().strip() if process.stderr else ""
            raise Unavailable(f"slowfs did not mount: {message[-300:]}")
        if time.monotonic() > deadline:
            raise BenchmarkFault("slowfs did not mount in time")
        time.sleep(0.002)


def _unmount(target: Path) -> None:
    for attempt in range(50):
        if subprocess.run(["fusermount3", "-u", str(target)], capture_output=True).returncode == 0:
            return
        time.sleep(0.02 * (attempt + 1))  # busy: a process that used it is still ending
    raise BenchmarkFault(f"could not unmount {target}")

# SPDX-License-Identifier: Apache-2.0
"""One process from spawn to exit: wall time, CPU, peak memory, output. Also: nobody's leftovers run during
a measurement.

This process becomes a *child subreaper*, so that a learner which detached itself from an accelerated
program is handed to us when its parent ends. `settle()` waits for it (the next run is undisturbed) and
returns what it consumed. Linux only.

The surprise: `ru_maxrss` of a child never reads less than the peak of the process that spawned it (exec
keeps the old peak), so `peak_memory` spawns through a bare interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
_ours: set[int] = set()  # long-lived children that settle() must not wait for (a file system server)


class Sample(NamedTuple):
    """One finished process."""

    seconds: float
    user: float
    system: float
    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def output(self) -> tuple[int, bytes, bytes]:
        return (self.exit_code, self.stdout, self.stderr)


class BenchmarkFault(Exception):
    """A measurement that would not mean what its label says."""


def run_as_program(main: Callable[[], int]) -> None:
    """End this process with what `main` returns; a fault is one line, and stopping by hand is no fault."""
    with contextlib.suppress(KeyboardInterrupt):
        try:
            sys.exit(main())
        except BenchmarkFault as fault:
            sys.exit(f"error: {fault}")


def become_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def run(argv: Sequence[str], environment: Mapping[str, str]) -> Sample:
    """Run to the end; output goes to memory files, so that nothing we do can make the program wait."""
    out = os.memfd_create("stdout")
    err = os.memfd_create("stderr")
    null = os.open(os.devnull, os.O_RDONLY)
    actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)]
    try:
        begin = time.perf_counter()
        pid = os.posix_spawn(argv[0], list(argv), dict(environment), file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - begin
        return Sample(
            seconds,
            usage.ru_utime,
            usage.ru_stime,
            os.waitstatus_to_exitcode(status),
            os.pread(out, 1 << 24, 0),
            os.pread(err, 1 << 24, 0),
        )
    finally:
        for descriptor in (out, err, null):
            os.close(descriptor)


def orphans() -> list[int]:
    """Children that this process did not start to keep: they detached themselves from a measured one."""
    children = []
    me = str(os.getpid())
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in _ours:
            continue
        with contextlib.suppress(OSError):
            stat = Path("/proc", entry, "stat").read_bytes()
            # The command name may hold spaces and brackets; the fields after its last bracket are plain.
            if stat[stat.rindex(b")") + 2 :].split()[1].decode() == me:
                children.append(int(entry))
    return children


def settle(timeout: float = 120.0) -> list[float]:
    """Wait until every detached process has ended; the CPU seconds of each, its own children included."""
    consumed: list[float] = []
    deadline = time.monotonic() + timeout
    while pids := orphans():
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                done, _, usage = os.wait4(pid, os.WNOHANG)
                if done:
                    consumed.append(usage.ru_utime + usage.ru_stime)
        if time.monotonic() > deadline:
            raise BenchmarkFault(f"a detached process did not end within {timeout:.0f} s")
        time.sleep(0.005)
    return consumed


@contextlib.contextmanager
def companion(argv: Sequence[str], environment: Mapping[str, str] | None = None):  # type: ignore[no-untyped-def]
    """A server that lives during a measurement; ended by its own process id."""
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _ours.add(process.pid)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(10)
        _ours.discard(process.pid)


_SPAWNER = (
    "import os, sys\n"
    "null = os.open(os.devnull, os.O_WRONLY)\n"
    "actions = [(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)]\n"
    "pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions)\n"
    "_, status, usage = os.wait4(pid, 0)\n"
    "print(status, usage.ru_maxrss)\n"
)


def peak_memory(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Peak resident memory in KiB (`ru_maxrss`), spawned by a process smaller than any program measured."""
    done = run([sys.executable, "-I", "-S", "-c", _SPAWNER, *argv], environment)
    status, kibibytes = (int(word) for word in done.stdout.split())
    if status != 0:
        raise BenchmarkFault(f"program failed with status {status}")
    return kibibytes

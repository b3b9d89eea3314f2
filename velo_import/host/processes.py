# SPDX-License-Identifier: Apache-2.0
"""How much of the machine is ours, and how to take less of it.

Knows priorities, limits and processor counts; what work is done with them is decided elsewhere.
Its surprise: the number of processors is often a lie inside a container, where the quota is what counts.
"""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def calm_down(*, cpu_seconds: int | None = None) -> None:
    """Let everybody else go first, from now on; with a limit the kernel ends us when it is used up."""
    import psutil  # only those who calm down pay for it

    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)
    with suppress(psutil.Error, OSError, AttributeError):  # not every system has I/O priorities
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    if cpu_seconds is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + cpu_seconds
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


@contextmanager
def without_collector() -> Iterator[None]:
    """Collect no cycles meanwhile: for work that makes many small records and none, of which the collector
    would take a tenth to a fifth of the time.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()


def available_cores() -> int:
    """Processors that we may use at once: affinity and container quota counted in, never less than one."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cores = os.cpu_count() or 1
    quota = _quota()
    return max(1, cores if quota is None else min(cores, round(quota)))


def _quota(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The tightest processor quota on the way up from our control group (version 2, then version 1)."""
    quotas = []
    with suppress(OSError, ValueError, IndexError):
        line = next((line for line in own.read_text().splitlines() if line.startswith("0::")), "0::/")
        folder = cgroups / line[3:].lstrip("/")
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):
                allowed, period = (group / "cpu.max").read_text().split()
                quotas.append(int(allowed) / int(period))  # "max" is no number: no quota here
            if group == cgroups:
                break
    with suppress(OSError, ValueError, ZeroDivisionError):
        allowed = (cgroups / "cpu" / "cpu.cfs_quota_us").read_text()
        if int(allowed) > 0:
            quotas.append(int(allowed) / int((cgroups / "cpu" / "cpu.cfs_period_us").read_text()))
    return min(quotas, default=None)

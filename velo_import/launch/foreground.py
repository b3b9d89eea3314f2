# SPDX-License-Identifier: Apache-2.0
"""A command run to its end as if nobody stood above it: its streams, signals and end are its own.

For commands that have something to do afterwards; `velo run` becomes its program instead (execute.py).
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

from ..errors import VeloError
from .execute import CANNOT_START, NOT_FOUND, WHAT_TO_CHECK

# A terminal sends these to the whole group; others come to us alone, and are handed on.
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
HANDED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class CannotStart(VeloError):
    """The command does not start; the exit code is the one of `velo run`."""

    def __init__(self, program: str, reason: str, code: int) -> None:
        super().__init__(f"cannot start {program!r}: {reason}", hint=WHAT_TO_CHECK[code])
        self.exit_code = code


def run(words: Sequence[str], environment: Mapping[str, str], stdout: int | None = None) -> tuple[int, int]:
    """Run a command; its process id, and its exit code or the negative number of the signal that ended it.

    Args:
        stdout: a descriptor for its standard output; its own otherwise.

    Raises:
        CannotStart: there is no such command, or it cannot be executed.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {}
    for number in (*FROM_TERMINAL, *HANDED_ON):
        # What is ignored stays ignored, for the command too. A handler, unlike that, is not inherited.
        if signal.getsignal(number) is not signal.SIG_IGN:
            stays = number in FROM_TERMINAL
            before[number] = signal.signal(number, (lambda number, frame: None) if stays else hand_on)
    try:
        process = _start(list(words), environment, stdout)
        for missed in early:
            process.send_signal(missed)
        return process.pid, process.wait()
    finally:
        for changed, handler in before.items():
            signal.signal(changed, handler)


def end_like(code: int) -> int:
    """The exit code to end with; where the command was ended by a signal, end by the same one at once."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # One core dump is enough.
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        return 128 - code  # It was one that ends nobody after all.
    return code


def _start(words: list[str], environment: Mapping[str, str], stdout: int | None) -> subprocess.Popen[bytes]:
    try:
        try:
            return subprocess.Popen(words, env=environment, stdout=stdout, close_fds=False)
        except OSError as error:
            if error.errno != 8:  # ENOEXEC: a script without `#!`, as in execute.py
                raise
            script = shutil.which(words[0], path=environment.get("PATH")) or words[0]
            return subprocess.Popen(
                ["/bin/sh", script, *words[1:]], env=environment, stdout=stdout, close_fds=False
            )
    except FileNotFoundError:
        raise CannotStart(words[0], "not found", NOT_FOUND) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotStart(words[0], reason.lower(), CANNOT_START) from None

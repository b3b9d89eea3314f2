# SPDX-License-Identifier: Apache-2.0
"""Errors a user can act on: what failed, and a hint. Everything else is a bug and keeps its traceback.

    VeloError            1   something failed
    ├── UsageFault       2   the command was given something it cannot work with
    ├── StoreMissing    10   there is no store
    ├── StoreLocked     11   another process is writing
    ├── StoreCorrupt    12   bytes in the store are not what they should be
    └── Stopped        130   the user interrupted

Messages are lower case, say what failed first, and have no full stop. Printing them is cli/render.py's work.
"""

from __future__ import annotations


class VeloError(Exception):
    """Something failed, and the hint says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageFault(VeloError):
    """The command was given something it cannot work with."""

    exit_code = 2


class StoreMissing(VeloError):
    """There is no store where one was expected."""

    exit_code = 10


class StoreLocked(VeloError):
    """Another process is writing to the store."""

    exit_code = 11


class StoreCorrupt(VeloError):
    """Bytes in the store are not what they should be."""

    exit_code = 12


class Stopped(VeloError):
    """The user interrupted the work."""

    exit_code = 130

# SPDX-License-Identifier: Apache-2.0
"""Which door a command takes: `velo run` is start-up code, and skips the command line's machinery; so does an
ingest that has nothing to do.

Knows only the first word: neither may import click or anything else that is slow.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # collections.abc would import collections, 1.5 ms
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `velo` and `python -m velo_import`; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _through_its_door(given)
    except KeyboardInterrupt:  # While something was loaded; what the command line runs it explains itself.
        sys.stderr.write("error: stopped\n")
        return 130


def _through_its_door(given: list[str]) -> int:
    if given[:1] == ["run"] and given[1:2] not in (["--help"], ["-h"]):
        from .launch.execute import run

        return run(given[1:])
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _open_standard_streams()
    if given[:1] == ["ingest"]:
        from .cli.unchanged import answer

        code = answer(given[1:])
        if code is not None:
            return code
    from .cli.main import command_line

    return command_line(given)


def _open_standard_streams() -> None:
    """Whoever closed one of them (`velo gc >&-`, a daemon) means /dev/null: else the next file that is opened
    gets its number, and whatever a child writes there.
    """
    import os

    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Which door a command takes: `run` and `learn` are start-up code and skip the command line's machinery.

Knows only the first word. `velo run` execs the program, so it must not import click or anything else that
is slow.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `velo` and `python -m velo_import`; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["run"] and given[1:2] not in (["--help"], ["-h"]):
        from .launch.execute import run

        return run(given[1:])
    from .cli.main import command_line

    return command_line(given)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""The `velo` command: which commands there are, and what an error looks like. Each command's module is
imported only when it is called, so that `velo --help` stays quick.

Exit codes: 0 ok, 1 failed, 2 usage, 10 no store, 11 locked, 12 corrupt, 130 stopped. An exception that is
not a VeloError is a bug and keeps its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import click

from .. import __version__
from ..errors import Stopped, UsageFault, VeloError
from . import render


class Entry(NamedTuple):
    """A command: the module that has it, and its line in the help."""

    module: str
    summary: str
    hidden: bool = False


COMMANDS = {
    "run": Entry("run", "run a program, faster, unchanged"),
    "ingest": Entry("ingest", "learn a whole environment ahead of time"),
    "pack": Entry("pack", "lay a program out in the order in which it starts, for cold starts"),
    "env": Entry("env", "print the variables that inject Velo"),
    "enable": Entry("enable", "put Velo into one environment"),
    "disable": Entry("disable", "take Velo out of an environment, without trace"),
    "status": Entry("status", "what the store knows and how big it is"),
    "explain": Entry("explain", "who would serve a module, and why or why not"),
    "trace": Entry("trace", "what each import of a program took, and who served it"),
    "doctor": Entry("doctor", "check everything that can keep Velo from helping"),
    "gc": Entry("gc", "remove what no environment needs any more"),
    "verify": Entry("verify", "read the store again and repair what is damaged"),
    "rebuild": Entry("rebuild", "make the catalogue of the store again"),
    "manifest": Entry("manifest", "list, query, measure, compare and export manifests"),
    "store": Entry("store", "path and size of the store"),
    "config": Entry("config", "show, locate and validate the configuration"),
    "tour": Entry("tour", "measure plain and accelerated imports of real packages here"),
    "completion": Entry("completion", "print shell completion code"),
    "learn": Entry("learn", "publish what a program imported; called by the hook", hidden=True),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; the help comes from the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in COMMANDS.items() if not entry.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = import_module(f"{__package__}.{entry.module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, Any, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no such command: {args[0]}{_nearest(args[0])}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="velo", message="%(prog)s %(version)s")
def velo() -> None:
    """Programs start faster, unchanged.

    \b
    velo run -- python app.py     the first run learns, the second is fast
    velo tour                     see what it does on this machine
    """


def command_line(arguments: Sequence[str]) -> int:
    """Run one command and turn what it raises into words and an exit code."""
    as_json = "--json" in arguments
    try:
        result = velo.main(args=list(arguments), prog_name="velo", standalone_mode=False)
        render.flush()
    except VeloError as error:
        return render.failure(error, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return render.failure(_as_fault(error), as_json)
    except (click.Abort, KeyboardInterrupt):
        return render.failure(Stopped("stopped"), as_json)
    except BrokenPipeError:
        # The reader has seen enough (`velo status | head`); keep Python's own flush at exit quiet as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno is None or not error.filename:
            if _has_current_folder():
                raise
            error = FileNotFoundError(error.errno, "", "the current folder")
        return render.failure(_as_refusal(error), as_json)
    return result if isinstance(result, int) else 0


def _as_fault(error: click.ClickException) -> UsageFault:
    """A click error in our voice: lower case, no full stop, and a hint."""
    message = " ".join(error.format_message().split()).rstrip(".")
    path = "velo"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        path = error.ctx.command_path
    return UsageFault(message[:1].lower() + message[1:], hint=f"see `{path} --help`")


def _has_current_folder() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _as_refusal(error: OSError) -> VeloError:
    """What the system refused somewhere where nobody expected it to."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    reason = os.strerror(error.errno or 0).lower()
    return VeloError(
        f"{name}: {reason}", hint="check that path and who may use it; `velo doctor` looks at the store"
    )


def _nearest(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, [name for name, entry in COMMANDS.items() if not entry.hidden], n=1)
    return f"; did you mean {near[0]}?" if near else ""

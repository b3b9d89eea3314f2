# SPDX-License-Identifier: Apache-2.0
"""`velo completion`: click's completion code for a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from . import render


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print completion code.

    \b
    eval "$(velo completion bash)"            in ~/.bashrc
    velo completion fish > ~/.config/fish/completions/velo.fish
    """
    from .main import velo

    kind = get_completion_class(shell)
    assert kind is not None
    render.line(kind(velo, {}, "velo", "_VELO_COMPLETE").source().rstrip("\n"))

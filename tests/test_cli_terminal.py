# SPDX-License-Identifier: Apache-2.0
"""What a person at a terminal sees: colour unless NO_COLOR, progress unless unwanted, the same words."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest

from tests.support.running import VELO, Velo
from tests.support.tree import Tree

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])m")


def at_terminal(velo: Velo, *arguments: str, **variables: str | None) -> str:
    """Output and errors of a command, both on one pseudo-terminal."""
    master, slave = pty.openpty()
    environment = velo.velo_environment(
        **{"TERM": "xterm-256color", "COLUMNS": "200", "NO_COLOR": None, **variables}
    )
    process = subprocess.Popen(
        [*VELO, *arguments], cwd=velo.cwd, env=environment, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    seen = bytearray()
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the last holder of the terminal is gone
            break
        if not part:
            break
        seen += part
    os.close(master)
    process.wait(timeout=60)
    return seen.decode()


@pytest.mark.parametrize("no_color", [None, "1"])
def test_colour_is_a_choice(velo: Velo, no_color: str | None) -> None:
    """`velo doctor` marks its lines in colour; NO_COLOR takes the colour and leaves the words."""
    shown = at_terminal(velo, "doctor", "--python", str(velo.python), NO_COLOR=no_color)

    assert bool(COLOUR.search(shown)) == (no_color is None)
    assert "ok    interpreter: cpython" in ESCAPE.sub("", shown)


def test_tables_say_the_same_in_a_pipe(velo: Velo) -> None:
    """Only blanks and escapes differ."""
    piped = velo.command("config", "show").stdout
    shown = ESCAPE.sub("", at_terminal(velo, "config", "show"))

    assert shown.split() == piped.split()


def test_names_do_not_steer_the_terminal(velo: Velo, tree: Tree) -> None:
    """A folder that somebody else has named is shown, in a table and in a line, and not obeyed."""
    title = "\x1b]0;title\x07"
    tree.write({f"{title}/app.py": ""})
    velo.ingest(tree / title)

    shown = at_terminal(velo, "manifest", "stats") + at_terminal(velo, "manifest", "query", "app")

    assert title not in shown
    assert shown.count(r"\x1b]0;title\x07") >= 2


@pytest.mark.parametrize("quiet", [None, "1"])
def test_progress_can_be_switched_off(velo: Velo, tree: Tree, quiet: str | None) -> None:
    """Some terminals are logs in disguise; progress hides the cursor, so that tells whether it was there."""
    tree.write({"app.py": "import helper", "helper.py": ""})

    shown = at_terminal(velo, "ingest", "--python", str(velo.python), ".", VELO_NO_PROGRESS=quiet)

    assert ("\x1b[?25l" in shown) == (quiet is None)
    assert "files/s" in shown

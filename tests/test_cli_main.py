# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: help, errors and hints, JSON, exit codes, pipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.running import CHECKOUT, VELO, Velo
from velo_import.cli import render
from velo_import.cli.main import COMMANDS
from velo_import.cli.main import velo as group
from velo_import.errors import StoreMissing

LEAVES = [
    *(name for name in COMMANDS if name not in ("manifest", "store", "config")),
    *(f"manifest {name}" for name in ("list", "query", "stats", "tree", "diff", "export")),
    *(f"store {name}" for name in ("path", "size", "clear", "repack", "share")),
    *(f"config {name}" for name in ("show", "path", "validate")),
]


def test_the_contract_is_there() -> None:
    """The commands that design and README promise."""
    promised = [
        "run",
        "ingest",
        "pack",
        "env",
        "enable",
        "disable",
        "status",
        "explain",
        "trace",
        "doctor",
        "gc",
        "verify",
        "rebuild",
        "manifest",
        "store",
        "config",
        "tour",
        "completion",
    ]

    assert [name for name, entry in COMMANDS.items() if not entry.hidden] == promised


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_explains_itself(velo: Velo, name: str) -> None:
    """`--help` works everywhere, with a sentence, and touches nothing."""
    result = velo.command(*name.split(), "--help")

    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: velo {name}")
    assert not velo.home.exists()


def test_the_readme_lists_every_command() -> None:
    """Nobody should have to guess that a command exists."""
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8")

    for name, entry in COMMANDS.items():
        assert entry.hidden or f"`velo {name}" in text, name


def test_help_imports_no_command(tmp_path: Path) -> None:
    """`velo --help` is quick because nothing but click is loaded for it."""
    code = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "from velo_import.__main__ import main; main(['--help'])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)

    loaded = set(done.stderr.split())
    assert {"velo_import.cli.main", "click"} <= loaded
    assert not loaded & {
        "rich",
        "lmdb",
        "blake3",
        "cbor2",
        "psutil",
        "velo_import.store",
        "velo_import.ingest",
    }


def test_a_mistyped_command_is_answered_with_the_right_one(velo: Velo) -> None:
    """Exit code 2, what failed, and where to look."""
    result = velo.command("ingets")

    assert (result.code, result.stdout) == (2, "")
    assert result.stderr == "error: no such command: ingets; did you mean ingest?\nhint: see `velo --help`\n"


@pytest.mark.parametrize(
    "arguments",
    [["status", "--nope"], ["explain"], ["env", "--shell", "tcsh"], ["ingest", "--jobs", "0", "."]],
)
def test_usage_faults_have_one_form(velo: Velo, arguments: list[str]) -> None:
    """One line what failed, one line hint, on stderr; nothing on stdout."""
    result = velo.command(*arguments)

    assert (result.code, result.stdout) == (2, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ") and error[7].islower() and not error.endswith(".")
    assert hint == f"hint: see `velo {arguments[0]} --help`"


def test_errors_are_json_when_asked(velo: Velo) -> None:
    """With --json a script gets code, message and hint as one object, still on stderr."""
    result = velo.command("status", "--json")
    body = json.loads(result.stderr)["error"]

    assert (result.code, result.stdout, body["code"]) == (10, "", 10)
    assert body["message"].startswith("there is no store in ")
    assert "velo run" in body["hint"]


def test_every_error_of_the_tree_has_its_exit_code() -> None:
    """The table of the README."""
    from velo_import import errors

    codes = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}

    assert codes == {
        "VeloError": 1,
        "UsageFault": 2,
        "StoreMissing": 10,
        "StoreLocked": 11,
        "StoreCorrupt": 12,
        "Stopped": 130,
    }


def test_an_interrupt_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is no bug: no traceback."""
    from velo_import.cli import main

    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(group, "main", interrupt)

    assert main.command_line(["status"]) == 130
    assert capsys.readouterr().err == "error: stopped\n"


@pytest.mark.parametrize("module", ["click", "cli.unchanged", "launch.execute"])
def test_an_interrupt_while_velo_is_being_loaded(velo: Velo, module: str) -> None:
    """A hundred milliseconds in which people press Ctrl-C, too."""
    words = {"click": ["status"], "cli.unchanged": ["ingest", "."], "launch.execute": ["run", "--", "true"]}
    code = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.endswith({module!r}): raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"from velo_import.__main__ import main; sys.exit(main({words[module]!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=velo.velo_environment()
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: stopped\n")


def test_a_reader_that_has_seen_enough_is_no_error(velo: Velo) -> None:
    """`velo config show | head -1` ends quietly."""
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run(
        [*VELO, "config", "show"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        env=velo.velo_environment(),
        cwd=velo.cwd,
    )
    assert reader.stdin is not None
    reader.stdin.close()

    assert done.stderr == b""


def test_the_version_is_printed(velo: Velo) -> None:
    """For issue reports."""
    assert velo.command("--version").stdout.startswith("velo 0.")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_code_names_our_variable(velo: Velo, shell: str) -> None:
    """click's own code, for the command called velo."""
    assert "_VELO_COMPLETE" in velo.command("completion", shell).stdout


def test_names_that_are_no_text_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A path with a byte that is no UTF-8 must not end a report."""
    render.line("caf\udce9")
    render.table(("path",), [("caf\udce9",)])

    assert "caf" in capsys.readouterr().out


def test_plain_tables_are_aligned_and_have_no_tail(capsys: pytest.CaptureFixture[str]) -> None:
    """What is piped is easy to cut and to compare."""
    render.table(("name", "size"), [("a", "10 kB"), ("longer", "2 B")], right=(1,))

    assert capsys.readouterr().out == "name     size\na       10 kB\nlonger    2 B\n"


def test_failure_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """No dangling `hint:`."""
    assert render.failure(StoreMissing("gone"), False) == 10
    assert capsys.readouterr().err == "error: gone\n"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e9, "2.5 GB")])
def test_sizes_are_for_people(count: float, text: str) -> None:
    """Powers of ten, one digit."""
    assert render.size(count) == text

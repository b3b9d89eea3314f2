# SPDX-License-Identifier: Apache-2.0
"""`velo run`: become the program, with Velo in its environment. Prints nothing unless the program cannot
start.

This is start-up code: every import here is paid by every run (tests/test_launch.py keeps the list). So it
parses its own four options, and reads configuration files only where they exist.
"""

from __future__ import annotations

import os

from ..config.paths import configuration_files, default_home
from .environment import child_environment, is_disabled
from .injection import injection_folder, mark_used, preload_file, prepare

TYPE_CHECKING = False
if TYPE_CHECKING:  # collections.abc would import collections, 1.5 ms
    from collections.abc import Mapping, Sequence

CANNOT_START, NOT_FOUND = 126, 127
WHAT_TO_CHECK = {
    CANNOT_START: "is it a file that you may execute?",
    NOT_FOUND: "is it installed, and on PATH?",
}
USAGE = "velo run [--manifest FILE] [--check auto|stat|root|none|shadow] -- COMMAND [ARGUMENTS...]"
_CHECKS = ("auto", "stat", "root", "none", "shadow")
_OPTIONS = ("--manifest", "--check")


class Fault(Exception):
    """The command line of `velo run` itself is wrong; carries message and hint."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def run(arguments: Sequence[str]) -> int:
    """Replace this process by the command. Returns only when that failed, with the exit code for it."""
    try:
        options, command = parse(arguments)
        options = {**_configured(os.environ), **options}
        check_manifest(options.get("manifest", ""))
    except Fault as fault:
        _complain(fault.message, fault.hint)
        return 2
    environment = original_environment(os.environ)
    if not is_disabled(environment):
        try:
            environment = _accelerated(environment, options, command[0])
        except OSError:  # A relative VELO_HOME in a deleted folder: there is no such place, so run as we are.
            pass
    _restore_signals()
    return _execute(command, environment)


def _accelerated(environment: dict[str, str], options: Mapping[str, str], program: str) -> dict[str, str]:
    """The program's environment, after the store has been told how to learn from it."""
    home = options.get("home") or default_home(environment)
    learn = options.get("learn", "yes") == "yes"
    if environment.get("VELO_READONLY", "0") in ("", "0"):
        if learn:
            prepare(home)
        mark_used(home, program)
    return child_environment(
        environment,
        injection_folder=injection_folder(),
        home=home,
        preload=preload_file(),
        shared=options.get("shared", ""),
        manifest=options.get("manifest", ""),
        check=options.get("check", ""),
        remember=options.get("remember", ""),
        calm=options.get("calm", "yes") == "yes",
        learn=learn,
    )


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--manifest F --check MODE -- CMD ...` into options and command; the first plain word starts
    the command.
    """
    options: dict[str, str] = {}
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        word = arguments[at]
        at += 1
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name not in _OPTIONS:
            raise Fault(f"no such option: {name}", f"usage: {USAGE}")
        if not equals:
            if at == len(arguments):
                raise Fault(f"{name} needs a value", f"usage: {USAGE}")
            value = arguments[at]
            at += 1
        if name == "--check" and value not in _CHECKS:
            raise Fault(f"--check cannot be {value!r}", f"one of {', '.join(_CHECKS)}")
        options[name[2:]] = value
    command = list(arguments[at:])
    if not command:
        raise Fault("no command to run", "for example: velo run -- python app.py")
    return options, command


def original_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment this process was given, without what our own interpreter added to it.

    In the C locale CPython sets LC_CTYPE for its children (PEP 538); a child that is not Python would notice.
    """
    given = dict(environ)
    if "LC_CTYPE" not in given:
        return given
    try:
        with open("/proc/self/environ", "rb") as file:
            before = file.read().split(b"\0")
    except OSError:
        return given
    values = [entry[9:] for entry in before if entry.startswith(b"LC_CTYPE=")]
    if values:
        given["LC_CTYPE"] = os.fsdecode(values[0])
    else:
        del given["LC_CTYPE"]
    return given


def _configured(environ: Mapping[str, str]) -> dict[str, str]:
    """What configuration files say; a broken file must not keep a program from running, so it is passed
    over.
    """
    try:
        folder = os.getcwd()
    except OSError:  # The current folder was deleted: the program may still run.
        folder = "/"
    if not configuration_files(folder, environ):
        return {}
    from ..config.settings import load  # Parsing TOML costs 30 ms; only those with a file pay it.

    settings = load(environ, folder)
    configured = {
        "home": settings.home,
        "learn": "yes" if settings.learn_enabled else "no",
        "calm": "yes" if settings.calm else "no",
    }
    if settings.shared:
        configured["shared"] = settings.shared
    if settings.values["check"].origin not in ("default", "variable VELO_CHECK"):
        configured["check"] = settings.check
    if settings.values["run.remember"].origin not in ("default", "variable VELO_REMEMBER"):
        configured["remember"] = settings.remember
    return configured


def check_manifest(path: str) -> None:
    """Refuse early what is no manifest at all; whether it fits the interpreter only the hook can tell."""
    if not path:
        return
    hint = "make one with: velo ingest FOLDER --output FILE"
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
    except OSError as error:
        raise Fault(f"cannot read manifest {path}: {error.strerror}", hint) from None
    if magic != b"VELOMNFT":
        raise Fault(f"{path} is not a manifest", hint)


def _restore_signals() -> None:
    """CPython ignores two signals, and exec would hand that on: `velo run -- yes | head` must end."""
    import _signal  # type: ignore[import-not-found] # the built-in below `signal`, which imports enum

    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(_signal, name):
            _signal.signal(getattr(_signal, name), _signal.SIG_DFL)


def _execute(command: list[str], environment: dict[str, str]) -> int:
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        return _cannot_start(command[0], "not found", NOT_FOUND)
    except OSError as error:
        if (
            error.errno == 8
        ):  # ENOEXEC: a script without `#!`. As execvp(3) and every shell do, hand it to sh.
            return _execute_script(command, environment)
        return _cannot_start(command[0], (error.strerror or str(error)).lower(), CANNOT_START)
    except ValueError:  # Python's word for a program without a name.
        return _cannot_start(command[0], "not found", NOT_FOUND)


def _execute_script(command: list[str], environment: dict[str, str]) -> int:
    import shutil

    script = shutil.which(command[0], path=environment.get("PATH")) or command[0]
    try:
        os.execve("/bin/sh", ["/bin/sh", script, *command[1:]], environment)
    except OSError as error:
        return _cannot_start(command[0], (error.strerror or str(error)).lower(), CANNOT_START)


def _cannot_start(program: str, reason: str, code: int) -> int:
    _complain(f"cannot start {program!r}: {reason}", WHAT_TO_CHECK[code])
    return code


def _complain(message: str, hint: str) -> None:
    try:
        os.write(2, f"error: {message}\nhint: {hint}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        pass

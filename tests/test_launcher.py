# SPDX-License-Identifier: Apache-2.0
"""The native `velo`: what it decides it decides as launch/execute.py does; the rest it hands over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.coldness import evicted, is_in_memory
from tests.support.running import CHECKOUT, clean_environment
from velo_import.ingest.startup import encode_note, mark_of
from velo_import.launch.environment import preload_option

SOURCE = CHECKOUT / "velo_import" / "_native" / "velo.c"
COMPILER = shutil.which(os.environ.get("CC", "cc"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


class Installed:
    """Velo as `pip install` leaves it: package, `_inject`, `bin/velo`, `bin/velo-py`; and its own store."""

    def __init__(self, folder: Path, velo: Path) -> None:
        site = folder / "lib"
        folder.mkdir(exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.c")
        shutil.copytree(CHECKOUT / "velo_import", site / "velo_import", ignore=ignored)
        (site / "velo_import" / "_inject").mkdir()
        shutil.copy(CHECKOUT / "sitecustomize" / "sitecustomize.py", site / "velo_import" / "_inject")
        self.preload = site / "velo_import" / "_node" / "index.cjs"
        self.preload.parent.mkdir()
        self.preload.touch()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.velo = self.bin / "velo"
        shutil.copy(velo, self.velo)
        self.python_velo = self.bin / "velo-py"
        self.python_velo.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(site)!r})\n"
            "from velo_import.__main__ import main\nsys.exit(main())\n"
        )
        self.python_velo.chmod(0o755)
        self.user = folder / "user"
        self.project = folder / "project"
        self.user.mkdir()
        self.project.mkdir()
        self.inject = site / "velo_import" / "_inject"

    def run(
        self, program: Path, *arguments: str | Path, cwd: Path | None = None, **variables: str | None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, *arguments],
            cwd=cwd or self.project,
            env=clean_environment(self.user, **variables),
            capture_output=True,
            timeout=60,
        )

    def prepare(self, **variables: str | None) -> None:
        """The first `velo run` in a store, which is the Python one's."""
        done = self.run(self.velo, "run", "--", "true", **variables)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def is_native(self, *arguments: str | Path, cwd: Path | None = None, **variables: str | None) -> bool:
        """Whether `velo` needs no Python for this."""
        kept = self.python_velo.read_text()
        self.python_velo.write_text("#!/bin/sh\necho handed over\n")
        try:
            done = self.run(self.velo, *arguments, cwd=cwd, **variables)
        finally:
            self.python_velo.write_text(kept)
        return done.stdout != b"handed over\n"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def build(*flags: str) -> Path:
        target = tmp_path_factory.mktemp("velo") / "velo"
        warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
        subprocess.run([str(COMPILER), *warnings, *flags, str(SOURCE), "-o", str(target)], check=True)
        return target

    return build


@pytest.fixture(params=["-O2", "sanitized"], scope="module")
def velo(request: pytest.FixtureRequest, compiled: Callable[..., Path]) -> Path:
    """The program as it is shipped, and with AddressSanitizer and UBSan."""
    if request.param == "-O2":
        return compiled("-O2")
    return compiled("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture
def installed(tmp_path: Path, velo: Path) -> Installed:
    return Installed(tmp_path, velo)


ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "plain": {},
    "path": {"PYTHONPATH": "/some/where"},
    "paths": {"PYTHONPATH": "/some/where:/else:"},
    "empty entry first": {"PYTHONPATH": ":/x"},
    "ours twice": {"PYTHONPATH": "/a:{inject}:/b:{inject}"},
    "ours alone": {"PYTHONPATH": "{inject}"},
    "empty": {"PYTHONPATH": "", "VELO_MANIFEST": "", "VELO_SHARED": "", "VELO_HOME": ""},
    "home": {"VELO_HOME": "{user}/store"},
    "cache": {"XDG_CACHE_HOME": "{user}/cache"},
    "relative cache": {"XDG_CACHE_HOME": "cache"},
    "manifest": {"VELO_MANIFEST": "/some/app.velo", "VELO_CHECK": "root"},
    "shared": {"VELO_SHARED": "/some/store"},
    "reading only": {"VELO_READONLY": "1"},
    "not disabled": {"VELO_DISABLE": "0"},
    "disabled": {"VELO_DISABLE": "1", "PYTHONPATH": "/x"},
    "C locale": {"LC_ALL": "C", "LC_CTYPE": None},
    "Node's options": {"NODE_OPTIONS": "--no-warnings --require ./hook.js"},
    "Node's options, empty": {"NODE_OPTIONS": ""},
    "Node's options, damaged": {"NODE_OPTIONS": '--title="never ended \\'},
    "Node's options, ours": {"NODE_OPTIONS": "{option}"},
    "Node's options, ours first": {"NODE_OPTIONS": "{option} --no-warnings"},
    "Node's options, ours last": {"NODE_OPTIONS": "--no-warnings {option}"},
    "Node's options, ours in the middle": {"NODE_OPTIONS": " -r x {option}  --no-warnings"},
    "Node's options, one that begins like ours": {"NODE_OPTIONS": "{option}.js x{option}"},
}


def filled(variables: dict[str, str | None], installed: Installed) -> dict[str, str | None]:
    return {
        name: value
        and value.format(
            inject=installed.inject,
            user=installed.user,
            option=preload_option(str(installed.preload)),
        )
        for name, value in variables.items()
    }


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_program_gets_what_python_would_give_it(installed: Installed, name: str) -> None:
    """The same variables, decided natively."""
    variables = filled(ENVIRONMENTS[name], installed)
    installed.prepare(**{**variables, "VELO_READONLY": None, "VELO_DISABLE": None})

    assert installed.is_native("run", "--", "env", "-0", **variables)
    ours = installed.run(installed.velo, "run", "--", "env", "-0", **variables)
    reference = installed.run(installed.python_velo, "run", "--", "env", "-0", **variables)

    assert sorted(ours.stdout.split(b"\0")) == sorted(reference.stdout.split(b"\0"))
    assert (ours.stderr, ours.returncode) == (b"", 0)


@pytest.mark.parametrize("place", ["a b", 'a"b', 'a "b\\c', "a\\b"])
def test_nodes_option_names_every_place(tmp_path: Path, compiled: Callable[..., Path], place: str) -> None:
    """Spaces, quotes and backslashes in the path of the installation."""
    installed = Installed(tmp_path / place, compiled("-O2"))
    installed.prepare()
    for before in ("", "--no-warnings", f"-r x {preload_option(str(installed.preload))}"):
        assert installed.is_native("run", "--", "true", NODE_OPTIONS=before)
        ours = installed.run(installed.velo, "run", "--", "env", "-0", NODE_OPTIONS=before)
        reference = installed.run(installed.python_velo, "run", "--", "env", "-0", NODE_OPTIONS=before)
        assert sorted(ours.stdout.split(b"\0")) == sorted(reference.stdout.split(b"\0"))
        assert ours.stdout.count(b"_node/index.cjs") == 1


def test_without_its_preload_node_is_left_alone(installed: Installed) -> None:
    """A Node that is told to load what is not there does not start."""
    installed.prepare()
    installed.preload.unlink()
    for velo in (installed.velo, installed.python_velo):
        done = installed.run(velo, "run", "--", "env", NODE_OPTIONS=None)
        assert b"NODE_OPTIONS" not in done.stdout
        assert b"PYTHONPATH" in done.stdout


HANDED_OVER: dict[str, dict[str, str | None]] = {
    "relative home": {"VELO_HOME": "store"},
    "home with a tilde": {"VELO_HOME": "~/store"},
    "home that is not normal": {"VELO_HOME": "{user}/../user/store"},
    "home with a slash at its end": {"VELO_HOME": "{user}/store/"},
    "no home folder": {"HOME": None, "XDG_CACHE_HOME": None},
    "relative manifest": {"VELO_MANIFEST": "app.velo"},
    "relative shared store": {"VELO_SHARED": "../store"},
}


@pytest.mark.parametrize("name", HANDED_OVER)
def test_what_is_not_plain_is_handed_over(installed: Installed, name: str) -> None:
    variables = filled(HANDED_OVER[name], installed)
    installed.prepare(**variables)

    assert not installed.is_native("run", "--", "true", **variables)
    ours = installed.run(installed.velo, "run", "--", "env", "-0", **variables)
    reference = installed.run(installed.python_velo, "run", "--", "env", "-0", **variables)
    assert sorted(ours.stdout.split(b"\0")) == sorted(reference.stdout.split(b"\0"))


def test_options_and_other_commands_are_handed_over(installed: Installed) -> None:
    installed.prepare()
    for words in (
        [],
        ["run"],
        ["run", "--"],
        ["run", "--help"],
        ["run", "--check", "root", "--", "true"],
        ["run", "--nope", "true"],
        ["run", ""],
        ["status"],
        ["--version"],
    ):
        assert not installed.is_native(*words), words
    for words in (["run", "--", "true"], ["run", "true"], ["run", "--", "true", "--version"]):
        assert installed.is_native(*words), words
    version = installed.run(installed.velo, "--version")
    assert version.stdout.startswith(b"velo ")


@pytest.mark.parametrize(
    ("name", "text", "native"),
    [
        ("velo.toml", "", False),
        ("pyproject.toml", "[tool.velo]\ncheck = 'root'\n", False),
        ("pyproject.toml", "[tool]\nvelo = {check = 'root'}\n", False),
        ("pyproject.toml", "[project]\nname = 'velo-import'\n", True),
        ("pyproject.toml", "[project]\nname = 'x'\n", True),
        ("pyproject.toml", "", True),
    ],
)
def test_configuration_is_looked_for_all_the_way_up(
    installed: Installed, name: str, text: str, native: bool
) -> None:
    """In the current folder, and in every folder above it."""
    installed.prepare()
    below = installed.project / "a" / "b"
    below.mkdir(parents=True)
    (installed.project / name).write_text(text)
    for cwd in (installed.project, below):
        assert installed.is_native("run", "--", "true", cwd=cwd) is native
        ours = installed.run(installed.velo, "run", "--", "env", "-0", cwd=cwd)
        reference = installed.run(installed.python_velo, "run", "--", "env", "-0", cwd=cwd)
        assert sorted(ours.stdout.split(b"\0")) == sorted(reference.stdout.split(b"\0"))
    assert installed.is_native("run", "--", "true", cwd=Path("/"))


def test_the_users_configuration_counts(installed: Installed) -> None:
    installed.prepare()
    for folder, variables in ((".config", {}), ("other", {"XDG_CONFIG_HOME": str(installed.user / "other")})):
        path = installed.user / folder / "velo" / "config.toml"
        assert installed.is_native("run", "--", "true", **variables)
        path.parent.mkdir(parents=True)
        path.touch()
        assert not installed.is_native("run", "--", "true", **variables)


def test_a_note_that_is_not_true_any_more_is_not_believed(installed: Installed) -> None:
    """Another `velo` or learner, a moved folder, damage, links, foreign hands: Python decides and mends."""
    note = installed.user / ".cache" / "velo" / "run" / "launch"
    learner = note.with_name("learner")

    def spoil_note(data: bytes) -> None:
        note.unlink()
        note.write_bytes(data)

    def open_to_others() -> None:
        note.chmod(0o666)

    def link() -> None:
        note.rename(note.with_name("elsewhere"))
        note.symlink_to("elsewhere")

    def touch_learner() -> None:
        learner.write_bytes(learner.read_bytes())

    def touch_velo() -> None:
        os.utime(installed.velo, ns=(1, 1))

    def take_away_the_folder() -> None:
        (installed.inject / "sitecustomize.py").rename(installed.inject / "gone")

    installed.prepare()
    sound = note.read_bytes()
    cuts = [sound[:size] for size in range(0, len(sound) - 1, 7)]
    spoilt = [lambda data=data: spoil_note(data) for data in (*cuts, b"", b"\0" * 400, b"x" * 20000)]
    for spoil in (
        *spoilt,
        note.unlink,
        open_to_others,
        link,
        touch_learner,
        touch_velo,
        take_away_the_folder,
    ):
        installed.prepare()
        assert installed.is_native("run", "--", "true")
        spoil()
        assert not installed.is_native("run", "--", "true"), spoil
        if note.is_symlink():
            note.unlink()


@pytest.mark.parametrize(
    "program", ["true", "/usr/bin/true", "/bin/true", "./odd name-1/bin/pro gram", "./prog"]
)
def test_both_mark_the_same_environment_as_used(installed: Installed, program: str) -> None:
    installed.prepare()
    if program.startswith("./"):
        place = installed.project / program
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/usr/bin/true", place)
    run = installed.user / ".cache" / "velo" / "run"
    marked = []
    for velo in (installed.velo, installed.python_velo):
        for mark in run.glob("*.used"):
            mark.unlink()
        assert installed.run(velo, "run", "--", program).returncode == 0
        marked.append(sorted(mark.name for mark in run.glob("*.used")))
    assert marked[0] == marked[1]
    assert bool(marked[0]) == (program != "./prog")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to hide /proc")
@pytest.mark.parametrize("called", ["by path", "along PATH"])
def test_without_proc_programs_run_as_well(installed: Installed, called: str) -> None:
    """In a bare chroot: Velo does not know where it is, and finds its other half as it was found itself."""
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("/proc cannot be hidden here")
    velo = installed.velo if called == "by path" else Path("velo")
    path = f"{installed.bin}:{os.environ['PATH']}"

    done = installed.run(Path(hidden[0]), *hidden[1:], velo, "run", "--", "sh", "-c", "exit 3", PATH=path)

    assert done.returncode == 3
    assert b"error: " not in done.stderr


def test_exit_codes_signals_and_faults_are_the_references(installed: Installed) -> None:
    """The program replaces `velo`; what cannot start is told in the same words."""
    installed.prepare()
    script = installed.project / "script"
    script.write_text("exit 7\n")  # no first line: sh runs it
    script.chmod(0o755)
    for command in (
        ["sh", "-c", "exit 3"],
        ["sh", "-c", "kill -TERM $$"],
        ["no-such-program"],
        ["/etc/passwd"],
        ["/etc"],
        [str(script)],
        ["--odd-name"],
    ):
        ours = installed.run(installed.velo, "run", "--", *command)
        reference = installed.run(installed.python_velo, "run", "--", *command)
        assert (ours.returncode, ours.stdout, ours.stderr) == (
            reference.returncode,
            reference.stdout,
            reference.stderr,
        )
    assert (
        installed.run(installed.velo, "run", "--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    )


def test_velo_itself_is_not_customized(installed: Installed) -> None:
    """A sitecustomize on PYTHONPATH speaks in the program, and not once more in Velo's own process."""
    (installed.project / "sitecustomize.py").write_text("print('hello', flush=True)\n")
    for _ in range(2):  # handed over, then native
        done = installed.run(
            installed.velo,
            "run",
            "--",
            sys.executable,
            "-c",
            "print('ran')",
            PYTHONPATH=str(installed.project),
        )
        assert (done.stdout, done.stderr) == (b"hello\nran\n", b"")


def test_without_its_script_it_says_what_to_do(installed: Installed) -> None:
    installed.python_velo.unlink()
    done = installed.run(installed.velo, "status")
    assert done.returncode == 1
    assert b"hint: install Velo again" in done.stderr


def note_of(installed: Installed, *words: str) -> Path:
    """Where the note for reading ahead of a command in the project folder is."""
    folder = installed.user / ".cache" / "velo" / "run" / "ahead"
    folder.mkdir(exist_ok=True)
    return folder / mark_of(words, str(installed.project))


@pytest.mark.parametrize(
    "words",
    [("true",), ("true", "app.py", "more"), ("true", "-x", "--long", "name", "-y"), ("/bin/true", "/abs")],
    ids=" ".join,
)
def test_a_cold_start_is_read_ahead(installed: Installed, tmp_path: Path, words: tuple[str, ...]) -> None:
    """What the note names is read if the note itself was not in memory, and only then."""
    installed.prepare()
    library = tmp_path / "library"
    library.write_bytes(bytes(300_000))
    note = note_of(installed, *words)
    note.write_bytes(encode_note([("/no/such/file", [(0, 1)]), (str(library), [(0, 4096), (4096, 290_000)])]))

    evicted(library)
    assert installed.run(installed.velo, "run", "--", *words).returncode == 0
    assert not is_in_memory(library)

    evicted(note)
    assert installed.is_native("run", "--", *words)
    assert is_in_memory(library)


@pytest.mark.parametrize(
    "note",
    [
        b"v",
        b"velo-ahead 1",
        b"velo-ahead 1\0",
        b"velo-ahead 1\0/etc/passwd",
        b"velo-ahead 1\0/etc/passwd\0",
        b"velo-ahead 1\0/etc/passwd\0\0\0\0",
        b"velo-ahead 1\0/etc/passwd\0" + b"9" * 60 + b" " + b"9" * 60 + b"\0",
        b"velo-ahead 1\0/etc/passwd\0-1 -1\0",
        b"velo-ahead 1\0/etc/passwd\0001 2 3\0",
        b"velo-ahead 1\0/dev/zero\0000 4096\0",
        b"velo-ahead 1\0" + b"x" * 5000,
        b"velo-ahead 1\0/etc/passwd\0" + b"0 1 " * 4000,
    ],
)
def test_a_damaged_note_changes_nothing(installed: Installed, note: bytes) -> None:
    installed.prepare()
    path = note_of(installed, "true")
    path.write_bytes(note)
    evicted(path)

    done = installed.run(installed.velo, "run", "--", "true")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_very_long_command_line_is_not_read_ahead(installed: Installed) -> None:
    installed.prepare()
    assert installed.run(installed.velo, "run", "--", "true", "-" + "x" * 60_000).returncode == 0

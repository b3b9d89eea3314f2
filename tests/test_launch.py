# SPDX-License-Identifier: Apache-2.0
"""`velo run` is the program: same environment, same exit code, same signals, nothing printed, little
imported.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import nodes
from tests.support.running import CHECKOUT, VELO, Velo, clean_environment
from tests.support.tree import Tree
from velo_import.launch.environment import changes, child_environment, node_options, python_path
from velo_import.launch.execute import Fault, parse
from velo_import.launch.injection import injection_folder, learner_command, prepare

# Modules that `velo run` may load besides those of a bare start; each costs every run.
ALLOWED = {
    "velo_import",
    "velo_import.__main__",
    "velo_import.config",
    "velo_import.config.paths",
    "velo_import.launch",
    "velo_import.launch.environment",
    "velo_import.launch.execute",
    "velo_import.launch.injection",
    "__future__",
    "_signal",
}
INJECTION = "/opt/velo/inject"


def inject(environ: dict[str, str], **options: str) -> dict[str, str]:
    return child_environment(environ, injection_folder=INJECTION, home="/store", **options)  # type: ignore[arg-type]


# -- the environment, a pure function --


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("", INJECTION),
        ("/a", f"{INJECTION}:/a"),
        ("/a:", f"{INJECTION}:/a:"),  # the user's empty entry means the current folder, and stays
        (":/a", f"{INJECTION}::/a"),
        (INJECTION, INJECTION),
        (f"/a:{INJECTION}:/b", f"{INJECTION}:/a:/b"),
        (f"{INJECTION}:", f"{INJECTION}:"),
    ],
)
def test_python_path_keeps_what_the_user_wrote(existing: str, expected: str) -> None:
    """Our folder comes first and once; no empty entry is gained or lost."""
    assert python_path(existing, INJECTION) == expected


@given(st.lists(st.sampled_from(["/a", "/b", "", "relative", INJECTION]), max_size=6))
def test_injecting_twice_is_injecting_once(entries: list[str]) -> None:
    """A program under Velo that calls `velo run` itself gives its child what it has."""
    once = inject({"PYTHONPATH": ":".join(entries), "PATH": "/bin"})

    assert inject(once) == once
    assert once["PYTHONPATH"].split(":").count(INJECTION) == 1


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("", "--require=/v/index.cjs"),
        ("--no-warnings", "--require=/v/index.cjs --no-warnings"),
        ("--title='a  b' ", "--require=/v/index.cjs --title='a  b' "),
        ("--require=/v/index.cjs", "--require=/v/index.cjs"),
        ("-r x --require=/v/index.cjs", "-r x --require=/v/index.cjs"),
        ("--require=/v/index.cjs.js", "--require=/v/index.cjs --require=/v/index.cjs.js"),
    ],
)
def test_node_options_keep_what_the_user_wrote(existing: str, expected: str) -> None:
    """Our preload comes first and once."""
    assert node_options(existing, "/v/index.cjs") == expected
    assert node_options(expected, "/v/index.cjs") == expected


@pytest.mark.parametrize("version", nodes.versions())
@pytest.mark.parametrize("place", ["plain", "a b", 'a"b', 'a "b\\c', "a\\b", "ü 'x' $y"])
def test_node_understands_its_options(tmp_path: Path, version: str, place: str) -> None:
    """Whatever the folder is called, Node loads the preload, and takes the user's options as before."""
    try:
        node = nodes.node(version)
    except nodes.Unavailable as reason:
        pytest.skip(f"no Node {version}: {reason}")
    preload = tmp_path / place / "index.cjs"
    preload.parent.mkdir()
    preload.write_text("process.stdout.write('loaded ')")
    options = node_options('--title="a b"', str(preload))

    done = subprocess.run(
        [node, "-p", "process.title"],
        env=clean_environment(tmp_path, NODE_OPTIONS=options),
        capture_output=True,
        text=True,
    )

    assert (done.stdout, done.stderr) == ("loaded a b\n", "")


def test_only_our_variables_change() -> None:
    """Everything else reaches the program as it was."""
    environ = {"PATH": "/bin", "LANG": "C", "PYTHONPATH": "/a", "VELO_LOG": "x"}

    assert set(changes(environ, inject(environ))) == {"PYTHONPATH", "VELO_HOME"}
    assert set(changes(environ, inject(environ, preload="/v/index.cjs"))) == {
        "PYTHONPATH",
        "VELO_HOME",
        "NODE_OPTIONS",
    }
    assert inject(environ, manifest="app.velo", check="root")["VELO_CHECK"] == "root"
    assert os.path.isabs(inject(environ, manifest="app.velo")["VELO_MANIFEST"])
    assert (
        child_environment(environ, injection_folder=INJECTION, home="/s", learn=False)["VELO_READONLY"] == "1"
    )


def test_disabled_means_untouched() -> None:
    """VELO_DISABLE=1 hands the environment on as it is; 0 means not disabled."""
    assert inject({"VELO_DISABLE": "1", "A": "b"}) == {"VELO_DISABLE": "1", "A": "b"}
    assert "PYTHONPATH" in inject({"VELO_DISABLE": "0"})


def test_a_folder_that_python_path_cannot_name_is_not_injected() -> None:
    """Installed below a folder with a colon in its name, Velo stands aside."""
    assert child_environment({"A": "b"}, injection_folder="/opt/a:b", home="/s") == {"A": "b"}


def test_options_end_where_the_command_starts() -> None:
    """`--` ends our options; so does the first plain word, and the program's own options stay its own."""
    assert parse(["--check", "root", "--", "python", "--check"]) == ({"check": "root"}, ["python", "--check"])
    assert parse(["--manifest=a.velo", "python", "-c", "x"]) == (
        {"manifest": "a.velo"},
        ["python", "-c", "x"],
    )
    assert parse(["--", "--odd-name"]) == ({}, ["--odd-name"])
    for wrong in (["--nope", "--", "x"], ["--check", "weekly", "x"], ["--manifest"], [], ["--"]):
        with pytest.raises(Fault):
            parse(wrong)


# -- becoming the program --


@pytest.mark.parametrize("code", [0, 1, 3, 127, 255])
def test_exit_code_is_the_programs_own(velo: Velo, code: int) -> None:
    """Scripts that look at exit codes see no difference, and nothing is printed."""
    result = velo.run("-c", f"raise SystemExit({code})")

    assert (result.stdout, result.stderr, result.code) == ("", "", code)


def test_death_by_signal_is_seen_as_such(velo: Velo) -> None:
    """The program replaces `velo`, so a shell sees the signal itself."""
    assert velo.run("-c", "import os; os.kill(os.getpid(), 9)").code == -signal.SIGKILL


def test_what_cannot_start_is_126_or_127(velo: Velo) -> None:
    """As in every shell; one line and a hint on stderr, nothing on stdout."""
    missing = velo.run(command=["no-such-program"])
    forbidden = velo.run(command=["/etc/passwd"])
    folder = velo.run(command=["/etc"])
    nameless = velo.run(command=[""])

    assert (missing.code, forbidden.code, folder.code, nameless.code) == (127, 126, 126, 127)
    assert "not found" in nameless.stderr
    assert missing.stdout == ""
    assert missing.stderr.splitlines()[0] == "error: cannot start 'no-such-program': not found"
    assert missing.stderr.splitlines()[1].startswith("hint: ")


def test_usage_faults_say_what_to_type(velo: Velo) -> None:
    """No command, an unknown option, a manifest that is none: exit code 2 before anything runs."""
    for arguments in (
        ["run"],
        ["run", "--nope", "--", "true"],
        ["run", "--manifest", "/etc/passwd", "--", "true"],
    ):
        result = velo.command(*arguments)
        assert (result.code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert "\nhint: " in result.stderr


def test_a_script_without_a_first_line_runs_by_sh(velo: Velo) -> None:
    """execvp(3) and every shell do that; os.execvpe alone would not."""
    script = velo.cwd / "script"
    script.write_text('echo "$1"\n')
    script.chmod(0o755)

    assert velo.run(command=[script, "hello"]).stdout == "hello\n"


def test_signals_are_not_left_ignored(velo: Velo) -> None:
    """CPython ignores SIGPIPE and SIGXFSZ; `velo run -- yes | head` must end all the same."""
    result = velo.run(command=["grep", "SigIgn", "/proc/self/status"])
    mask = int(result.stdout.split()[1], 16)

    assert not mask & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


@pytest.mark.parametrize("given", [None, "", "C", "en_US.UTF-8"])
def test_our_interpreters_locale_does_not_leak(velo: Velo, given: str | None) -> None:
    """In the C locale CPython sets LC_CTYPE for its children; a shell script under Velo must not see that."""
    env = {"LC_ALL": None, "LANG": None, "LC_CTYPE": given}
    show = ["sh", "-c", 'echo "${LC_CTYPE-unset}"']

    assert velo.run(command=show, env=env).stdout == ("unset\n" if given is None else f"{given}\n")


def test_disabled_run_is_a_plain_run(velo: Velo) -> None:
    """VELO_DISABLE=1: not even the environment differs, and no store is made."""
    env = {"VELO_DISABLE": "1"}
    show = "import os; print(sorted(name for name in os.environ if not name.startswith('VELO_')))"

    assert velo.run("-c", show, env=env).stdout == velo.plain("-c", show, env=env).stdout
    assert not velo.home.exists()


@pytest.mark.parametrize("home", [None, "relative/store"])
def test_a_deleted_current_folder_does_not_matter(velo: Velo, home: str | None) -> None:
    """The program runs where it can; reading configuration must not trip."""
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *VELO, "run", "--", "echo", "here"],
        cwd=velo.cwd,
        env={**velo.velo_environment(), **({"VELO_HOME": home} if home else {})},
        capture_output=True,
        text=True,
    )

    assert (done.stdout, done.stderr, done.returncode) == ("here\n", "", 0)


def test_a_broken_configuration_does_not_stop_a_program(velo: Velo) -> None:
    """`velo config validate` is the place for complaints, not someone's program."""
    (velo.cwd / "velo.toml").write_text("check = [[[\n")

    assert velo.run("-c", "print(1)").answer == ("1\n", "", 0)


def test_configured_values_reach_the_program(velo: Velo) -> None:
    """`home`, `check` and `learn.enabled` of velo.toml hold for `velo run` as for every command."""
    (velo.cwd / "velo.toml").write_text('home = "here"\ncheck = "root"\n[learn]\nenabled = false\n')
    names = ("VELO_HOME", "VELO_CHECK", "VELO_READONLY")
    show = f"import os, json; print(json.dumps([os.environ.get(n) for n in {names}]))"

    told = velo.run("-c", show, env={"VELO_HOME": None}).json

    assert told == [str(velo.cwd / "here"), "root", "1"]


# -- the learner's command --


def test_the_learner_can_be_started(tmp_path: Path) -> None:
    """What `run/learner` holds works from anywhere, isolated from the program's environment."""
    assert prepare(str(tmp_path / "store"))
    words = (tmp_path / "store" / "run" / "learner").read_text().split("\0")

    assert words == learner_command()
    done = subprocess.run([*words, "--check"], cwd="/", env={"PATH": "/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_store_is_private_and_written_once(tmp_path: Path) -> None:
    """Code comes from there: only the owner may enter; an unchanged learner is not written again."""
    home = tmp_path / "store"
    prepare(str(home))
    before = (home / "run" / "learner").stat()
    prepare(str(home))

    assert stat.S_IMODE(home.stat().st_mode) == stat.S_IMODE((home / "run").stat().st_mode) == 0o700
    assert (home / "run" / "learner").stat() == before
    assert [path.name for path in (home / "run").iterdir()] == ["learner"]


def test_somebodys_folder_is_not_sown_with_files(tmp_path: Path) -> None:
    """VELO_HOME=~/project: nothing is written there."""
    (tmp_path / "thesis.tex").write_text("")

    assert not prepare(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_that_cannot_be_written_does_not_stop_a_program(velo: Velo) -> None:
    """VELO_HOME below a file: the run is plain, and silent."""
    blocker = velo.folder / "file"
    blocker.write_text("")

    assert velo.run("-c", "print(1)", env={"VELO_HOME": f"{blocker}/store"}).answer == ("1\n", "", 0)


def test_a_store_that_others_can_write_gets_no_learner(tmp_path: Path) -> None:
    """The hook would not trust it either."""
    home = tmp_path / "store"
    home.mkdir()
    home.chmod(0o777)

    assert not prepare(str(home))


# -- what it costs --


def test_run_imports_almost_nothing(velo: Velo) -> None:
    """No click, rich, lmdb, json, typing or pathlib: `velo run` is start-up code itself."""
    code = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); before = set(sys.modules); import os\n"
        "def report(*_):\n"
        "    print(*set(sys.modules) - before, flush=True)\n"
        "    os._exit(0)\n"
        "os.execvpe = report\n"
        "from velo_import.__main__ import main; main(['run', '--', 'true'])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=velo.cwd,
        env=velo.velo_environment(),
        capture_output=True,
        text=True,
    )

    assert done.stderr == ""
    assert set(done.stdout.split()) <= ALLOWED, set(done.stdout.split()) - ALLOWED


def test_injection_folder_holds_only_sitecustomize() -> None:
    """What stands on PYTHONPATH is importable everywhere: one name, and no dependency of ours."""
    names = {path.name for path in Path(injection_folder()).iterdir()}

    # Python 2 leaves its bytecode beside the source.
    assert names - {"__pycache__", "sitecustomize.pyc"} == {"sitecustomize.py"}


def test_statistics_are_one_json_object(velo: Velo) -> None:
    """VELO_STATS=1 puts it on stderr; the program's output stays what it was."""
    result = velo.run("-c", "print(1)", env={"VELO_STATS": "1"})

    assert result.stdout == "1\n"
    assert {"runtime", "argv", "served", "deferred", "stale", "native", "errors", "reasons"} <= set(
        json.loads(result.stderr)
    )


def test_use_is_marked_at_most_once_an_hour(velo: Velo, tree: Tree) -> None:
    """A disk without access times knows of no other use; `velo gc --unused-for` asks for it."""
    tree.write({"app.py": "print(3)"})
    velo.learn("app.py")
    mark = velo.home / "run" / f"{velo.python.parents[1].name}.used"
    first = mark.stat().st_mtime_ns
    velo.run("app.py")
    assert mark.stat().st_mtime_ns == first

    os.utime(mark, (1, 1))
    velo.run("app.py", env={"VELO_READONLY": "1"})
    assert mark.stat().st_mtime == 1
    velo.run(
        "app.py", env={"PATH": f"{velo.python.parent}:{os.environ['PATH']}"}, command=["python", "app.py"]
    )
    assert mark.stat().st_mtime_ns >= first

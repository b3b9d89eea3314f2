# SPDX-License-Identifier: Apache-2.0
"""What the suites are and how each is started: read from suites.toml, nothing is run here.

The surprise: CPython's own suite starts most of its children with `-I` or `-E`, which ignore PYTHONPATH. It
runs in an environment that `velo enable` was used on; all others run under `velo run`. And its runner sets an
audit hook that does nothing, under which Velo leaves images and all that is remembered to Python: the tests
themselves would see little of Velo. That one hook is left out, plain and with Velo.
"""

from __future__ import annotations

import fnmatch
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("suites.toml")
# As `python -m test`, but for the audit hook.
REGRTEST = """
import os, runpy, sys

def add_or_not(hook, add=sys.addaudithook):
    sys.addaudithook = add
    hook.__name__ == "_test_audit_hook" or add(hook)

sys.addaudithook = add_or_not
sys.path[0] = os.getcwd()
runpy.run_module("test", run_name="__main__", alter_sys=True)
""".strip()
KINDS = ("regrtest", "pytest", "django", "numpy")


@dataclass(frozen=True)
class Suite:
    """One suite: `parts` are run one by one."""

    name: str
    kind: str
    parts: tuple[str, ...]
    source: str = ""
    install: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # the Pythons that it can be had for; none named: all
    native: tuple[str, ...] = ()  # packages of the sdist that lack the native modules of the installed ones
    split: tuple[str, ...] = ()  # test packages of CPython whose modules are parts of their own
    limit: int = 1500  # seconds for one run of one part on a busy machine

    @property
    def is_enabled(self) -> bool:
        """Whether Velo comes from the environment (`velo enable`) rather than from `velo run`."""
        return self.kind == "regrtest"

    def is_for(self, python: str) -> bool:
        """Whether it can be had for that Python."""
        return not self.only or python in self.only

    def command(self, python: Path, arguments: Sequence[str], report: Path, scratch: Path) -> list[str]:
        """How a part, or what is repeated of it, is started; its outcomes go to `report` in JUnit's form."""
        start = [str(python)]
        if self.kind == "regrtest":
            # It looks whether a test leaves processes, threads, files or patches behind; then it fails.
            options = [
                "-u",
                "cpu",
                "--fail-env-changed",
                "--tempdir",
                str(scratch),
                "--junit-xml",
                str(report),
            ]
            return [*start, "-c", REGRTEST, *options, *arguments]
        if self.kind == "pytest":
            # xunit1 names the file of each test, which repeats need.
            options = ["-q", "-o", f"cache_dir={scratch}/cache", "-o", "junit_family=xunit1"]
            options.append(f"--junit-xml={report}")
            return [*start, "-m", "pytest", *options, f"--basetemp={scratch}/pytest", *arguments]
        if self.kind == "numpy":
            options = [f"--junit-xml={report}", "-o", "junit_family=xunit1", "-p", "no:cacheprovider"]
            code = f"import sys, numpy; sys.exit(not numpy.test(extra_argv={options!r}, tests={arguments!r}))"
            return [*start, "-c", code]
        # django: its runner takes the class of results from the settings.
        return [*start, "tests/runtests.py", "--settings=velo_suite_settings", "--parallel=1", *arguments]

    def selection(self, part: str, files: Iterable[str]) -> list[str]:
        """The arguments that repeat as little of `part` as its runner can name: the files of some tests, or
        what the part takes of such a file.
        """
        arguments = shlex.split(part)
        chosen = set(files)
        if self.kind != "pytest" or not chosen:
            return arguments
        kept = []
        for position, word in enumerate(arguments):
            if word.startswith("-"):
                kept += arguments[position : position + 2]
        inside = [word for word in arguments if word.partition("::")[0] in chosen]
        whole = chosen - {word.partition("::")[0] for word in inside}
        return [*kept, *inside, *sorted(whole)]


def read_suites(path: Path = LIST) -> dict[str, Suite]:
    """All suites of the list, by name."""
    found = {}
    for name, entry in tomllib.loads(path.read_text()).items():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        suite = Suite(name=name, **values)
        if suite.kind not in KINDS:
            raise ValueError(f"{name}: no such kind of suite: {suite.kind}")
        found[name] = suite
    return found


def parts_of(suite: Suite, stdlib: Path) -> tuple[str, ...]:
    """The parts that there are: CPython's modules have other names from version to version."""
    if suite.kind != "regrtest":
        return suite.parts
    names = sorted({path.name.removesuffix(".py") for path in (stdlib / "test").glob("test_*")})
    found: dict[str, None] = {}
    for name in (name for part in suite.parts for name in fnmatch.filter(names, part)):
        inside = sorted((stdlib / "test" / name).glob("test_*.py"))
        if inside and any(fnmatch.fnmatch(name, each) for each in suite.split):
            found.update(dict.fromkeys(f"test.{name}.{path.stem}" for path in inside))
        else:
            found[name] = None
    return tuple(found)


def by_name(suites: Mapping[str, Suite], names: Sequence[str]) -> list[Suite]:
    """Those that were asked for, or all."""
    unknown = [name for name in names if name not in suites]
    if unknown:
        raise SystemExit(f"no such suite: {' '.join(unknown)} (there are {' '.join(suites)})")
    return [suites[name] for name in names or suites]

# SPDX-License-Identifier: Apache-2.0
"""One frozen answer to "what does the user want", with the origin of every value.

Precedence: flag > variable > velo.toml (nearest upward) > [tool.velo] in pyproject.toml > user file >
default. Knows the keys and their types; leaves acting on them to everyone else. Its surprise: a wrong value
in a file is reported by `velo config validate` and refused by the commands that report, but `velo run`
ignores it in silence.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple  # not dataclasses: they would import inspect, a third of all this

from ..errors import UsageFault
from . import env
from .paths import PYPROJECT, configuration_files, default_home
from .units import parse_size

CHECKS = ("auto", "stat", "root", "none", "shadow")
REMEMBERED = ("all", "none", "patterns", "sources", "metadata", "images")


class Value(NamedTuple):
    """A setting and where it came from: `flag`, `variable VELO_HOME`, a file's path, or `default`."""

    value: Any
    origin: str


class Problem(NamedTuple):
    """Something in a configuration file that has no effect or cannot be used."""

    file: str
    key: str  # Empty where it is the whole file.
    message: str

    @property
    def text(self) -> str:
        return ": ".join(part for part in (self.file, self.key, self.message) if part)


class Key(NamedTuple):
    """One key of velo.toml; `read` turns a raw TOML value into ours or raises ValueError saying what is
    wanted.
    """

    name: str
    meaning: str
    read: Callable[[Any, str], Any]
    default: Any = None
    variable: str = ""


class Settings(NamedTuple):
    """All values by name, the files they were read from, and what was wrong with those."""

    values: Mapping[str, Value]
    files: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def home(self) -> str:
        return str(self.values["home"].value)

    @property
    def shared(self) -> str:
        return str(self.values["store.shared"].value or "")

    @property
    def check(self) -> str:
        return str(self.values["check"].value)

    @property
    def calm(self) -> bool:
        return bool(self.values["run.calm"].value)

    @property
    def remember(self) -> str:
        return str(self.values["run.remember"].value)

    @property
    def learn_enabled(self) -> bool:
        return bool(self.values["learn.enabled"].value)

    @property
    def learn_cpu_seconds(self) -> int:
        return int(self.values["learn.cpu_seconds"].value)

    @property
    def max_size(self) -> int | None:
        """Bytes."""
        size = self.values["store.max_size"].value
        return None if size is None else int(size)

    @property
    def ingest_jobs(self) -> int | None:
        jobs = self.values["ingest.jobs"].value
        return None if jobs is None else int(jobs)


def _folder(raw: Any, base: str) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError("must be a path")
    return os.path.normpath(os.path.join(base, os.path.expanduser(raw)))


def _check(raw: Any, base: str) -> str:
    if raw not in CHECKS:
        raise ValueError(f"must be one of {', '.join(CHECKS)}")
    return str(raw)


def _remember(raw: Any, base: str) -> str:
    if raw not in REMEMBERED and not (isinstance(raw, str) and {*raw.split(",")} <= {*REMEMBERED[2:]}):
        raise ValueError(f"must be one of {', '.join(REMEMBERED)}, or several with commas")
    return str(raw)


def _switch(raw: Any, base: str) -> bool:
    if not isinstance(raw, bool):
        raise ValueError("must be true or false")
    return raw


def _count(raw: Any, base: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < 1:
        raise ValueError("must be a whole number above zero")
    return raw


def _size(raw: Any, base: str) -> int:
    size = parse_size(raw) if isinstance(raw, str) else _count(raw, base)
    if size < 1:
        raise ValueError("must be above zero")
    return size


KEYS = (
    Key("home", "where the store is", _folder, variable=env.HOME),
    Key("check", "how freshness is checked", _check, default="auto", variable=env.CHECK),
    Key("learn.enabled", "learn from what programs import", _switch, default=True),
    Key("learn.cpu_seconds", "processor time one learning run may use", _count, default=60),
    Key("ingest.jobs", "processes that compile; default: one per core", _count),
    Key("store.max_size", "what the store may grow to; default: no limit", _size),
    Key(
        "store.shared", "another account's store, read only, below the own one", _folder, variable=env.SHARED
    ),
    Key("run.calm", "spare the garbage collector", _switch, default=True),
    Key("run.remember", "work of a start that is kept", _remember, default="all", variable=env.REMEMBER),
)


def load(environ: Mapping[str, str], folder: str, flags: Mapping[str, Any] | None = None) -> Settings:
    """Merge flags, variables and the files that count in `folder`; problems are kept, not raised."""
    problems: list[Problem] = []
    tables = [
        (path, _flatten(_parse(kind, path, problems))) for kind, path in configuration_files(folder, environ)
    ]
    for path, table in tables:
        names = {key.name for key in KEYS}
        problems += [Problem(path, name, "unknown key") for name in table if name not in names]
    values = {key.name: _resolve(key, environ, folder, tables, flags or {}, problems) for key in KEYS}
    return Settings(values, tuple(path for path, _ in tables), tuple(problems))


def require_valid(settings: Settings) -> Settings:
    """The settings, or a fault naming the first value that cannot be used."""
    for problem in settings.problems:
        if problem.message != "unknown key":
            raise UsageFault(problem.text, hint="see `velo config validate`")
    return settings


def _resolve(
    key: Key,
    environ: Mapping[str, str],
    folder: str,
    tables: list[tuple[str, dict[str, Any]]],
    flags: Mapping[str, Any],
    problems: list[Problem],
) -> Value:
    """The strongest usable value of one key; weaker files are checked too, so that their faults are seen."""
    candidates: list[tuple[Any, str, str]] = []
    if flags.get(key.name) is not None:
        candidates.append((flags[key.name], folder, "flag"))
    if key.variable and environ.get(key.variable):
        candidates.append((environ[key.variable], folder, f"variable {key.variable}"))
    candidates += [
        (table[key.name], os.path.dirname(path), path) for path, table in tables if key.name in table
    ]
    chosen: Value | None = None
    for raw, base, origin in candidates:
        try:
            value = Value(key.read(raw, base), origin)
        except ValueError as error:
            problems.append(Problem(origin, key.name, str(error)))
        else:
            chosen = chosen or value
    if chosen is None:
        chosen = Value(default_home(environ) if key.name == "home" else key.default, "default")
    return chosen


def _parse(kind: str, path: str, problems: list[Problem]) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        problems.append(Problem(path, "", f"cannot be read: {error.strerror}"))
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(Problem(path, "", f"not valid TOML: {error}"))
        return {}
    if kind != PYPROJECT:
        return document
    tool = document.get("tool", {})
    table = tool.get("velo", {}) if isinstance(tool, dict) else {}
    return table if isinstance(table, dict) else {}


def _flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """`{"learn": {"enabled": x}}` as `{"learn.enabled": x}`; tables go one level deep."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": inner_value for inner, inner_value in value.items()})
        else:
            flat[name] = value
    return flat

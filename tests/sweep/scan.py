# SPDX-License-Identifier: Apache-2.0
"""Which modules an environment has, by looking at its folders: grouped by top-level name, in a fixed order.

Asks the interpreter for its folders and lists them itself: what `pkgutil` says is one of the things compared.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import editables

QUESTION = """
import importlib.machinery, importlib.metadata, json, os, sys, sysconfig
stdlib = os.path.dirname(os.__file__)
inside = lambda entry: entry.startswith(sys.base_prefix) and not entry.endswith("-packages")
print(json.dumps({
    "folders": [entry for entry in sys.path if entry and os.path.isdir(entry) and not inside(entry)],
    "stdlib": stdlib,
    "names": sorted(sys.stdlib_module_names),
    "suffixes": importlib.machinery.all_suffixes(),
    "version": sys.version.split()[0],
    "owners": importlib.metadata.packages_distributions(),
}))
"""
STANDARD = "(standard library)"
METADATA = "(metadata)"

# Never imported, each with its reason.
SKIPPED = {
    "gevent.tests": "runs its tests, with servers and time limits, when it is imported",
    "numpy.f2py.tests": "runs compilers in threads when it is imported, and no two such runs are alike",
    "antigravity": "opens a browser",
    "idlelib": "wants a display",
    "turtledemo": "wants a display",
    "test": "needs what only CPython's own test runner sets up",
    "lib2to3.tests": "needs what only CPython's own test runner sets up",
    "__phello__": "frozen for CPython's own tests",
    "_virtualenv": "belongs to the tool that made the environment",
}


@dataclass(frozen=True)
class Environment:
    """An environment, and every module that its folders offer."""

    python: Path
    version: str
    owners: Mapping[str, list[str]]  # the distributions that a top-level package belongs to
    packages: Mapping[str, tuple[str, ...]]


def is_skipped(name: str) -> bool:
    return any(name == each or name.startswith(each + ".") for each in SKIPPED)


def scan(python: Path, variables: Mapping[str, str]) -> Environment:
    """Ask the interpreter where its modules are and list them."""
    done = subprocess.run(
        [python, "-c", QUESTION], capture_output=True, check=True, cwd="/", env=dict(variables)
    )
    facts = json.loads(done.stdout)
    packages: dict[str, list[str]] = {}
    for folder in facts["folders"]:
        for name in modules_below(Path(folder), "", facts["suffixes"]):
            packages.setdefault(name.partition(".")[0], []).append(name)
    for name in editables.modules(python.parents[1]):
        packages.setdefault(name.partition(".")[0], []).append(name)
    standard = set(facts["names"])
    for name in modules_below(Path(facts["stdlib"]), "", facts["suffixes"]):
        if name.partition(".")[0] in facts["names"]:
            standard.add(name)
    packages = {
        top: sorted({name for name in names if not is_skipped(name)})
        for top, names in sorted(packages.items())
    }
    packages[STANDARD] = sorted(name for name in standard if not is_skipped(name))
    packages[METADATA] = ["importlib.metadata"]
    return Environment(
        python,
        facts["version"],
        facts["owners"],
        {top: tuple(names) for top, names in packages.items() if names},
    )


def modules_below(folder: Path, prefix: str, suffixes: list[str]) -> Iterator[str]:
    """Every module in the folder and below, packages before what they contain."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not path.name.isidentifier() or path.name == "__pycache__":
                continue
            inner = list(modules_below(path, f"{prefix}{path.name}.", suffixes))
            if inner:
                yield f"{prefix}{path.name}"
                yield from inner
            elif any((path / f"__init__{suffix}").is_file() for suffix in suffixes):
                yield f"{prefix}{path.name}"
            continue
        suffix = next((each for each in suffixes if path.name.endswith(each)), None)
        if suffix is not None:
            stem = path.name[: -len(suffix)]
            if stem.isidentifier() and stem != "__init__":
                yield prefix + stem

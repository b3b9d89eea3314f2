# SPDX-License-Identifier: Apache-2.0
"""The environment of an accelerated program, from the one it would have had. A pure function: no clock, no
files.

The surprise: an empty entry of PYTHONPATH means the current folder, so no separator may be left dangling,
and none that the user left dangling may be lost. NODE_OPTIONS is words with quotes of its own kind; what the
user wrote there is never parsed, only preceded.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # collections.abc would import collections, 1.5 ms
    from collections.abc import Mapping


def child_environment(
    environ: Mapping[str, str],
    *,
    injection_folder: str,
    home: str,
    preload: str = "",
    shared: str = "",
    manifest: str = "",
    check: str = "",
    remember: str = "",
    calm: bool = True,
    learn: bool = True,
) -> dict[str, str]:
    """What the child gets. Applied twice it changes nothing; with VELO_DISABLE set it changes nothing at
    all.
    """
    child = dict(environ)
    if is_disabled(environ) or not can_inject(injection_folder):
        return child
    child["PYTHONPATH"] = python_path(environ.get("PYTHONPATH", ""), injection_folder)
    if preload:
        child["NODE_OPTIONS"] = node_options(environ.get("NODE_OPTIONS", ""), preload)
    # Absolute, because children may start elsewhere.
    child["VELO_HOME"] = os.path.abspath(home)
    if shared or child.get("VELO_SHARED"):
        child["VELO_SHARED"] = os.path.abspath(shared or child["VELO_SHARED"])
    if manifest or child.get("VELO_MANIFEST"):
        child["VELO_MANIFEST"] = os.path.abspath(manifest or child["VELO_MANIFEST"])
    if check:
        child["VELO_CHECK"] = check
    if not calm and not child.get("VELO_CALM"):
        child["VELO_CALM"] = "0"
    if remember:
        child["VELO_REMEMBER"] = remember
    if not learn and not child.get("VELO_READONLY"):
        child["VELO_READONLY"] = "1"
    return child


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Whether VELO_DISABLE switches everything off; the hook reads it in the same way."""
    return environ.get("VELO_DISABLE", "0") not in ("", "0")


def changes(environ: Mapping[str, str], child: Mapping[str, str]) -> dict[str, str]:
    """The variables to set to get from one environment to the other."""
    return {name: value for name, value in child.items() if environ.get(name) != value}


def can_inject(folder: str) -> bool:
    """PYTHONPATH has no way to name a folder with a separator in its name."""
    return os.pathsep not in folder


def python_path(existing: str, folder: str) -> str:
    """`existing` with `folder` first, once; everything else stays as the user wrote it."""
    if not existing:  # CPython treats an empty PYTHONPATH as unset.
        return folder
    entries = existing.split(os.pathsep)
    if folder not in entries:
        return folder + os.pathsep + existing
    return os.pathsep.join([folder] + [entry for entry in entries if entry != folder])


def node_options(existing: str, preload: str) -> str:
    """`existing` with our preload before it, once: what the user preloads is then served as well, and hooks
    that the user installs find us below them, as they find Node.
    """
    option = preload_option(preload)
    if not existing:
        return option
    return existing if f" {option} " in f" {existing} " else f"{option} {existing}"


def preload_option(path: str) -> str:
    """The option in Node's own quoting: spaces separate words; a backslash is one except within quotes."""
    option = f"--require={path}"
    if " " not in path and '"' not in path:
        return option
    escaped = option.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'

# SPDX-License-Identifier: Apache-2.0
"""Where things are, without importing anything: `velo run` pays for every millisecond spent here.

Knows the store's default place (the hook repeats the rule, a test compares) and which configuration files
count. Leaves reading them to settings.py.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # collections.abc would import collections, 1.5 ms
    from collections.abc import Mapping

PROJECT_FILE = "velo.toml"
PYPROJECT = "pyproject.toml"


def default_home(environ: Mapping[str, str]) -> str:
    """The store's folder when no flag and no file names one; absolute."""
    named = environ.get("VELO_HOME")
    if named:
        return os.path.abspath(os.path.expanduser(named))
    cache = environ.get("XDG_CACHE_HOME", "")
    # The XDG rules: a relative value is to be ignored.
    if not os.path.isabs(cache):
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "velo")


def user_file(environ: Mapping[str, str]) -> str:
    """The user's own configuration file; on Linux the same place that platformdirs gives."""
    import sys

    if sys.platform == "darwin":
        from platformdirs import user_config_dir

        return os.path.join(user_config_dir("velo"), "config.toml")
    config = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(config):
        config = os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "velo", "config.toml")


def configuration_files(folder: str, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Files that may hold settings, strongest first: nearest velo.toml, nearest pyproject.toml that names
    us, the user's.
    """
    found: dict[str, str] = {}
    while True:
        for kind in (PROJECT_FILE, PYPROJECT):
            path = os.path.join(folder, kind)
            if kind not in found and os.path.isfile(path) and (kind == PROJECT_FILE or _names_us(path)):
                found[kind] = path
        parent = os.path.dirname(folder)
        if parent == folder or len(found) == 2:
            break
        folder = parent
    user = user_file(environ)
    if os.path.isfile(user):
        found["user"] = user
    return [(kind, found[kind]) for kind in (PROJECT_FILE, PYPROJECT, "user") if kind in found]


def _names_us(path: str) -> bool:
    """Whether a pyproject.toml can hold a [tool.velo] table: most do not, and parsing TOML costs 15 ms."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError:
        return False
    return b"tool.velo" in text or (b"[tool]" in text and b"velo" in text)

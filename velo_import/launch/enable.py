# SPDX-License-Identifier: Apache-2.0
"""Velo in one environment for good: a `.pth` file, and for CPython 3.15+ a `.start` file, in its
site-packages.

Knows what those files say and removes exactly them. Leaves finding modules to the hook, which they load by
location. The surprise: an exception in a `.pth` line is printed at every start of that Python, so the line
swallows everything, also the day when Velo itself has been uninstalled.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageFault, VeloError
from ..host.files import publish
from .injection import injection_folder, prepare

MARK = "# Written by `velo enable`; `velo disable` removes it."
PTH, START, START_MODULE = "velo.pth", "velo.start", "_velo_start.py"
START_SINCE = (3, 15)  # PEP 829: entry points instead of import lines, which 3.18 will ignore.
OLDEST = (3, 11)


class Site(NamedTuple):
    """A site-packages folder and the Python it belongs to."""

    folder: Path
    version: tuple[int, int]


class Change(NamedTuple):
    """What was done: files written or removed."""

    files: tuple[Path, ...]
    learns: bool = True


def enable(environment: Path, home: str) -> Change:
    """Write the files into `environment`. Doing it again changes nothing but paths that have moved."""
    sites = find_sites(environment)
    for site in sites:
        if site.version < OLDEST:
            raise UsageFault(
                f"{environment} is an environment of Python {site.version[0]}.{site.version[1]}",
                hint="Velo accelerates CPython 3.11 and later",
            )
    learns = prepare(home)
    written = [
        path for site in sites for path in _write_files(site, files_for(site, injection_folder(), home))
    ]
    return Change(tuple(written), learns)


def disable(environment: Path) -> Change:
    """Remove what `enable` wrote, and nothing else."""
    removed = []
    for site in find_sites(environment):
        for path in enabled_files(site):
            try:
                path.unlink()
            except OSError as error:
                raise VeloError(f"cannot remove {path}: {error.strerror}", hint="check its owner") from None
            removed.append(path)
    return Change(tuple(removed))


def enabled_files(site: Site) -> list[Path]:
    """Our files in a site-packages folder; a file of the same name without our mark is somebody else's."""
    ours = [site.folder / name for name in (PTH, START, START_MODULE) if _is_ours(site.folder / name)]
    if site.folder / START_MODULE in ours:
        ours += sorted((site.folder / "__pycache__").glob("_velo_start.cpython-*.pyc"))
    return ours


def find_sites(environment: Path) -> list[Site]:
    """The site-packages folders of a virtual or conda environment; refuses shared Pythons and non-CPython."""
    if not environment.is_dir():
        raise UsageFault(f"no such folder: {environment}", hint="give the folder of a virtual environment")
    if not (environment / "pyvenv.cfg").is_file() and not (environment / "conda-meta").is_dir():
        raise UsageFault(
            f"{environment} is not a virtual environment",
            hint="make one with `python3 -m venv FOLDER`; for other Pythons use `velo run`",
        )
    sites = []
    for folder in sorted(environment.glob("lib/python3.*/site-packages")):
        found = re.fullmatch(r"python(\d+)\.(\d+)t?", folder.parent.name)
        if found and not folder.parent.is_symlink():
            sites.append(Site(folder.absolute(), (int(found[1]), int(found[2]))))
    if not sites:
        raise UsageFault(
            f"{environment} has no lib/python3.*/site-packages",
            hint="Velo accelerates CPython 3.11 and later",
        )
    return sites


def files_for(site: Site, injection: str, home: str) -> dict[str, str]:
    """Names and contents; pure ASCII, because the encoding in which .pth files are read has changed twice."""
    code = start_code(os.path.join(injection, "sitecustomize.py"), home)
    # `exec` of a string: a .pth line cannot hold a `try`.
    files = {PTH: f"{MARK}\nimport sys; exec({code!a}, {{}})\n"}
    if site.version >= START_SINCE:
        body = "".join(f"    {line}\n" for line in code.splitlines())
        files[START_MODULE] = (
            f'{MARK}\n"""Loads Velo\'s hook; named in {START}."""\n\n\ndef install():\n'
            f"    import sys\n{body}    sys.modules.pop(__name__, None)\n"
        )
        files[START] = f"{MARK}\n{Path(START_MODULE).stem}:install\n"
    return files


def start_code(sitecustomize: str, home: str) -> str:
    """Statements that load our sitecustomize by location, in its `.pth` mode, and never fail."""
    names = {"__name__": "_velo_pth", "__file__": sitecustomize, "VELO_HOME_DEFAULT": os.path.abspath(home)}
    return (
        "try:\n"
        f"    with open({sitecustomize!a}, 'rb') as file: code = file.read()\n"
        f"    exec(compile(code, {sitecustomize!a}, 'exec'), {names!a})\n"
        "except Exception: pass\n"
    )


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


def _write_files(site: Site, files: dict[str, str]) -> list[Path]:
    written = []
    for name, content in files.items():
        path = site.folder / name
        if path.exists() and not _is_ours(path):
            raise VeloError(f"{path} exists and is not Velo's", hint="move it away, then try again")
        try:
            publish(path, [content.encode("ascii")], mode=0o644)
        except VeloError as error:  # its hint is about the store; here somebody's environment refuses
            raise VeloError(error.message, hint="check the owner and the free space of that folder") from None
        written.append(path)
    return written

# SPDX-License-Identifier: Apache-2.0
"""Import every module of an environment, plain and accelerated, and compare all that can be seen.

`python -m tests.sweep make 3.12 FOLDER` makes an environment of the distributions in requirements.lock,
`python -m tests.sweep run FOLDER/bin/python` sweeps it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.support.running import clean_environment

from .make import make
from .results import FOLDER, keep, table
from .run import ARMS, PackageResult, Sweep
from .scan import scan


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("make", help="make an environment")
    new.add_argument("version", help="of Python: 3.12")
    new.add_argument("folder", type=Path)
    new.add_argument("--kind", choices=("all", "editables", "hooked"), default="all")
    new.add_argument(
        "--only", nargs="*", help="these distributions: not all have wheels for the newest Python"
    )
    run = commands.add_parser("run", help="sweep an environment")
    run.add_argument("python", type=Path, help="its interpreter")
    run.add_argument("--only", nargs="*", default=[], help="these top-level packages")
    run.add_argument("--skip", nargs="*", default=[], help="not these")
    run.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    run.add_argument("--jobs", type=int, default=2)
    run.add_argument("--work", type=Path, help="folder to work in, kept (default: a temporary one)")
    run.add_argument(
        "--ingest", type=Path, nargs="*", help="what `velo ingest` is given (default: the environment)"
    )
    run.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="variable for all arms")
    run.add_argument("--json", type=Path, help="where results are kept; those of other packages stay")
    show = commands.add_parser("table", help="show kept results")
    show.add_argument("json", type=Path, nargs="*", help=f"default: those of {FOLDER.name}/")
    chosen = parser.parse_args()
    if chosen.command == "table":
        print(table(chosen.json or sorted(FOLDER.glob("*.json"))))
        return
    if chosen.command == "make":
        print(make(chosen.version, chosen.folder.absolute(), kind=chosen.kind, only=chosen.only))
        return
    sys.exit(_run(chosen))


def _run(chosen: argparse.Namespace) -> int:
    python = chosen.python.absolute()
    work = chosen.work or Path(tempfile.mkdtemp(prefix="velo-sweep-"))
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    environment = scan(python, clean_environment(work))
    wanted = chosen.only or list(environment.packages)
    packages = [name for name in wanted if name in environment.packages and name not in chosen.skip]
    # The smallest first: a sweep that is interrupted has seen the most packages.
    packages.sort(key=lambda name: len(environment.packages[name]))
    extra = dict(each.split("=", 1) for each in chosen.set)
    sweep = Sweep(environment, work, chosen.arms, extra)
    began = time.monotonic()
    projects = python.parents[1] / "projects"  # finders lead there, and no `.pth` file
    sweep.prepare(chosen.ingest or [python.parents[1], *([projects] if projects.exists() else [])])
    print(
        f"{environment.version}: {len(packages)} packages, ready after {time.monotonic() - began:.0f} s",
        flush=True,
    )

    def report(result: PackageResult) -> None:
        verdict = f"{len(result.unexplained)} DIFFERENCES" if result.unexplained else "same"
        served = {arm: each["own_served"] for arm, each in result.arms.items()}
        print(f"{result.name}: {result.modules} modules, {result.imported} imported, {served}: {verdict}")
        for problem in result.problems:
            print(f"    PROBLEM {problem}")
        for each in result.unexplained[:6]:
            print(f"    {json.dumps(each)[:900]}")
        sys.stdout.flush()
        if chosen.json:
            keep(chosen.json, environment, [result])

    results = sweep.run(packages, chosen.jobs, report)
    found = [each.name for each in results if each.unexplained or each.problems]
    print(f"{len(results)} packages after {time.monotonic() - began:.0f} s")
    print(f"differing: {' '.join(found) or 'none'}")
    return 1 if found else 0


if __name__ == "__main__":
    main()

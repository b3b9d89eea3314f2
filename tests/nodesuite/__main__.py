# SPDX-License-Identifier: Apache-2.0
"""Run Node's own tests, unmodified, plain and with Velo, and compare what each came to.

`python -m tests.nodesuite run 20` runs all parts on one line of Node, `... run 20 require module` some,
`python -m tests.nodesuite table` shows what is kept. The tests come by `git clone`, Nodes by `npm pack`.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.support import nodes

from .programs import programs_of, read_parts
from .results import FOLDER, keep, read_results, revision, table, write_table
from .run import Place, run_part
from .sources import COMMITS, sources


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.nodesuite", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run tests on one line of Node")
    run.add_argument("line", choices=sorted(COMMITS), help="of Node: 20")
    run.add_argument("parts", nargs="*", help="default: all")
    run.add_argument("--test", nargs="*", default=[], help="only tests whose names contain one of these")
    run.add_argument("--work", type=Path, help="folder to work in, kept (default: a temporary one)")
    run.add_argument("--json", type=Path, help="where results are kept; those of other parts stay")
    run.add_argument("--resume", action="store_true", help="leave out what is kept of this revision")
    run.add_argument("--minutes", type=float, default=math.inf, help="begin no further part after this time")
    run.add_argument("--jobs", type=int, default=1, help="tests at the same time")
    show = commands.add_parser("table", help="show kept results")
    show.add_argument("json", type=Path, nargs="*", help=f"default: those of {FOLDER.name}/")
    show.add_argument("--write", type=Path, metavar="PAGE", help="put it into this page instead")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if chosen.command == "table":
        kept = chosen.json or sorted(FOLDER.glob("*.json"))
        if chosen.write:
            write_table(chosen.write, kept)
        else:
            print(table(kept))
        return
    sys.exit(_run(chosen))


def _run(chosen: argparse.Namespace) -> int:
    version = next(each for each in nodes.VERSIONS if each.startswith(f"{chosen.line}."))
    node, tests = nodes.node(version), sources(chosen.line)
    parts = read_parts()
    unknown = [name for name in chosen.parts if name not in parts]
    if unknown:
        raise SystemExit(f"no such part: {' '.join(unknown)} (there are {' '.join(parts)})")
    running, until, bad = revision(), time.monotonic() + chosen.minutes * 60, 0
    done: set[str] = set()
    if chosen.resume and chosen.json and chosen.json.exists() and not running.endswith("-dirty"):
        _, kept = read_results(chosen.json)
        done = {
            each.name for each, of in kept if of == running and not each.unexplained and not each.problems
        }
    temporary = None if chosen.work else tempfile.mkdtemp(prefix="velo-nodesuite-")
    work = (chosen.work or Path(str(temporary))).resolve()
    try:
        for name, programs in programs_of(tests, parts).items():
            if chosen.test:
                programs = [each for each in programs if any(word in each.name for word in chosen.test)]
            if (
                not programs
                or name in done
                or (chosen.parts and name not in chosen.parts)
                or time.monotonic() > until
            ):
                continue
            place = Place(node, chosen.line, tests, work / chosen.line, chosen.jobs)
            result = run_part(
                place, name, programs, lambda text, name=name: print(f"  {name} {text}", flush=True)
            )
            bad += bool(result.unexplained or result.problems)
            if revision() != running:
                raise SystemExit(
                    f"Velo has changed from {running} to {revision()} while {name} ran: not kept"
                )
            if chosen.json:
                keep(chosen.json, version, COMMITS[chosen.line][0], result, running)
            print(
                f"{version} {name}: {result.seconds:.0f} s, {len(result.baseline)} tests, "
                f"served {result.served}, errors {result.errors}, listed {sorted(result.listed)}, "
                f"unstable {sorted(result.unstable)}, once {sorted(result.once)}, "
                f"unexplained {result.unexplained}, problems {result.problems}",
                flush=True,
            )
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    main()

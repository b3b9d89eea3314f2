# SPDX-License-Identifier: Apache-2.0
"""Run other people's suites, unmodified, plain and with Velo, and compare what each test came to.

`python -m tests.suites run 3.12` runs all of them on one Python, `... run 3.12 pytest zipp` some,
`python -m tests.suites table` shows what is kept.

A run that lasts hours is stopped and begun again at will: `--resume` leaves out what is kept of the same
revision of Velo, `--minutes` begins nothing new after that time. It ends where the checkout changes, and does
not begin where the native modules are older than their sources.
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

from tests.support import sid
from tests.sweep.make import interpreter

from .make import Made, Missing, make
from .results import FOLDER, is_built, keep, revision, settled, table, write_table
from .run import PartResult, Place, run_part
from .suites import Suite, by_name, parts_of, read_suites


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run suites on one Python")
    run.add_argument("version", help="of Python: 3.12")
    run.add_argument("suites", nargs="*", help="default: all")
    run.add_argument("--part", nargs="*", default=[], help="only these parts: test_import test_runpy")
    run.add_argument("--work", type=Path, help="folder to work in, kept (default: a temporary one)")
    run.add_argument("--json", type=Path, help="where results are kept; those of other parts stay")
    run.add_argument("--resume", action="store_true", help="leave out what is kept of this revision")
    run.add_argument("--minutes", type=float, default=math.inf, help="begin no further part after this time")
    run.add_argument("--make", action="store_true", help="only make what the suites run in")
    show = commands.add_parser("table", help="show kept results")
    show.add_argument("json", type=Path, nargs="*", help=f"default: those of {FOLDER.name}/")
    show.add_argument("--write", type=Path, metavar="PAGE", help="put it into this page instead")
    show.add_argument("--mixed", action="store_true", help="of several revisions; each row says of which")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if chosen.command == "table":
        kept = chosen.json or sorted(FOLDER.glob("*.json"))
        if chosen.write:
            write_table(chosen.write, kept, mixed=chosen.mixed)
        else:
            print(table(kept, mixed=chosen.mixed))
        return
    sys.exit(_run(chosen))


def _run(chosen: argparse.Namespace) -> int:
    found = interpreter(chosen.version)
    suites = [
        each for each in by_name(read_suites(), chosen.suites) if chosen.suites or each.is_for(found.name)
    ]
    temporary = None if chosen.work else tempfile.mkdtemp(prefix="velo-suites-")
    work = (chosen.work or Path(str(temporary))).resolve()
    bad = 0
    if not is_built():
        raise SystemExit("the native modules are older than their sources: build them again")
    until = time.monotonic() + chosen.minutes * 60

    try:
        for suite in suites:
            try:
                made = make(suite, found, work)
                results = [] if chosen.make else _run_suite(suite, made, chosen, until)
            except (Missing, sid.Unavailable) as reason:
                print(f"{suite.name}: NOT RUN: {reason}", flush=True)
                bad += 1
                continue
            bad += sum(bool(each.unexplained or each.problems) for each in results)
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return 1 if bad else 0


def _run_suite(suite: Suite, made: Made, chosen: argparse.Namespace, until: float) -> list[PartResult]:
    results = []
    running = revision()
    done = settled(chosen.json, suite.name, running) if chosen.resume and chosen.json else set()
    parts = parts_of(suite, made.stdlib)
    for part in parts:
        began = time.monotonic()
        if part in done or (chosen.part and part not in chosen.part) or began > until:
            continue
        place = Place(suite, made, part, chosen.version)
        result = run_part(place, part)
        results.append(result)
        if revision() != running:
            raise SystemExit(f"Velo has changed from {running} to {revision()} while {part} ran: not kept")
        if chosen.json:
            keep(chosen.json, made.version, suite, result, parts, running)
        _report(suite.name, result, time.monotonic() - began)
        if not result.unexplained and not result.problems:
            place.clear()
    return results


def _report(suite: str, result: PartResult, seconds: float) -> None:
    verdict = f"{len(result.unexplained)} DIFFERENCES" if result.unexplained else "same"
    print(
        f"{suite} {result.name}: {result.tests} tests, {result.passed} passed, {result.failed} failed, "
        f"{result.skipped} skipped, served {result.served} with {result.images} images in "
        f"{result.processes} processes, "
        f"{len(result.listed)} listed, {len(result.unstable)} unstable, {len(result.once)} once, "
        f"{seconds:.0f} s: {verdict}"
    )
    for problem in result.problems:
        print(f"    PROBLEM {problem}")
    for test, each in {**result.once, **result.unexplained}.items():
        print(f"    {test}: {each}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

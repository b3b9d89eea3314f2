# SPDX-License-Identifier: Apache-2.0
"""Run tools of the Node world, plain and with Velo, and compare what they say, write and end with.

`python -m tests.nodetools run` runs all tools on all lines of Node, `... run --nodes 20,24 tsc eslint` some,
`python -m tests.nodetools table` shows what is kept. npm brings the tools and the Nodes.
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

from tests.nodesuite.results import revision
from tests.support import nodes

from .results import FOLDER, keep, table, write_table
from .run import run_tool
from .tools import install, read_tools


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.nodetools", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run tools")
    run.add_argument("tools", nargs="*", help="default: all")
    run.add_argument("--nodes", default="", help="comma list of lines: 20,24 (default: all)")
    run.add_argument("--work", type=Path, help="folder to work in, kept (default: a temporary one)")
    run.add_argument("--json", type=Path, help="folder where results are kept; those of other tools stay")
    run.add_argument("--minutes", type=float, default=math.inf, help="begin no further tool after this time")
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
    tools = read_tools()
    unknown = [name for name in chosen.tools if name not in tools]
    if unknown:
        raise SystemExit(f"no such tool: {' '.join(unknown)} (there are {' '.join(tools)})")
    lines = chosen.nodes.split(",") if chosen.nodes else [each.partition(".")[0] for each in nodes.VERSIONS]
    running, until, bad = revision(), time.monotonic() + chosen.minutes * 60, 0
    temporary = None if chosen.work else tempfile.mkdtemp(prefix="velo-nodetools-")
    work = (chosen.work or Path(str(temporary))).resolve()
    try:
        project = install(work)
        for version in nodes.VERSIONS:
            for name, tool in tools.items():
                is_asked = version.partition(".")[0] in lines and (not chosen.tools or name in chosen.tools)
                if not is_asked or time.monotonic() > until:
                    continue
                result = run_tool(tool, nodes.node(version), project, work / "places" / f"{version}-{name}")
                bad += bool(result.differences or result.problems)
                if chosen.json:
                    keep(chosen.json / f"{version.partition('.')[0]}.json", version, tool, result, running)
                print(
                    f"{version} {name}: exit {result.codes}, said {result.characters}, wrote {result.files}, "
                    f"served {result.served}, errors {result.errors}, seconds {result.seconds}, "
                    f"differences {result.differences}, problems {result.problems}, reasons {result.reasons}",
                    flush=True,
                )
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Look for inputs that break a parser: `python -m tests.fuzz PARSER [--count N] [--seed N] [--keep]`.

`--samples` writes what the real writers write into the corpus, which is needed when a format has changed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from .parsers import PARSERS
from .run import fuzz, keep


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("parser", choices=[*PARSERS, "all"])
    parser.add_argument("--count", type=int, default=10_000, help="mutations to try")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--keep", action="store_true", help="keep inputs that reach new lines")
    parser.add_argument("--samples", action="store_true", help="keep what the writers write, and try nothing")
    chosen = parser.parse_args()
    for name in PARSERS if chosen.parser == "all" else [chosen.parser]:
        if chosen.samples:
            for data in PARSERS[name].samples():
                print(keep(name, data))
            continue
        _look(name, chosen.count, chosen.seed, chosen.keep)


def _look(name: str, count: int, seed: int, keeps: bool) -> None:
    last = Path(tempfile.mkstemp(prefix=f"velo-fuzz-{name}-")[1])
    found = 0
    try:
        for data, accepted in fuzz(name, count=count, seed=seed, last=last):
            found += 1
            if keeps:
                print(keep(name, data), "accepted" if accepted else "refused")
    except BaseException:
        print(
            f"{name}: seed {seed} broke it; the input is kept as {keep(name, last.read_bytes())}",
            file=sys.stderr,
        )
        raise
    finally:
        last.unlink()
    print(f"{name}: {count} mutations with seed {seed}, {found} reached new lines")


if __name__ == "__main__":
    main()

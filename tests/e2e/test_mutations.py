# SPDX-License-Identifier: Apache-2.0
"""Whole programs on a store in which one file was changed: the same output, nothing on stderr, no crash.

Every file that a start reads is changed in ways that parsers fear (tests/fuzz/mutate.py): as a bad disk
would; packs also under a stamp that still holds, where VELO_VERIFY has to notice.
`tests/fuzz/corpus/programs` keeps what is tried each time: lines of kind and seed, which make the same change
of any store. Readers alone meet many more (tests/test_native_finder.py, tests/fuzz).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.test_faults import injection
from tests.fuzz.mutate import mutated
from tests.support.running import Velo
from tests.support.tree import Tree
from velo_import.format import manifest as m

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus" / "programs"
MANY = int(os.environ.get("VELO_TEST_MUTATIONS", "2000"))
LIMIT = 60
APP = {
    "app.py": """
        import sys
        import part, box, box.deep, words, json, linked
        print(part.VALUE, box.VALUE, box.deep.VALUE)
        print(words.find("a1 b22"), words.Point(1, 2), words.Pair(3, 4))
        print(linked.__file__, part.total.__code__.co_filename, json.dumps([1]))
        print(part.total(range(9)), box.deep.nested(3)(4), sys.path, list(sys.modules))
        """,
    "part.py": "VALUE = 1\n\ndef total(numbers):\n    return sum(number * 2 for number in numbers)\n",
    "box/__init__.py": "from . import deep\nVALUE = deep.VALUE + 1\n",
    "box/deep.py": """
        VALUE = 2

        def nested(one):
            def inner(two):
                return one + two, __name__
            return inner
        """,
    "words.py": """
        import re
        from collections import namedtuple
        from dataclasses import dataclass
        find = re.compile(r"([a-z])(?P<number>[0-9]+)").findall
        Pair = namedtuple("Pair", "left right")

        @dataclass(frozen=True)
        class Point:
            x: int
            y: int = 0
        """,
}
# What a start reads, by its place in the store.
FILES = {
    "manifest": "manifests/v1/*/*.velo",
    "pack": "packs/v1/*/*.pack",
    "hook code": "run/hook/*.code",
    "remembered": "manifests/v1/*/remembered.table",
    "ahead": "run/ahead/*",
    "learner": "run/learner",
}
KINDS = [*FILES, "pack that holds its stamp"]


def with_stamps_of(data: bytes, packs: Path) -> bytes:
    """The manifest, with the packs as they are now."""
    decoded = m.decode(data)
    records = []
    for pack in decoded.packs:
        status = (packs / pack.name).stat()
        stamp = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        records.append(m.PackRecord(pack.name, pack.label, *stamp))
    return m.encode(decoded._replace(packs=records))


class Copies:
    """Copies of a sound store, each changed in one file, and a program run on it.

    Inodes and times of a copy are others; so its manifests are given the stamps of its packs.
    """

    def __init__(self, velo: Velo) -> None:
        self.velo = velo
        self.environment = injection(velo)
        self.sound = {
            path.relative_to(velo.home): path.read_bytes()
            for pattern in (*FILES.values(), "VERSION", "run/launch")
            for path in sorted(velo.home.glob(pattern))
            if path.is_file()
        }
        self.plain = velo.plain("app.py").answer

    def change(self, kind: str, seed: int) -> Callable[[Path], bool]:
        """What makes one file of this kind worse; whether the store has such a file."""
        chance = random.Random(f"{kind} {seed}")
        pattern = FILES[kind.partition(" that")[0]]

        def apply(home: Path) -> bool:
            paths = sorted(home.glob(pattern))
            if not paths:
                return False
            path = chance.choice(paths)
            data = path.read_bytes()
            path.chmod(0o600)
            path.write_bytes(mutated(data, [data], chance))
            if kind != "pack":
                self.restamp(home)
            return True

        return apply

    def restamp(self, home: Path) -> None:
        for path in home.glob(FILES["manifest"]):
            try:
                path.write_bytes(with_stamps_of(path.read_bytes(), home / "packs" / "v1"))
            except Exception:
                continue  # this is the one that was changed

    def run(self, kind: str, seed: int) -> str:
        """What became of the change: how many modules were served, or the reason why none."""
        home = self.velo.folder / f"home-{kind.replace(' ', '-')}-{seed}"
        for name, data in self.sound.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            (home / name).write_bytes(data)
        home.chmod(0o700)
        self.restamp(home)
        try:
            if not self.change(kind, seed)(home):
                return "no such file"
            statistics = home / "statistics"
            variables: dict[str, str | None] = {
                **self.environment,
                "VELO_HOME": str(home),
                "VELO_STATS": str(statistics),
            }
            if kind == "pack that holds its stamp":
                variables["VELO_VERIFY"] = "1"
            done = subprocess.run(
                [self.velo.python, "app.py"],
                cwd=self.velo.cwd,
                env=self.velo.plain_environment(**variables),
                capture_output=True,
                text=True,
                errors="backslashreplace",
                timeout=LIMIT,
            )
            assert (done.stdout, done.stderr, done.returncode) == self.plain, (kind, seed)
            told = statistics.read_text() if statistics.exists() else ""
            return "served" if '"served": 0,' not in told and told else "not served"
        finally:
            shutil.rmtree(home)


@pytest.fixture
def copies(tree: Tree, velo: Velo) -> Copies:
    tree.write(APP)
    (tree / "linked.py").symlink_to("part.py")
    for _ in range(3):
        velo.learn("app.py")
    assert velo.run("app.py").served >= 6
    velo.ingest()
    return Copies(velo)


def try_all(copies: Copies, tries: list[tuple[str, int]]) -> Counter[str]:
    """Two at a time: what is waited for is processes."""
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda each: copies.run(*each), tries))
    found: Counter[str] = Counter()
    for (kind, _), end in zip(tries, ends, strict=True):
        found[f"{kind}: {end}"] += 1
    print("\n".join(f"{count:5} {what}" for what, count in sorted(found.items())))
    return found


def test_kept_changes_of_files(copies: Copies) -> None:
    """Those of the corpus: each kind of file, each end that such a change has had so far."""
    lines = [line.rpartition(" ") for line in CORPUS.read_text().splitlines() if not line.startswith("#")]
    found = try_all(copies, [(kind, int(seed)) for kind, _, seed in lines])

    assert found["manifest: served"] > 0, "nothing was read, so nothing was tried"
    assert found["manifest: not served"] > 0, "no change was a damage"
    assert found["pack that holds its stamp: served"] > 0


@pytest.mark.slow
def test_many_changes_of_files(copies: Copies) -> None:
    """Others each time; `VELO_TEST_MUTATIONS` says how many."""
    chance = random.SystemRandom()
    found = try_all(copies, [(KINDS[at % len(KINDS)], chance.getrandbits(32)) for at in range(MANY)])

    assert sum(count for what, count in found.items() if not what.endswith("no such file")) >= MANY * 3 // 4

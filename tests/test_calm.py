# SPDX-License-Identifier: Apache-2.0
"""The calmer collector: programs that could notice it see and print what they do without it, byte for byte.

Each program runs plainly and accelerated on every interpreter. `calm` in the statistics says whether the end
was shortened; for the programs that would have noticed it must say no, and name the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.support.running import CHECKOUT, Result, Velo
from tests.support.tree import Tree

# A module of the user's, so that something is served, and what it makes hangs in cycles, as modules do.
PARTS = {
    "part.py": """
        import io, os, sys, weakref

        class Loud:
            def __init__(self, name):
                self.name, self.me = name, self

            def __del__(self):
                os.write(1, f"gone: {self.name}\\n".encode())

        class Quiet:
            def __init__(self):
                self.me = self

        def function():
            return Quiet()
        """,
    "other.py": "import part\nvalues = [part.Quiet() for _ in range(100)]\n",
}


@dataclass(frozen=True)
class Program:
    """One program, and whether its end may be shortened: None where the build decides."""

    text: str
    is_calm: bool | None
    reason: str = ""


PROGRAMS = {
    "nothing but imports": Program("import part, other; print(len(other.values))", True),
    "a finaliser in a module": Program("import part; part.kept = part.Loud('kept')", False, "part.Loud"),
    "a finaliser in the main program": Program(
        "import part\nkept = part.Loud('kept')\ndef function(): return kept\n", False, "part.Loud"
    ),
    "a finaliser in garbage": Program("import part\npart.Loud('garbage')\nprint('end')", False, "part.Loud"),
    "a finaliser that ran": Program("import part, gc\npart.Loud('one')\ngc.collect()\nprint('end')", True),
    "an open file in a cycle": Program(
        "import part\nq = part.Quiet(); q.file = open('out.txt', 'w'); q.file.write('text'); del q\n",
        False,
        "_io",
    ),
    "a closed file in a cycle": Program(
        "import part\nq = part.Quiet(); q.file = open('out.txt', 'w'); q.file.close()\n", True
    ),
    "output replaced by a file": Program(
        "import part, sys\nsys.stdout = open('out.txt', 'w')\nprint('text')\n", False, "_io"
    ),
    "a generator in a try": Program(
        "import part\ndef numbers():\n    try:\n        yield 1\n    finally:\n"
        "        import os; os.write(1, b'closed\\n')\n"
        "part.numbers = numbers(); next(part.numbers)\n",
        False,
        "generator",
    ),
    "a generator that hangs in a loop": Program(
        "import part\ndef numbers():\n    while True:\n        yield 1\n"
        "part.numbers = numbers(); next(part.numbers)\n",
        True,
    ),
    "a coroutine never awaited": Program(
        "import part\nasync def nothing(): pass\npart.waiting = nothing()\n", False, "coroutine"
    ),
    "a weak reference with a callback": Program(
        "import part, weakref, sys\ndef gone(reference): print('gone')\n"
        "sys.reference = weakref.ref(part.function, gone)\npart.me = part\n",
        False,
        "callback __main__.gone",
    ),
    "print as a callback": Program(
        "import part, weakref, sys\nsys.reference = weakref.ref(part.Quiet, print)\n", False, "callback"
    ),
    "weak collections": Program(
        "import part, weakref\npart.a = weakref.WeakSet([part.Quiet])\n"
        "part.b = weakref.WeakKeyDictionary({part.Quiet: 1})\n"
        "part.c = weakref.WeakValueDictionary(x=part.Quiet)\n",
        True,
    ),
    "weakref.finalize": Program(
        "import part, weakref\nweakref.finalize(part.Quiet, print, 'finalized')\n"
        "late = weakref.finalize(part.function, print, 'late'); late.atexit = False\n",
        True,
    ),
    # How often the young are collected depends on what anybody allocates, Velo too.
    "a callback of the collector": Program(
        "import part, gc, os\n"
        "def told(phase, info):\n"
        "    if info['generation'] == 2: os.write(1, phase.encode() + b'\\n')\n"
        "gc.callbacks.append(told)\nimport other\n",
        False,
        "watched",
    ),
    "thresholds of its own": Program(
        "import gc\ngc.set_threshold(50_000, 20, 30)\nimport part, other\nprint(gc.get_threshold())", True
    ),
    "the collector's state": Program(
        "import gc\nbefore = gc.get_threshold(), gc.isenabled(), gc.get_debug(), gc.callbacks, gc.garbage\n"
        "import part, other\n"
        "after = gc.get_threshold(), gc.isenabled(), gc.get_debug(), gc.callbacks, gc.garbage\n"
        "print(before == after, before)\n",
        True,
    ),
    "a collector switched off": Program(
        "import gc\ngc.disable()\nimport part, other\nprint(gc.isenabled())", True
    ),
    "frozen objects of its own": Program(
        "import gc, part\nfrozen = part.Quiet()\ngc.freeze()\nfound = gc.get_freeze_count()\nimport other\n"
        "print(found == gc.get_freeze_count(), any(x is frozen for x in gc.get_objects()))\n",
        False,
    ),
    "objects found by type": Program(
        "import gc, other, part\nprint(sum(type(x) is part.Quiet for x in gc.get_objects()))", True
    ),
    "garbage kept for looking": Program(
        "import gc, part\ngc.set_debug(gc.DEBUG_SAVEALL)\npart.Quiet()\ngc.collect()\n"
        "print(sum(type(x) is part.Quiet for x in gc.garbage))\ngc.set_debug(0)\ngc.garbage.clear()\n",
        True,
    ),
    "an exit function": Program("import atexit, part\natexit.register(print, 'bye')\n", True),
    "an exit function that leaves a finaliser": Program(
        "import atexit, part\natexit.register(lambda: setattr(part, 'late', part.Loud('late')))\n",
        False,
        "part.Loud",
    ),
    "a thread that never ends": Program(
        "import part, threading, time\n"
        "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n",
        None,
    ),
    "a fork": Program(
        "import os, part\npart.kept = part.Loud('kept')\nif os.fork():\n    os.wait()\nelse:\n"
        "    import other\n",
        False,
    ),
    "a server started by an import": Program(
        "import gc, part\nseen = [part.Loud(str(i)) for i in range(3)]\ndel seen\n"
        "for _ in range(300_000 if gc.get_threshold()[2] else 0): [[]].append([])\ngc.collect()\n"
        "print('end')\n",
        True,
    ),
    "an error at the end": Program("import part\nraise SystemExit('failed')", True),
    "a traceback at the end": Program("import part\n1 / 0", None),
    "warnings of unclosed files": Program(
        "import warnings; warnings.simplefilter('always')\nimport part\n"
        "q = part.Quiet(); q.file = open('part.py')\n",
        False,
        "_io",
    ),
    "a database in a cycle": Program(
        "import part, sqlite3\npart.base = sqlite3.connect('base.db')\n"
        "part.base.execute('pragma journal_mode=wal')\n"
        "part.base.execute('create table t (x)'); part.base.commit()\n",
        False,
        "sqlite3.Connection",
    ),
    "a temporary file": Program(
        "import part, tempfile, os\npart.file = tempfile.NamedTemporaryFile(dir='.', prefix='temporary')\n",
        False,
        "_io",
    ),
    "a temporary folder": Program(
        "import part, tempfile\npart.folder = tempfile.TemporaryDirectory(dir='.', prefix='temporary')\n",
        None,
    ),
    "an archive being written": Program(
        "import part, zipfile\n"
        "part.archive = zipfile.ZipFile('a.zip', 'w'); part.archive.writestr('a', 'text')\n",
        False,
    ),
    "a pool of threads": Program(
        "import part\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "part.pool = ThreadPoolExecutor(2); print(part.pool.submit(max, 1, 2).result())\n",
        None,
    ),
    "a socket": Program("import part, socket\npart.pair = socket.socketpair()\n", False, "socket"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_nobody_can_tell(tree: Tree, velo: Velo, name: str) -> None:
    """Output, errors, exit code and the files left behind are those of a plain run, learning and served."""
    program = PROGRAMS[name]
    tree.write({**PARTS, "app.py": program.text})
    given = {path.name for path in velo.cwd.iterdir()} | {"__pycache__"}

    def seen(run: Callable[..., Result]) -> tuple[Result, tuple[object, ...]]:
        result = run("app.py")
        made = [path for path in velo.cwd.iterdir() if path.name not in given]
        texts = {path.name: path.read_text() for path in made if path.suffix == ".txt"}
        # What is left of other files is not text; that it is left says enough.
        names = sorted(path.name[:9] for path in made)
        for path in made:
            path.unlink()
        return result, (masked(result.stdout), masked(result.stderr), result.code, texts, names)

    plain, learned, served = seen(velo.plain), seen(velo.learn), seen(velo.run)

    assert learned[1] == plain[1]
    assert served[1] == plain[1]
    assert served[0].errors == 0
    process = served[0].stats[-1]
    assert process["served"] >= 1
    if program.is_calm is not None and is_built():
        assert process["calm"] == program.is_calm, process
        assert program.is_calm or any(program.reason in reason for reason in process["reasons"]), process


def masked(text: str) -> str:
    """Without what differs between two plain runs."""
    return re.sub(r"0x[0-9a-f]+|temporary\w+", "…", text)


def is_built() -> bool:
    """Without a compiler there is nobody to look at what is alive, and programs end as they always do."""
    return any((CHECKOUT / "velo_import" / "_native").glob("core.*so"))

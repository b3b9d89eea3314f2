# SPDX-License-Identifier: Apache-2.0
"""Run as a script by any interpreter: answers the same questions again and again while folders change.

`asking.py PROBE MODULE TABLE IDENTITY FOLDER...`: with an empty TABLE as plain Python, otherwise with the
hook's answers in place, taken from that table. For each line on stdin the caches are dropped as the
documentation says and the probe is run; what it printed goes to stdout, then a line with two numbers: answers
that were known, and errors of the hook.
"""

import contextlib
import importlib
import io
import os
import sys
import traceback

END = "== end =="
CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def accelerated(module, table, identity):
    """Puts the hook's answers in place; gives its counts."""
    sys.path.insert(0, CHECKOUT)
    from velo_import.hook import answers, contents, mapping, metadata
    from velo_import.hook.counts import Counts

    del sys.path[0]
    for each in [each for each in sys.modules if each.partition(".")[0] == "velo_import"]:
        del sys.modules[each]  # Where programs run with Velo it is not there either.
    mapping.is_audited = lambda: False  # From 3.14 on only the native module can tell.

    class Telling(Counts):
        """Says which error it counts."""

        def __setattr__(self, name, value):
            if name == "errors" and value:
                traceback.print_exc()
            super().__setattr__(name, value)

    counts = Telling(False)
    late = {"answers": vars(answers), "contents": vars(contents)}
    metadata.accelerate(
        module, table, bytes.fromhex(identity), counts, mapping, None, lambda name, unheard=False: late[name]
    )
    return counts


def main():
    probe, name, table, identity, *folders = sys.argv[1:]
    sys.path += folders
    del sys.path[0]
    os.environ["PROBED"] = name
    with open(probe, encoding="utf-8") as file:
        code = compile(file.read(), probe, "exec")
    module = importlib.import_module(name)
    counts = accelerated(module, table, identity) if table else None
    for _ in sys.stdin:
        importlib.invalidate_caches()
        module.MetadataPathFinder().invalidate_caches()
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(code, {"__name__": "probe"})
        sys.stdout.write(said.getvalue().encode("unicode_escape").decode() + "\n")
        sys.stdout.write(f"{counts.metadata if counts else 0} {counts.errors if counts else 0}\n{END}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

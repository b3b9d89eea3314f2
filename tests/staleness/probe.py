# SPDX-License-Identifier: Apache-2.0
"""The program that looks: imports what it is told and prints all that can be seen of it, one line of JSON for
each line of JSON it reads.

Runs in the interpreter under test, plain or accelerated, and knows nothing of Velo but the name of its
finder. The surprise: a `fork` is answered by a child, so that each look begins where this process began, with
modules not yet imported and the import system as it was left then; `again` and `reload` happen in this
process, which grows old.
"""

import importlib
import json
import os
import sys
from importlib.machinery import SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any


def refuse(loader: "Any", path: str) -> "Any":
    """Without the times of a source, CPython compiles it: cached bytecode cannot make anything look old."""
    raise OSError


def described(module: "ModuleType") -> "dict[str, Any]":
    """Everything that must not depend on how the module came here."""
    spec: Any = module.__spec__
    path = getattr(module, "__path__", None)
    where = getattr(module, "where", None)
    return {
        "VALUE": getattr(module, "VALUE", None),
        "file": getattr(module, "__file__", None),
        "cached": getattr(module, "__cached__", None),
        "path": None if path is None else [type(path).__name__, *path],
        "package": module.__package__,
        "loader": type(spec.loader).__name__.replace("Velo", "").replace("SourceFileLoader", "SourceLoader"),
        "name": spec.name,
        "origin": spec.origin,
        "parent": spec.parent,
        "located": spec.has_location,
        "spec cached": spec.cached,
        "places": list(spec.submodule_search_locations or ()),
        "code": where.__code__.co_filename if where else None,
        "called": where() if where else None,
    }


def failed(error: BaseException) -> "dict[str, Any]":
    """An error as its reader sees it."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename != __file__ and "importlib" not in code.co_filename:
            frames.append([code.co_filename, trace.tb_lineno, code.co_name])
        trace = trace.tb_next
    return {"error": f"{type(error).__name__}: {error}", "at": getattr(error, "path", None), "frames": frames}


def look(names: "list[str]", reloads: bool) -> "dict[str, Any]":
    seen = {}
    for name in names:
        try:
            if not reloads:
                module = importlib.import_module(name)
            elif name in sys.modules:
                module = importlib.reload(sys.modules[name])
            else:
                continue
            seen[name] = described(module)
        except Exception as error:
            seen[name] = failed(error)
    return seen


def counted() -> "dict[str, int]":
    """What the hook has counted, if there is one."""
    for finder in sys.meta_path:
        if type(finder).__name__ == "VeloFinder":
            counts: Any = finder.counts  # type: ignore[attr-defined]
            return {"served": counts.served, "images": counts.images, "errors": counts.errors}
    return {}


def answer(order: "dict[str, Any]", own: "list[str]") -> str:
    """Carry out one order: `path` goes before the rest of `sys.path`."""
    sys.path[:] = [*order["path"], *own]
    names = order["names"]
    if order["forget"]:
        importlib.invalidate_caches()
    if order["truth"]:
        SourceFileLoader.path_stats = refuse  # type: ignore[method-assign]
    if order["do"] == "again":
        for name in names:
            sys.modules.pop(name, None)
    return json.dumps({"seen": look(names, order["do"] == "reload"), "counted": counted()})


def main() -> None:
    own = sys.path[:]
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "fork":
            child = os.fork()
            if child:
                status = os.waitpid(child, 0)[1]
                if status:
                    print(json.dumps({"died": status}), flush=True)
                continue
            print(answer(order, own), flush=True)
            os._exit(0)
        print(answer(order, own), flush=True)


main()

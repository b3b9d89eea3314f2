# SPDX-License-Identifier: Apache-2.0
"""`velo explain`, seen from inside: asks the installed finder about one module and says what it would do.

Runs in the user's interpreter, started by the command line for this purpose only.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHECKS = ("stat", "root", "none")


def installed_finder() -> "Any":
    """The finder on `sys.meta_path`, or None when the hook is not active in this process."""
    for finder in sys.meta_path:
        while type(finder).__name__ in ("LoggingFinder", "ShadowFinder"):
            finder = finder.finder  # type: ignore[attr-defined]
        if type(finder).__name__ == "VeloFinder":
            return finder
    return None


def explain(name: str) -> "dict[str, Any]":
    """Who serves module `name`, from which manifest and pack, under which check, or why not.

    Imports the parents of `name`, as any search for it does.
    """
    from importlib import import_module
    from importlib.util import find_spec

    answer: dict[str, Any] = {"module": name, "served_by": None, "reason": None, "origin": None}
    finder = installed_finder()
    parent = name.rpartition(".")[0]
    try:
        path = list(import_module(parent).__path__) if parent else None
        stock = find_spec(name)
    except Exception as error:
        answer["reason"] = f"python cannot import its parent: {type(error).__name__}: {error}"
        return answer
    if stock is None:
        answer["reason"] = "python does not find it either"
        return answer
    answer["origin"] = stock.origin
    answer["served_by"] = "python"
    if stock.origin in ("built-in", "frozen"):
        answer["reason"] = f"it is {stock.origin}: nothing to load"
        return answer
    if finder is None:
        answer["reason"] = "the hook is not active in this interpreter"
        return answer

    before = dict(finder.counts.reasons)
    spec = finder.find_spec(name, path)
    if spec is None:
        after = finder.counts.reasons
        answer["reason"] = next((r for r in after if after[r] != before.get(r, 0)), "error")
        return answer
    folder = getattr(spec.loader, "_folder", None)
    if folder is None:
        answer.update(served_by="velo", reason="native module: found by the manifest, loaded by the system")
        return answer
    head = folder.records[spec.loader._at]
    manifest = folder.manifest
    loaded = spec.loader.get_code(name) is not None and finder.counts.reasons == before
    root, check, *_ = manifest.root(manifest.block(root_bytes(folder.path)).root)
    answer.update(
        served_by="velo" if loaded else "python",
        manifest=manifest.path,
        pack=manifest.pack_name((head >> 32) - 1),
        root=root,
        check=CHECKS[check if finder.check is None else finder.check],
        bytes=folder.records[spec.loader._at + 2],
        reason=None,
    )
    if not loaded:
        after = finder.counts.reasons
        answer["reason"] = next((r for r in after if after[r] != before.get(r, 0)), "error")
    return answer


def root_bytes(path: str) -> bytes:
    """The path as the manifest spells it."""
    return path.encode(sys.getfilesystemencoding(), "surrogateescape")

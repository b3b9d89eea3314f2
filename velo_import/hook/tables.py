# SPDX-License-Identifier: Apache-2.0
"""The tables of an environment beside its manifests: which store's is used, and when the learner is told.

Loaded when the first module is served. Here is the one of images; that of patterns and source texts is opened
by remembered.py.
"""

import sys
from os import environ

import velo_import.hook.mapping as mapping
from velo_import.hook.mapping import Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from velo_import.hook.counts import Counts


def open_images(folders: "list[tuple[str, int]]", key: str, identity: bytes, counts: "Counts") -> "Any":
    """The images of this environment's code, or None.

    Args:
        folders: the stores, and whose files are believed in each.
    """
    jit: Any = getattr(sys, "_jit", None)
    # Either would have changed the code objects when they were made.
    if not has_columns() or (jit is not None and jit.is_enabled()):
        return None
    identity += b"\0" + sys.version.encode()

    def make(path: str, owner: int) -> "Any":
        return mapping.Images(path, owner, identity, type(make.__code__))

    return first_usable(folders, key, "images", make, counts)


def has_columns() -> bool:
    """Whether this interpreter keeps columns; it would have left them out of code that was made elsewhere."""
    heeded: Any = () if sys.flags.ignore_environment else environ
    return not ("no_debug_ranges" in sys._xoptions or "PYTHONNODEBUGRANGES" in heeded)


def first_usable(
    folders: "list[tuple[str, int]]",
    key: str,
    name: str,
    make: "Callable[[str, int], Any]",
    counts: "Counts",
) -> "Any":
    """What `make` makes of the first file of this name that it can use; without any the learner is told."""
    for home, owner in folders:
        try:
            return make(f"{home}/manifests/v1/{key}/{name}.table", owner)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, IndexError) as error:
            reason = type(error).__name__
        except Unusable as unusable:
            reason = str(unusable)
        counts.reasons[f"{name}: {reason}"] = 1
    counts.wanted[name] = ""
    return None

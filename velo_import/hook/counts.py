# SPDX-License-Identifier: Apache-2.0
"""What happened in this process: how many modules were served, and why the others were not."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from velo_import.hook.remembered import Memory


class Counts:
    """Plain counters, bumped on the hot path and read at exit.

    `wanted` maps modules that a learning run could serve next time to their files. They are kept by name
    because a module whose import failed is in no other list at exit. `settle` is called with each served
    module, and `calm` says that nothing was taken apart at exit (calm.py). `absent` holds names that no
    folder was known to offer. `inputs` are patterns and source texts that could be remembered
    (remembered.py), whose table `open_memory` opens at first use. `image_file` is what the native module
    takes images of code from; until the first module is served, what opens it. `load_loader` gives the native
    finder the class of its loaders (loader.py) for the first module that it finds. `accelerate_metadata` is
    what changes `importlib.metadata`, and `metadata` counts what it was answered (metadata.py). `compared`,
    `differed` and `differences` are about shadow mode (shadow.py), which sets `note_difference`.
    """

    __slots__ = (
        "absent",
        "accelerate_metadata",
        "calm",
        "compared",
        "deferred",
        "differed",
        "differences",
        "errors",
        "image_file",
        "images",
        "inputs",
        "install_us",
        "load_loader",
        "memory",
        "metadata",
        "native",
        "note_difference",
        "open_memory",
        "patterns",
        "reasons",
        "served",
        "settle",
        "sources",
        "stale",
        "verify",
        "wanted",
    )

    def __init__(self, verify: bool = False) -> None:
        self.verify = verify
        self.settle: Any = None
        self.calm = False
        self.install_us = 0
        self.note_difference: Any = None
        self.accelerate_metadata: Any = None
        self.load_loader: Any = None
        self.memory: Memory | None = None
        self.open_memory: Callable[[], Memory] | None = None
        self.image_file: Any = None
        self.reset()

    def reset(self) -> None:
        """Start again from zero: a forked child counts for itself."""
        self.served = self.native = self.deferred = self.stale = self.errors = 0
        self.reasons: dict[str, int] = {}
        self.wanted: dict[str, str] = {}
        self.absent: set[str] = set()
        self.images = self.patterns = self.sources = self.metadata = self.compared = self.differed = 0
        self.differences: list[str] = []
        self.inputs: dict[bytes, None] = {}

    def remembered(self) -> "Memory | None":
        """What is remembered, unless that is switched off."""
        if self.open_memory is not None:
            opener, self.open_memory = self.open_memory, None
            self.memory = opener()
        return self.memory

    def note_new(self, modules: "dict[str, Any]") -> None:
        """Want what was absent and has been imported all the same: its folder is no longer as we knew it."""
        for name in self.absent:
            spec: Any = vars(modules[name]).get("__spec__") if type(modules.get(name)) is type(sys) else None
            if getattr(spec, "has_location", False):
                self.wanted[name] = spec.origin

    def note_images(self) -> None:
        """Want images where more than a tenth of what was served had none, and nobody knows why."""
        absent = getattr(self.image_file, "absent", None)
        if absent is not None and absent() * 10 > self.served:
            # What one program wants in vain is nothing to another.
            self.wanted["images of " + " ".join(sys.orig_argv[:3])] = ""

    def defer(self, reason: str) -> None:
        """Count a module left to the next finder for a reason that no learning run would change."""
        self.deferred += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def defer_learnable(self, reason: str, name: str, origin: str) -> None:
        """Count a module left to the next finder that learning from file `origin` could serve next time."""
        self.wanted[name] = origin
        self.defer(reason)

    def defer_stale(self, reason: str, name: str, origin: str) -> None:
        """Count a module whose source or folder is no longer what the manifest describes."""
        self.stale += 1
        self.defer_learnable(reason, name, origin)

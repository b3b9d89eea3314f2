# SPDX-License-Identifier: Apache-2.0
"""A calmer garbage collector: fewer collections while modules load, none at exit where nobody could notice.

While modules load, nearly everything that is made stays. So with each served module what is young becomes old
at once, in constant time and without being walked (`gc.freeze` and `gc.unfreeze` in a row); thresholds,
callbacks and the switch stay as they are, and a server that was started by an import collects as always.

At exit CPython walks everything that is alive several times and takes it apart, to run the clean-up of what
hangs in cycles. Where nothing alive has a clean-up that does more than give memory back, it is left to the
operating system (`gc.freeze`). The look at what is alive is `remains.py`.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Calm:
    """What is done about the collector of this interpreter."""

    __slots__ = ("_frozen", "_gc", "settle")

    def __init__(self, gc: "Any") -> None:
        self._gc = gc
        # CPython 3.12 starts with a few hundred frozen objects of its own.
        self._frozen = gc.get_freeze_count()
        # CPython 3.14.0 to 3.14.4 collected in steps, and `freeze` walked all objects: no gain in that.
        self.settle = None if gc.get_threshold()[2] == 0 else self._settling()

    def _settling(self) -> "Callable[[], None]":
        gc = self._gc
        callbacks, count, most = gc.callbacks, gc.get_freeze_count, self._frozen
        is_enabled, freeze, unfreeze = gc.isenabled, gc.freeze, gc.unfreeze

        def settle() -> None:
            # Not where a program watches, or has frozen objects of its own: `unfreeze` would let them go.
            if is_enabled() and not callbacks and count() <= most:
                freeze()
                unfreeze()

        return settle

    def reason_to_collect(self) -> str:
        """Who would see that nothing was collected at exit; empty if nobody would."""
        gc = self._gc
        if gc.callbacks or gc.garbage or gc.get_debug() or gc.get_freeze_count() > self._frozen:
            return "the collector is watched"
        if sys.flags.dev_mode or hasattr(sys, "gettotalrefcount"):
            return "development mode"
        return "" if getattr(sys, "orig_argv", None) else "embedded"  # the process may go on

    def pause(self) -> bool:
        """Switch the collector off; whether it was on."""
        was_on: bool = self._gc.isenabled()
        self._gc.disable()
        return was_on

    def end(self, leave: bool, was_on: bool) -> None:
        """Let the collector find nothing from now on, or go on as it was."""
        if leave:
            self._gc.freeze()
        if was_on:
            self._gc.enable()

# SPDX-License-Identifier: Apache-2.0
"""From folders to a manifest: scan, plan, apply; and learning, the same for what one program imported.

Reading order: interpreter (whose folders), selection and secrets (which files), scan (what is there), plan
(what has to be done, pure), content (files into the store), links (what links say), bytecode and worker (how
source becomes code), codes (where code comes from, and its packs), publish, apply (all of it, for a whole
tree), learning (all of it, for the folders of one program).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes 6 ms, which an ingest with nothing to do need not pay
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from velo_import.store.layout import Store

    from .apply import IngestSummary, Progress
    from .learning import LearnSummary


def ingest(
    target: Path,
    *,
    store: Store,
    python: str | None = None,
    output: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    jobs: int | None = None,
    optimisation: int = 0,
    force: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> IngestSummary:
    """Ingest a folder ahead of time; see apply.py."""
    from . import apply  # Loads the store: those who only want to probe an interpreter should not pay for it.

    return apply.ingest(
        target,
        store=store,
        python=python,
        output=output,
        progress=progress,
        jobs=jobs,
        optimisation=optimisation,
        force=force,
        include=include,
        exclude=exclude,
    )


def learn(notes: bytes, store: Store) -> LearnSummary:
    """Publish what one program imported; see learning.py."""
    from . import learning

    return learning.learn(notes, store)

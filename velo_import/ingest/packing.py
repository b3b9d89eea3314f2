# SPDX-License-Identifier: Apache-2.0
"""`pack`: the bytecode of one start in one pack, in exactly the order in which it was asked for.

Knows the order of the steps; the pack itself is startup.py's. The surprise: learning is done twice. First so
that there is bytecode to copy, and again to publish the new pack as it publishes anything.
"""

from __future__ import annotations

from typing import NamedTuple

from velo_import.errors import VeloError
from velo_import.host.locks import exclusive
from velo_import.store import leases
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store

from . import startup
from .learning import learn
from .notes import parse_notes

_PATIENCE = 60.0


class PackSummary(NamedTuple):
    """What a start asked for, and how much of it is in its pack."""

    key: str
    prefix: str
    command: str
    pack: str
    bytes: int
    modules: int  # from Python sources
    packed: int  # of those, found in packs made for a start
    mapped: int  # files that were mapped: libraries and native modules


def pack_start(notes: bytes, store: Store) -> PackSummary:
    """Write a pack for the start that these notes tell of, and publish it.

    Raises:
        VeloError: the notes or the store cannot be used, or none of its modules can be served.
    """
    parsed = parse_notes(notes)
    if not parsed.starts:
        raise VeloError("the program did not say how it was started", hint="run `velo doctor`")
    start = parsed.starts[0]
    with leases.shared(store):
        learn(notes, store)
        with exclusive(store.run / f"{parsed.key}.lock", wait=_PATIENCE):
            known = startup.known_to(store, parsed.key)
            before = [each.pack for each in startup.kept(store, parsed.key) if each.start[:2] == start[:2]]
            sealed = startup.write_pack(start, known, store, parsed.build, replaced="".join(before))
            packed = startup.Kept(start, sealed.id if sealed is not None else "")
            if sealed is not None:
                with Catalog.open(store) as catalog, catalog.write() as writing:
                    writing.put_pack(sealed)
            startup.keep(store, parsed.key, [packed])
        learn(notes, store)
    hits = startup.hits(startup.known_to(store, parsed.key), packed)
    if not hits.packed:
        raise VeloError(
            "none of the program's modules can be served", hint="run `velo doctor`, or `velo explain`"
        )
    return PackSummary(
        key=parsed.key,
        prefix=parsed.prefix,
        command=packed.command,
        pack=packed.pack,
        bytes=sealed.stamp.size if sealed is not None else 0,
        modules=hits.modules,
        packed=hits.packed,
        mapped=len(start.mapped),
    )

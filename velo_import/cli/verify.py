# SPDX-License-Identifier: Apache-2.0
"""`velo verify`: the store is read again, and what is damaged is put aside and refilled. Shows what
store/verify.py found and what store/repair.py did about it.
"""

from __future__ import annotations

import time
from typing import Any

import click

from ..errors import StoreCorrupt
from ..host.processes import available_cores
from ..store import leases
from ..store.catalog import Catalog
from ..store.repair import Outcome, repair
from ..store.verify import BLOB, MANIFEST, PACK, Damage, Verification, verify
from . import render
from .common import json_flag, store_to_change, wait_option

SHOWN = 5  # affected paths named one by one; --json has them all


def _share(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """`1%`, `0.5%` or `1`: a part of a hundred."""
    try:
        share = float(value.removesuffix("%"))
    except ValueError:
        share = -1.0
    if not 0 <= share <= 100:
        raise click.BadParameter(f"{value!r} is no part of a hundred, such as 5%", ctx, param)
    return share


@click.command("verify")
@click.option(
    "--sample",
    callback=_share,
    default="100%",
    metavar="N%",
    help="Read what has changed since it was verified, and N % of the rest, what was verified longest ago.",
)
@click.option("--dry-run", is_flag=True, help="Say what is damaged and leave it there.")
@wait_option
@json_flag
def command(sample: float, dry_run: bool, wait: float, as_json: bool) -> int:
    """Read the store again and compare it with its names and checksums.

    What is damaged is moved to `quarantine/` in the store, so that it counts as missing, and comes back from
    another copy: in the store, or in the tree it was ingested from. Exit code 12 when something could not be
    brought back.
    """
    store = store_to_change()
    began = time.perf_counter()
    outcomes: list[Outcome] = []
    with render.progress("verify") as show:
        with Catalog.open(store) as catalog:
            found = verify(
                store,
                catalog,
                sample=sample,
                jobs=available_cores(),
                progress=lambda done, total: show("verify", done, total),
            )
        if (found.damaged or found.outdated) and not dry_run and not store.readonly:
            # Opened again: until now somebody might have made another catalogue.
            with leases.maintenance(store, wait=wait), Catalog.open(store) as catalog:
                outcomes = repair(
                    store, catalog, found, progress=lambda done, total: show("repair", done, total), wait=wait
                )
    seconds = time.perf_counter() - began
    if as_json:
        render.data({"home": str(store.home), **document(found, outcomes), "seconds": seconds})
    else:
        _show(found, outcomes, seconds)
    healed = {outcome.damage for outcome in outcomes if outcome.is_healed}
    return 0 if healed.issuperset(found.damaged) else StoreCorrupt.exit_code


def document(found: Verification, outcomes: list[Outcome]) -> dict[str, Any]:
    """All that was found and done, for programs."""
    done = {outcome.damage: outcome for outcome in outcomes}
    return {
        "sound": found.sound,
        "skipped": found.skipped,
        "bytes": found.bytes,
        "damaged": [{**_damage(damage), **_outcome(done.get(damage))} for damage in found.damaged],
        "left": [_damage(damage) for damage in found.left],
        "outdated": [subject.name for subject in found.outdated],
    }


def _damage(damage: Damage) -> dict[str, Any]:
    subject, reason = damage
    return {"kind": subject.kind, "name": subject.name, "path": subject.path, "reason": reason}


def _outcome(outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {"quarantine": None, "healed": False, "restored": False}
    return {
        "quarantine": outcome.quarantine,
        "healed": outcome.is_healed,
        "restored": outcome.restored,
        "moved": outcome.moved,
        "forgotten": outcome.forgotten,
        "lost": [f"blob:{digest.hex()}" for digest in outcome.lost],
        "affected": outcome.affected,
    }


def _show(found: Verification, outcomes: list[Outcome], seconds: float) -> None:
    counted = ", ".join(
        f"{count} {kind}{'es' if kind.endswith('x') else 's'}" for kind, count in found.sound.items() if count
    )
    speed = render.size(found.bytes / seconds)
    render.pairs(
        {
            "sound": counted or "nothing",
            "skipped": f"{found.skipped} files, verified before and unchanged since",
            "damaged": f"{len(found.damaged)} files",
            "read": f"{render.size(found.bytes)} in {seconds:.2f} s, {speed}/s",
        }
    )
    done = {outcome.damage: outcome for outcome in outcomes}
    for damage in found.damaged:
        outcome = done.get(damage)
        name = f"{damage.subject.kind} {damage.subject.name}"
        if outcome is None:
            render.finding("fail", name, damage.reason, "`velo verify` repairs it")
            continue
        mark = "warn" if outcome.is_healed else "fail"
        render.finding(mark, name, f"{damage.reason}; {_fate(outcome)}", _advice(outcome))
        for path in outcome.affected[:SHOWN]:
            render.line(f"      affected: {path}")
        if len(outcome.affected) > SHOWN:
            render.line(f"      affected: {len(outcome.affected) - SHOWN} more")
    for damage in found.left:
        name = f"{damage.subject.kind} {damage.subject.name}"
        render.finding("warn", name, f"left alone: {damage.reason}", "")


def _fate(outcome: Outcome) -> str:
    if outcome.restored:
        return "restored from another copy"
    parts = []
    if outcome.moved:
        parts.append(f"{outcome.moved} payloads moved to another pack")
    if outcome.forgotten:
        parts.append(f"{outcome.forgotten} will be compiled again")
    if outcome.lost:
        parts.append(f"{len(outcome.lost)} lost")
    return ", ".join([*parts, f"the file is in {outcome.quarantine}"])


def _advice(outcome: Outcome) -> str:
    if outcome.is_healed:
        return ""
    if outcome.damage.subject.kind in (PACK, BLOB):
        return "`velo ingest` stores it again where its source comes back"
    if outcome.damage.subject.kind == MANIFEST:
        return "run `velo ingest` for that environment, or let the next `velo run` learn it again"
    return "what it protected is not protected now: write that manifest again with `velo ingest -o`"

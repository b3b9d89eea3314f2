# SPDX-License-Identifier: Apache-2.0
"""`velo gc`: what nobody needs, what is kept and for whom. Shows what store/gc.py found; removes only with
`--yes`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from ..config.settings import Settings
from ..config.units import parse_duration, parse_size
from ..errors import VeloError
from ..store.gc import collect, preview
from ..store.gcplan import Report, RootReport, Wish
from ..store.layout import Store
from ..store.roots import ENVIRONMENT
from ..store.survey import Amount
from . import render
from .common import json_flag, settings, store_to_change

RETRY_SECONDS = 600
SHORT_PATIENCE = 1.0
SHOWN = 5  # damaged packs named one by one; --json has them all


def _amount(parse: Callable[[str], float]) -> Callable[..., float | None]:
    """Reads an option that takes an amount with a unit."""

    def read(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), context, option) from None

    return read


@click.command("gc")
@click.option("--yes", is_flag=True, help="Remove it; without this, only say what would go.")
@click.option(
    "--unused-for",
    callback=_amount(parse_duration),
    metavar="TIME",
    help="Give up environments not used for so long, like 30d.",
)
@click.option(
    "--max-size",
    callback=_amount(parse_size),
    metavar="SIZE",
    help="Give up environments, the least recently used first, until the store is no larger, like 20GB; "
    "default: store.max_size.",
)
@click.option(
    "--forget",
    multiple=True,
    metavar="WHAT",
    help="Give up an environment (its folder or key), a manifest written with -o, or a tree that is kept. "
    "Repeatable.",
)
@click.option(
    "--grace",
    callback=_amount(parse_duration),
    metavar="TIME",
    default="1h",
    show_default=True,
    help="Keep what is younger, needed or not.",
)
@json_flag
def command(
    yes: bool,
    unused_for: float | None,
    max_size: float | None,
    forget: tuple[str, ...],
    grace: float,
    as_json: bool,
) -> None:
    """Remove what no environment needs any more, and say what is kept and for whom.

    A dry run unless --yes is given. Safe beside running programs, ingests and learners: it waits for those at
    work, and where they follow each other without end, it keeps new ones waiting for its turn.
    """
    store = store_to_change()
    limit = settings().max_size if max_size is None else int(max_size)
    wish = Wish(grace, unused_for, limit, forget)
    with render.progress("gc") as show:
        report = (collect if yes else preview)(store, wish, progress=show)
    if as_json:
        render.data({"home": str(store.home), "removed": yes, **as_document(report)})
        return
    _show(report, yes)


def keep_within_limit(store: Store, chosen: Settings) -> int:
    """Collect if the store is larger than the user allows; gives the bytes that went.

    For those that made it grow, so whatever stands in the way is left to the next one, or to `velo gc`, which
    says it. A store that cannot be made small enough is not looked at again for some minutes.
    """
    limit = chosen.max_size
    tried = store.run / "limit.tried"
    if limit is None or sum(store.size_report().values()) <= limit:
        return 0
    with suppress(OSError):
        if time.time() - tried.stat().st_mtime < RETRY_SECONDS:
            return 0
    try:
        report = collect(store, Wish(max_size=limit), patience=SHORT_PATIENCE)
    except VeloError:
        return 0
    if report.over:
        tried.touch()
    return report.freed


def as_document(report: Report) -> dict[str, Any]:
    """The report for scripts; sizes in bytes, times in seconds since the epoch."""
    return {
        "roots": [
            {**root._asdict(), "needs": vars(root.needs), "alone": vars(root.alone)} for root in report.roots
        ],
        **{name: vars(getattr(report, name)) for name in AMOUNTS},
        "leftovers": report.leftovers,
        "aside_kept": vars(report.aside_kept),
        "young": vars(report.young),
        "unused_in_packs": report.unused_in_packs,
        "damaged": [str(path) for path in report.damaged],
        "unknown": [str(path) for path in report.unknown],
        "size_before": report.size_before,
        "max_size": report.max_size,
        "freed": report.freed,
        "over": report.over,
        "trouble": report.trouble,
    }


# What goes, by the report's names and by ours.
AMOUNTS = {
    "manifests": "manifests given up",
    "packs": "packs that nothing needs",
    "loose": "loose blobs that nothing needs",
    "rewritten": "packs mostly unused, written again",
    "aside": "put aside as damaged, long ago",
}


def _show(report: Report, removed: bool) -> None:
    render.table(
        ("needed by", "last used", "needs", "alone", ""),
        [_row(root) for root in report.roots],
        right=(1, 2, 3),
    )
    rows = [
        (text, str(amount.count), render.size(amount.bytes))
        for name, text in AMOUNTS.items()
        if (amount := getattr(report, name)).count
    ]
    if report.leftovers:
        rows.append(("left over, in use by nobody", str(report.leftovers), ""))
    if rows:
        render.line()
        total = Amount(sum(int(row[1]) for row in rows), report.freed)
        rows.append(("total", str(total.count), render.size(total.bytes)))
        render.table(("removed" if removed else "would go", "files", "size"), rows, right=(1, 2))
    else:
        render.line(
            "nothing to remove" if report.roots else "nothing in the store needs anything, or could go"
        )
    for text in _kept(report):
        render.line(text)
    _warn(report)
    if rows and not removed:
        render.note("this was a dry run\nhint: `velo gc --yes` removes it")


def _row(root: RootReport) -> tuple[str, ...]:
    fate = f"goes: {root.reason}"
    if not root.reason:
        gone = "" if root.exists else "its folder is gone"
        fate = ", ".join(part for part in ("stays", root.kept, gone) if part)
    used = render.age(time.time() - root.last_use) if root.kind == ENVIRONMENT else "-"
    return (
        root.path or root.name,
        used,
        render.size(root.needs.bytes),
        render.size(root.alone.bytes),
        fate,
    )


def _kept(report: Report) -> list[str]:
    """What stays although nobody needs it, and why."""
    kept = []
    if report.young.count:
        size = render.size(report.young.bytes)
        kept.append(f"stays for now: {report.young.count} new files that nothing needs yet ({size})")
    if report.unused_in_packs:
        kept.append(f"stays: {render.size(report.unused_in_packs)} not needed, in packs that are")
    if report.aside_kept.count:
        size = render.size(report.aside_kept.bytes)
        kept.append(f"stays for now: {report.aside_kept.count} damaged files put aside ({size})")
    return kept


def _warn(report: Report) -> None:
    for path in report.damaged[:SHOWN]:
        render.note(f"warning: {path} is damaged and stays\nhint: run `velo verify`")
    for path in report.unknown[:SHOWN]:
        render.note(f"warning: {path} was written by a later Velo and stays")
    for message in report.trouble:
        render.note(f"warning: {message}")
    if any(not root.exists and not root.reason for root in report.roots):
        render.note("hint: `velo gc --forget FOLDER` gives up what is gone for good")
    if report.over:
        render.note(
            f"warning: the store stays {render.size(report.over)} over its limit"
            "\nhint: what is left is in use, new, or kept by --output; raise store.max_size"
        )

# SPDX-License-Identifier: Apache-2.0
"""`velo manifest tree`, `diff` and `export`: what a folder held, compared, and made into files again."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ..format import tree as t
from ..host.materialise import Way
from ..host.processes import available_cores
from ..store.export import export
from ..store.kept import keep
from . import render
from .common import json_flag
from .meant import WHICH, Meant, Trees, folder_option, is_one_folder

KINDS = ("added", "removed", "changed")


@click.command("tree")
@click.argument("which", metavar=f"[{WHICH}]", required=False)
@folder_option
@click.option("--times", is_flag=True, help="Count the mtimes of files as well.")
@click.option("--keep", "is_kept", is_flag=True, help="Keep the tree and its content in the store.")
@json_flag
def tree_(which: str | None, folder: str | None, times: bool, is_kept: bool, as_json: bool) -> None:
    """The id of a folder: equal folders have equal ids, on every machine.

    A folder is meant as it was ingested; with disk: before it, as an ingest would find it now. A tree that is
    kept can be compared and exported by its id after the folder has changed or gone.
    """
    with ExitStack() as stack:
        trees = Trees(stack, writable=is_kept, relying=is_kept)
        meant = trees.meant(which, folder, times=times)
        totals = t.measure(meant.grown.tree)
        if is_kept:
            keep(meant.grown, trees.catalog, trees.reader)
    if as_json:
        counts = {"folders": totals.folders - 1, "files": totals.files, "links": totals.links}
        render.data({**_described(meant), **counts, "bytes": totals.bytes, "kept": is_kept})
        return
    render.line(f"tree:{meant.grown.tree.root.hex()}")
    _note_gaps(meant)


@click.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@folder_option
@click.option("--times", is_flag=True, help="Compare the mtimes of files as well.")
@json_flag
def diff(a: str, b: str, folder: str | None, times: bool, as_json: bool) -> int:
    """What has to change in A to get B. Exit code 1 when they differ.

    A and B are manifests (a file, a key, or a folder as it was ingested), trees that are kept (tree:ID), or
    folders as an ingest would find them now (disk:FOLDER).
    """
    with ExitStack() as stack:
        trees = Trees(stack)
        folders = [None if is_one_folder(each) else folder for each in (a, b)]
        sides = [trees.meant(each, place, times=times) for each, place in zip((a, b), folders, strict=True)]
        before, after = (each.grown.tree for each in sides)
        for tree in (before, after):
            t.measure(tree)
        changes = list(t.diff(before, after))
        counts = Counter(map(_kind_of, changes))
        if as_json:
            documents = [_document(change) for change in changes]
            described = {"a": _described(sides[0]), "b": _described(sides[1])}
            render.data({**described, **{kind: counts[kind] for kind in KINDS}, "changes": documents})
            return int(bool(changes))
        rows = [
            (_kind_of(each), _shown(each.path), _cell(each.before, trees), _cell(each.after, trees))
            for each in changes
        ]
    render.table(("change", "path", "before", "after"), rows)
    for each in sides:
        _note_gaps(each)
    render.note(", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) or "no differences")
    return int(bool(changes))


@click.command("export")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--manifest", "which", metavar=WHICH, help="Default: the only one in the store.")
@folder_option
@click.option(
    "--link-mode",
    type=click.Choice([way.value for way in Way]),
    help="How large files get there. clone (default): blocks are shared where the file system can, and "
    "copied elsewhere. hardlink: one with the store's own files, and read-only.",
)
@json_flag
def export_(
    target: Path, which: str | None, folder: str | None, link_mode: str | None, as_json: bool
) -> None:
    """Make the files of a manifest or a tree again, in a folder that is new or empty.

    Every byte is verified, and on any failure nothing is left. Links are made as they were written, wherever
    they lead. As with any copy, nothing waits for the disk: after a power cut, export again.
    """
    with ExitStack() as stack:
        # Executables that are hard links need an inode of their own, which is made when it is first needed.
        trees = Trees(stack, writable=link_mode == Way.HARDLINK.value, relying=True)
        meant = trees.meant(which, folder, times=True)
        with render.progress("export") as show:
            made = export(
                meant.grown.tree,
                target,
                trees.store,
                trees.reader,
                way=Way(link_mode or Way.CLONE.value),
                jobs=available_cores(),
                advance=lambda done, total: show("export", done, total),
            )
    if as_json:
        render.data({"target": str(target), **_described(meant), **made._asdict()})
        return
    ways = (
        (made.hardlinked, "hard links"),
        (made.cloned, "clones"),
        (made.copied, "copies"),
        (made.written, "out of packs"),
    )
    told = ", ".join(f"{count} {what}" for count, what in ways if count)
    render.pairs(
        {
            "target": str(target),
            "files": f"{made.files} in {made.folders} folders" + (f" ({told})" if told else ""),
            "links": str(made.links),
            "content": render.size(made.bytes),
            "time": f"{made.seconds:.2f} s",
        }
    )
    _note_gaps(meant)
    if link_mode == Way.HARDLINK.value and made.cloned + made.copied:
        render.note(
            f"{made.cloned + made.copied} large files could not be hard links: is {target} on another disk?"
        )
    if link_mode == Way.CLONE.value and made.copied:
        render.note(f"{made.copied} large files were copied: the file system cannot clone them")


def _kind_of(change: t.Change) -> str:
    return "added" if change.before is None else "removed" if change.after is None else "changed"


def _described(meant: Meant) -> dict[str, Any]:
    return {
        "manifest": meant.which,
        "folder": meant.folder,
        "tree": f"tree:{meant.grown.tree.root.hex()}",
        "left_out": [_shown(os.fsencode(path)) for path in meant.grown.left_out],
        "missing": meant.missing,
    }


def _document(change: t.Change) -> dict[str, Any]:
    return {
        "path": _shown(change.path),
        "change": _kind_of(change),
        "before": _entry_document(change.before),
        "after": _entry_document(change.after),
    }


def _entry_document(entry: t.Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    document: dict[str, Any] = {"kind": t.KIND_NAMES[entry.kind]}
    if entry.kind == t.LINK:
        document["target"] = _shown(entry.target)
    elif entry.kind != t.FOLDER:
        document |= {"digest": f"blob:{entry.digest.hex()}", "size": entry.size, "mtime_ns": entry.mtime_ns}
    return document


def _cell(entry: t.Entry | None, trees: Trees) -> str:
    if entry is None:
        return "-"
    if entry.kind == t.LINK:
        return f"-> {_shown(entry.target)}"
    if entry.kind == t.FOLDER:
        return "empty folder"
    parts = [f"blob:{trees.name(entry.digest)}", render.size(entry.size)]
    if entry.kind == t.EXECUTABLE:
        parts.append("executable")
    if entry.mtime_ns is not None:
        parts.append(f"{entry.mtime_ns / 1e9:.3f}")
    return ", ".join(parts)


def _note_gaps(meant: Meant) -> None:
    if meant.missing:
        render.note(
            f"the content of {meant.missing} files of {meant.which} is not in the store: the folder was only "
            f"looked through for modules, or content was lost\nhint: run `velo ingest {meant.folder}`"
        )
    left_out = meant.grown.left_out
    if left_out:
        first = _shown(os.fsencode(left_out[0]))
        render.note(
            f"{len(left_out)} files of {meant.which} have no recorded content, {first} the first of them"
        )


def _shown(name: bytes) -> str:
    """A name as one line of text: it comes from anywhere, and must not steer a terminal."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)

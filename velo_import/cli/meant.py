# SPDX-License-Identifier: Apache-2.0
"""Which tree a user means: one of a manifest, one that is kept in the store, or a folder as it is now.

Opens store and catalogue only when they are asked for: comparing two manifest files needs neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import click

from ..errors import StoreCorrupt, UsageFault, VeloError
from ..format import tree as t
from ..format.manifest import DIRECTORY, SITE, Manifest
from ..ingest.apply import kind_of
from ..ingest.trees import tree_of_folder
from ..store import leases, names
from ..store.catalog import Catalog
from ..store.kept import content_of, load
from ..store.layout import Store
from ..store.reading import Reader
from ..store.trees import Grown, own_folders, tree_of_manifest
from . import render
from .common import open_store, refuse_readonly, settings, store_to_fill
from .manifests import ManifestFile, published, read_manifest, readable_prefix

DISK = "disk:"
WHICH = "FILE|KEY|FOLDER|tree:ID|disk:FOLDER"
INGEST = "make one with `velo ingest`, or see `velo manifest list`"


class Meant(NamedTuple):
    """The tree that a user means."""

    which: str
    folder: str  # Where its files were; empty for a tree by id.
    grown: Grown
    missing: int = 0  # Files whose content the store does not have, as far as it was asked.


def is_one_folder(which: str) -> bool:
    """Whether there is nothing to choose: a kept tree, or a folder on disk."""
    return which.startswith(DISK) or names.is_name(which, names.TREE)


def folder_option(command: click.decorators.FC) -> click.decorators.FC:
    """Adds `--folder FOLDER`."""
    text = "Which folder of the manifest; default: the one that was ingested."
    return click.option("--folder", metavar="FOLDER", help=text)(command)


class Trees:
    """Finds the trees that are meant. `writable` for a command that adds to the store, `relying` for one that
    needs what it found until it is done.
    """

    def __init__(self, stack: ExitStack, *, writable: bool = False, relying: bool = False) -> None:
        self._stack = stack
        self._writable = writable
        self._relying = relying

    @property
    def store(self) -> Store:
        return self.catalog.store

    @cached_property
    def catalog(self) -> Catalog:
        if self._writable:
            refuse_readonly()
        store = open_store()  # Where there is none, none is made.
        if self._writable:
            store = store_to_fill(settings().home)
        if self._relying:  # First: what the catalogue says is true for as long as the lease is held.
            self._stack.enter_context(leases.shared(store))
        return self._stack.enter_context(Catalog.open(store))

    @cached_property
    def reader(self) -> Reader:
        return self._stack.enter_context(Reader(self.catalog))

    def meant(self, which: str | None, folder: str | None, *, times: bool) -> Meant:
        """The tree that these words mean."""
        if which and folder and is_one_folder(which):
            raise UsageFault(f"{which} is one folder", hint="--folder chooses among those of a manifest")
        if which and which.startswith(DISK):
            place = os.path.abspath(which[len(DISK) :])
            with render.progress(f"reading {place}"):
                return Meant(which, place, tree_of_folder(place, kind_of(place), times=times))
        if which and names.is_name(which, names.TREE):
            tree = load(names.resolve(which, names.TREE, self._trees_with), self.reader)
            encoded = {digest: t.encode_node(node) for digest, node in tree.nodes.items()}
            return Meant(which, "", Grown(tree, encoded, []))
        path, manifest, found = _manifest_meant(which)
        place = os.path.abspath(folder) if folder else found or _only_folder(manifest, path)
        if not _describes(manifest, place):
            known = ", ".join(own_folders(manifest))
            raise UsageFault(f"{path} does not describe {place}", hint=f"it describes {known or 'no folder'}")
        grown = tree_of_manifest(manifest, place, times=times)
        # A search path is looked through for its modules: such a folder is described, and not as a whole.
        missing = self._reader.missing(content_of(grown.tree)) if self._reader else ()
        return Meant(which or str(path), place, grown, len(missing))

    def name(self, digest: bytes) -> str:
        """A digest in as few digits as this store needs; in full where there is no store to ask."""
        return names.shortened(digest, self.catalog.digests_with) if self._reader else digest.hex()

    @cached_property
    def _reader(self) -> Reader | None:
        """The reader if there is a store; for what is worth knowing but not worth failing."""
        try:
            return self.reader
        except VeloError:
            return None

    def _trees_with(self, digits: str) -> Iterator[bytes]:
        for digest in self.catalog.digests_with(digits):
            with suppress(StoreCorrupt):
                if self.reader.size(digest) <= t.NODE_LIMIT:
                    t.decode_node(self.reader.read(digest))
                    yield digest


def _manifest_meant(which: str | None) -> tuple[Path, Manifest, str]:
    """The manifest that a file, a key or a folder stands for; and the folder, if it was one."""
    if which and os.path.isfile(which):
        return Path(which), read_manifest(Path(which)), ""
    files = sorted(published(open_store()), key=attrgetter("updated"), reverse=True)
    if not which:
        return _only_manifest(files)
    by_key = [file for file in files if file.key == which]
    if by_key:
        return *_ingested(by_key, which), ""
    place = os.path.abspath(which)
    places = (place, os.path.realpath(place))
    by_prefix = [file for file in files if readable_prefix(file.path) in places]
    if by_prefix:
        return *_ingested(by_prefix, which), place
    for file in files:
        with suppress(StoreCorrupt):
            manifest = read_manifest(file.path)
            if file.layer == "base" and _describes(manifest, place):
                return file.path, manifest, place
    raise UsageFault(f"no manifest describes {which}", hint=INGEST)


def _only_manifest(files: list[ManifestFile]) -> tuple[Path, Manifest, str]:
    ingested = [file for file in files if file.layer == "base"]
    if len(ingested) == 1:
        return ingested[0].path, read_manifest(ingested[0].path), ""
    if not ingested:
        raise UsageFault("nothing was ingested yet", hint=INGEST)
    raise UsageFault(f"there are {len(ingested)} manifests", hint="name one of `velo manifest list`")


def _ingested(files: list[ManifestFile], which: str) -> tuple[Path, Manifest]:
    for file in files:
        if file.layer == "base":
            return file.path, read_manifest(file.path)
    raise UsageFault(
        f"{which} was learned, not ingested: its manifest holds what programs imported and no whole folder",
        hint="run `velo ingest` on it",
    )


def _only_folder(manifest: Manifest, path: Path) -> str:
    """What was ingested: the search path of the interpreter is in every manifest and counts only alone."""
    folders = own_folders(manifest)
    sites = {root.path for root in manifest.roots if root.kind == SITE}
    found = [folder for folder in folders if folder not in sites] or folders
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageFault(f"{path} describes no folder", hint=INGEST)
    raise UsageFault(
        f"{path} describes {len(found)} folders", hint=f"choose with --folder: {', '.join(found)}"
    )


def _describes(manifest: Manifest, folder: str) -> bool:
    return any(record.path == folder and record.flags & DIRECTORY for record in manifest.files)

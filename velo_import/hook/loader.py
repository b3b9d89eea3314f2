# SPDX-License-Identifier: Apache-2.0
"""The loader: CPython's `SourceFileLoader`, except that `get_code` may answer from a mapped pack.

Everything else about it is inherited, so a module looks as it always does. The surprise: this file is
compiled under importlib's own file name, because CPython cuts frames of that name out of tracebacks.
"""

from _frozen_importlib_external import SourceFileLoader
from _imp import source_hash
from posix import stat

import velo_import.hook.mapping as mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _frozen_importlib import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

    from velo_import.hook.counts import Counts
    from velo_import.hook.finder import Folder

HASH_KEY = 0x56454C4F
# Served with a question to what is remembered, or looked at by it (remembered.py).
REMEMBERED = frozenset(
    ("re._compiler", "re._parser", "re._constants", "re._casefix", "dataclasses", "collections")
)

# Asked for distributions, which are in the index as well (metadata.py).
METADATA = frozenset(("importlib.metadata", "importlib_metadata"))


def is_content_unchanged(path: str, records: memoryview, at: int) -> bool:
    """Whether a file of the size that was compiled still has that content.

    Asked only when size agrees and a time or the inode does not: installers that hard-link do that to
    files they never edit. SipHash is enough against accident, and who can edit the file needs no collision.
    """
    with open(path, "rb", 0) as file:
        source = file.read()
    return int.from_bytes(source_hash(HASH_KEY, source), "little") == records[at + 7]


def is_bytecode_whole(pack: "Any", records: memoryview, at: int) -> bool:
    """Whether the bytes in the pack are those that were stored."""
    view = memoryview(pack)[records[at + 1] : records[at + 1] + records[at + 2]]
    return int.from_bytes(source_hash(HASH_KEY, view), "little") == records[at + 8]


class VeloSourceLoader(SourceFileLoader):
    """Loads the module whose record is at word `_at` of `_folder`; pickles as the loader it stands for."""

    __slots__ = ("_at", "_cached", "_counts", "_folder", "_recall")
    _folder: "Folder"
    _at: int
    _counts: "Counts"
    _cached: str

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """None, as CPython's: a plain module object."""
        if self.name in METADATA and self._counts.accelerate_metadata is not None:
            self.__class__ = MetadataLoader
        return None

    def get_code(self, fullname: str) -> "CodeType | None":
        """The module's code: from the pack while the source is unchanged, otherwise CPython's way."""
        code = None
        is_edited = False
        try:
            code = None if fullname in REMEMBERED else mapping.serve(self, fullname)
            code = code or self._served(fullname)
            is_edited = code is None and fullname == self.name and self._is_edited_in_its_second()
        except Exception:
            self._counts.errors += 1
        if is_edited:
            edited: CodeType = self.source_to_code(self.get_data(self.path), self.path)
            return edited
        return super().get_code(fullname) if code is None else code

    def _is_edited_in_its_second(self) -> bool:
        """Whether the source was edited within the second of the one we know, at equal size.

        A `.pyc` of the old source would then pass CPython's check, which sees whole seconds.
        """
        records = self._folder.records
        at = self._at
        if mapping.is_unchanged(self.path, records[at + 6], *records[at + 3 : at + 6]) is not None:
            return False
        second = records[at + 3] // 1_000_000_000
        return stat(self.path).st_mtime_ns // 1_000_000_000 == second and not is_content_unchanged(
            self.path, records, at
        )

    def _served(self, fullname: str) -> "CodeType | None":
        path = self.path
        folder = self._folder
        at = self._at
        records = folder.records
        counts = self._counts
        if fullname != self.name:
            return None
        pack = folder.manifest.pack((records[at] >> 32) - 1)
        if pack is None:
            counts.defer_learnable("pack missing", fullname, path)
            return None
        if counts.verify and not is_bytecode_whole(pack, records, at):
            counts.errors += 1
            counts.defer_learnable("bytecode damaged", fullname, path)
            return None
        memory = counts.remembered() if fullname in REMEMBERED else None
        if memory is not None:
            pack, records, at = memory.adapted(self, pack, records, at)
        if counts.settle is not None:
            counts.settle()
        try:
            code = mapping.load_code(path, self._cached, records, at, folder.asks, pack)
            if code is None and is_content_unchanged(path, records, at):
                # Served, and learned anew: it would be read and hashed at every start from now on.
                counts.wanted[fullname] = path
                code = mapping.load_code(path, self._cached, records, at, False, pack)
        except IndexError:
            counts.defer_learnable("pack missing", fullname, path)
            return None
        if not code:
            counts.defer_stale("source changed", fullname, path)
            return None
        counts.served += 1
        if memory is not None:
            self._recall = memory.recall_for(self, records[at + 7])
        return code  # type: ignore[return-value]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceFileLoader) and vars(self) == vars(other)

    __hash__ = SourceFileLoader.__hash__

    def __reduce__(self) -> "tuple[type, tuple[str, str]]":
        return SourceFileLoader, (self.name, self.path)


class MetadataLoader(VeloSourceLoader):
    """The loader of a module that is changed when its body has run; then again as the others."""

    __slots__ = ()

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module's body, and have it ask us first."""
        self.__class__ = VeloSourceLoader  # type: ignore[assignment]
        VeloSourceLoader.exec_module(self, module)
        try:
            if not mapping.is_audited():  # Auditors would see what we read for it.
                self._counts.accelerate_metadata(module)
        except Exception:
            self._counts.errors += 1

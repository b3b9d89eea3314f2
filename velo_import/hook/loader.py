# SPDX-License-Identifier: Apache-2.0
"""The loader: CPython's `SourceFileLoader`, except that `get_code` may answer from a mapped pack.

Everything else about it is inherited, so a module looks as it always does. The surprise: this file is
compiled under importlib's own file name, because CPython cuts frames of that name out of tracebacks.
"""

import sys
from _frozen_importlib_external import SourceFileLoader
from _imp import _fix_co_filename, source_hash  # type: ignore[attr-defined]
from marshal import loads
from posix import O_CLOEXEC, O_RDONLY, stat

import velo_import.hook.mapping as mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    from velo_import.hook.counts import Counts
    from velo_import.hook.finder import Folder

CODE = type((lambda: None).__code__)
HASH_KEY = 0x56454C4F
OPEN_FLAGS = O_RDONLY | O_CLOEXEC


def is_source_unchanged(path: str, records: memoryview, at: int) -> bool:
    """Whether the file is still the one that was compiled: same stamp, or same size and same content.

    Content is asked only when size agrees and a time or the inode does not, which is what installers that
    hard-link do to files they never edit. SipHash is enough against accident, and who can edit the file
    needs no collision.
    """
    unchanged = mapping.is_unchanged(path, records[at + 6], records[at + 3], records[at + 4], records[at + 5])
    if unchanged is not None:
        return unchanged
    with open(path, "rb", 0) as file:
        source = file.read()
    return int.from_bytes(source_hash(HASH_KEY, source), "little") == records[at + 7]


class VeloSourceLoader(SourceFileLoader):
    """Loads the module whose record is at word `_at` of `_folder`; pickles as the loader it stands for."""

    __slots__ = ("_at", "_cached", "_counts", "_folder")
    _folder: "Folder"
    _at: int
    _counts: "Counts"
    _cached: str

    def get_code(self, fullname: str) -> "CodeType | None":
        """The module's code: from the pack while the source is unchanged, otherwise CPython's way."""
        code = None
        is_edited = False
        try:
            code = self._served(fullname)
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
        status = stat(self.path)
        return (
            status.st_mtime_ns // 1_000_000_000 == records[self._at + 3] // 1_000_000_000
            and status.st_size == records[self._at + 6]
            and not is_source_unchanged(self.path, records, self._at)
        )

    def _served(self, fullname: str) -> "CodeType | None":
        path = self.path
        folder = self._folder
        at = self._at
        records = folder.records
        counts = self._counts
        if fullname != self.name:
            return None
        if folder.asks and not is_source_unchanged(path, records, at):
            counts.defer_stale("source changed", fullname, path)
            return None
        pack = folder.manifest.pack((records[at] >> 32) - 1)
        view = None if pack is None else pack.read(records[at + 1], records[at + 2])
        if view is None:
            counts.defer_learnable("pack missing", fullname, path)
            return None
        if counts.verify and int.from_bytes(source_hash(HASH_KEY, view), "little") != records[at + 8]:
            counts.errors += 1
            counts.defer_learnable("bytecode damaged", fullname, path)
            return None
        # Auditors see the event that reading the cached file would have raised.
        sys.audit("open", self._cached, "rb", OPEN_FLAGS)
        code = loads(view)
        if type(code) is not CODE:
            counts.errors += 1
            return None
        _fix_co_filename(code, path)
        counts.served += 1
        return code

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceFileLoader) and vars(self) == vars(other)

    __hash__ = SourceFileLoader.__hash__

    def __reduce__(self) -> "tuple[type, tuple[str, str]]":
        return SourceFileLoader, (self.name, self.path)

# SPDX-License-Identifier: Apache-2.0
"""Verification: what the store holds is read again and compared with its names and checksums.

Knows which files are due and what is wrong with them; putting it right is repair.py's. Its surprise: a sample
is not drawn by chance. What was replaced or written to since it was verified is always due, and of the rest
what was verified longest ago, so that a hundred samples of one per cent have seen everything.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from ..errors import StoreCorrupt
from ..format import contents, distributions, images, manifest, node, remembered, root
from ..format.pack import UnknownFormat
from ..host.files import Stamp, open_quietly, read_file, stamp_of
from .blobs import identify
from .catalog import LOOSE, PACKED, Catalog, Verified
from .layout import Store
from .packs import open_pack

PACK, BLOB, TWIN, MANIFEST, ROOT, TABLE, INDEX = "pack", "blob", "twin", "manifest", "root", "table", "index"
KINDS = (PACK, BLOB, TWIN, MANIFEST, ROOT, TABLE, INDEX)
# What is worth a record of when it was verified (FORMAT.md, section 5.4).
_WHERE = {PACK: PACKED, BLOB: LOOSE, TWIN: 3, MANIFEST: 4}

# What a disk says that has lost what it should hold; everything else is not the file's fault.
_DISK_FAULTS = {errno.EIO, errno.EUCLEAN, errno.EBADMSG}
_RECORD_EVERY = 10.0
# Files that wait for a thread. Whoever stops us waits until they are read.
_BATCH = 32


class Subject(NamedTuple):
    """A file of the store that says what it should hold. `name` is a digest, a pack id, or a path."""

    kind: str
    name: str
    path: str
    stamp: Stamp


class Damage(NamedTuple):
    """A file that does not hold what it should."""

    subject: Subject
    reason: str


class Verification(NamedTuple):
    """What came of it. `sound` and `skipped` count files; `left` could not be judged and is left alone."""

    sound: dict[str, int]
    skipped: int
    bytes: int
    damaged: list[Damage]
    left: list[Damage]
    # Packs whose every byte was verified now, and manifests that know another stamp of one of them.
    stamps: dict[str, Stamp]
    outdated: list[Subject]


def verify(
    store: Store,
    catalog: Catalog,
    *,
    sample: float = 100.0,
    jobs: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Read the store again, or `sample` per cent of its bytes; sound files are recorded as verified.

    Changes nothing else. `progress` is called with the bytes that are done and due.
    """
    subjects = list(_subjects(store))
    verified = catalog.verified()
    known = {**_sealed(catalog), **verified}
    chosen = due(subjects, known, sample)
    work = _Verifying(store, catalog, len(subjects) - len(chosen))
    total = sum(subject.stamp.size for subject in chosen)
    done = 0
    progress(0, total)
    with ThreadPoolExecutor(jobs) as pool:
        for start in range(0, len(chosen), _BATCH):
            batch = chosen[start : start + _BATCH]
            for subject, verdict in zip(batch, pool.map(_judge, batch), strict=True):
                work.note(subject, verdict)
                done += subject.stamp.size
                progress(done, total)
    work.forget(verified.keys() - {_key(subject) for subject in subjects if subject.kind in _WHERE})
    return work.finish()


def due(
    subjects: Iterable[Subject], known: Mapping[tuple[int, bytes], Verified], sample: float
) -> list[Subject]:
    """What to read: all that has changed since it was verified, then the rest by age, up to its share."""
    chosen = []
    rest = []
    for subject in subjects:
        if subject.kind in (MANIFEST, ROOT, TABLE, INDEX):
            chosen.append(subject)  # They are small, and everything hangs on them.
            continue
        last = known.get(_key(subject))
        if last is not None and last.stamp != subject.stamp:
            chosen.append(subject)
        else:
            rest.append((0 if last is None else last.when, subject))
    rest.sort()
    budget = sum(subject.stamp.size for _, subject in rest) * sample / 100
    for _, subject in rest:
        if budget <= 0:
            break
        budget -= subject.stamp.size
        chosen.append(subject)
    return chosen


class _Verifying:
    """The state of one `verify`."""

    def __init__(self, store: Store, catalog: Catalog, skipped: int) -> None:
        self.store = store
        self.catalog = catalog
        self.result = Verification(dict.fromkeys(KINDS, 0), skipped, 0, [], [], {}, [])
        self.bytes = 0
        self.pending: list[Subject] = []
        self.manifests: list[Subject] = []
        self.recorded = time.monotonic()

    def note(self, subject: Subject, verdict: _Verdict) -> None:
        if _stamp(subject.path) != subject.stamp:
            return  # Replaced or removed while we read it: whoever did that knew what it holds.
        self.bytes += subject.stamp.size
        if verdict.reason:
            fate = self.result.damaged if verdict.damaged else self.result.left
            fate.append(Damage(subject, verdict.reason))
        else:
            self.result.sound[subject.kind] += 1
            if subject.kind == PACK:
                self.result.stamps[subject.name] = subject.stamp
            if subject.kind == MANIFEST:
                self.manifests.append(subject)
            if subject.kind in _WHERE:
                self.pending.append(subject)
        if time.monotonic() - self.recorded > _RECORD_EVERY:
            self._record()  # Hours of reading are not lost when somebody stops it.

    def forget(self, keys: Set[tuple[int, bytes]]) -> None:
        """Drop the records of what is no longer there."""
        if keys and not self.store.readonly:
            with self.catalog.write() as writing:
                writing.remove_verified(keys)

    def finish(self) -> Verification:
        self._record()
        outdated = [subject for subject in self.manifests if self._is_outdated(subject)]
        return self.result._replace(bytes=self.bytes, outdated=outdated)

    def _record(self) -> None:
        self.recorded = time.monotonic()
        pending, self.pending = self.pending, []
        if self.store.readonly or not pending:
            return
        now = int(time.time())
        known = self.catalog.packs()
        with self.catalog.write() as writing:
            for subject in pending:
                writing.put_verified(*_key(subject), Verified(subject.stamp, now))
                record = known.get(subject.name) if subject.kind == PACK else None
                if record is not None and record.stamp != subject.stamp:
                    writing.put_record(record._replace(stamp=subject.stamp))

    def _is_outdated(self, subject: Subject) -> bool:
        with suppress(OSError, StoreCorrupt):
            return is_outdated(manifest.decode(read_file(subject.path)).packs, self.result.stamps)
        return False


def is_outdated(packs: Iterable[manifest.PackRecord], stamps: Mapping[str, Stamp]) -> bool:
    """Whether a manifest knows one of these packs, which were verified, by another stamp."""
    return any(Stamp(*pack[2:]) != stamps.get(Path(pack.name).stem, Stamp(*pack[2:])) for pack in packs)


def _sealed(catalog: Catalog) -> dict[tuple[int, bytes], Verified]:
    """Packs were whole when they were sealed: a stamp of then is as good as that of an old verification."""
    return {
        (PACKED, bytes.fromhex(record.id)): Verified(record.stamp, 0) for record in catalog.packs().values()
    }


def _key(subject: Subject) -> tuple[int, bytes]:
    """Of the record of when it was verified."""
    if subject.kind == MANIFEST:
        return _WHERE[MANIFEST], blake3(os.fsencode(subject.name)).digest()
    return _WHERE[subject.kind], bytes.fromhex(subject.name)


# -- which files there are -------------------------------------------------------------------------


def _subjects(store: Store) -> Iterator[Subject]:
    for path in sorted(store.manifests.glob("*/*.velo")):
        yield from _subject(MANIFEST, f"{path.parent.name}/{path.name}", str(path))
    for name in _TABLES:
        for path in sorted(store.manifests.glob(f"*/{name}")):
            yield from _subject(TABLE, f"{path.parent.name}/{name}", str(path))
    for path in sorted(store.indexes.glob(f"*{node.SUFFIX}")):
        yield from _subject(INDEX, path.name, str(path))
    for path in sorted(store.roots.glob("*.root")):
        yield from _subject(ROOT, path.name, str(path))
    for path in sorted(store.packs.glob("??/*.pack")):
        yield from _named(PACK, path.stem, str(path))
    for folder in sorted(store.loose.glob("??/??")):
        with suppress(OSError):
            for name in sorted(os.listdir(folder)):
                yield from _named(BLOB, name, f"{folder}/{name}")
    for path in sorted(store.executables.glob("??/*")):
        yield from _named(TWIN, path.name, str(path))


def _named(kind: str, name: str, path: str) -> Iterator[Subject]:
    """A file whose name is what it has to hold; others (being written, or somebody's notes) are not ours."""
    with suppress(ValueError):
        if len(bytes.fromhex(name)) == 32:
            yield from _subject(kind, name, path)


def _subject(kind: str, name: str, path: str) -> Iterator[Subject]:
    stamp = _stamp(path)
    if stamp is not None:
        yield Subject(kind, name, path, stamp)


def _stamp(path: str) -> Stamp | None:
    try:
        return stamp_of(os.stat(path, follow_symlinks=False))
    except OSError:
        return None


# -- what is wrong with one ------------------------------------------------------------------------


class _Verdict(NamedTuple):
    """What was found. No reason: the file is sound; a reason and not `damaged`: it could not be judged."""

    damaged: bool
    reason: str


_SOUND = _Verdict(False, "")


def _judge(subject: Subject) -> _Verdict:
    try:
        reason = _JUDGES[subject.kind](subject)
        return _Verdict(True, reason) if reason else _SOUND
    except UnknownFormat as error:
        return _Verdict(False, error.message)
    except StoreCorrupt as error:
        return _Verdict(True, error.message.removeprefix(f"{subject.path}: "))
    except OSError as error:
        return _Verdict(error.errno in _DISK_FAULTS, f"cannot be read: {error.strerror}")


def _judge_pack(subject: Subject) -> str:
    try:
        file = open_pack(Path(subject.path))
    except StoreCorrupt as error:
        if isinstance(error.__cause__, UnknownFormat):
            raise error.__cause__ from None
        raise
    with file:
        bad = len(file.damaged())
        return f"{bad} of {len(file.entries)} payloads are damaged" if bad else ""


def _judge_blob(subject: Subject) -> str:
    descriptor = open_quietly(subject.path)
    try:
        is_right = identify(descriptor).digest.hex() == subject.name
    finally:
        os.close(descriptor)
    return "" if is_right else "its content is not what its name says"


class _Form(NamedTuple):
    """Files that begin with a magic and a version."""

    magic: bytes
    version: int
    decode: Callable[[bytes], object]


_NO_VERSION = 1 << 16  # No Velo counts so far: from here on it is damage.

_MANIFEST = _Form(manifest.MAGIC, manifest.VERSION, manifest.decode)
_ROOT = _Form(root.MAGIC, root.VERSION, root.decode_root)
_INDEX = _Form(node.MAGIC, node.VERSION, node.decode_index)
_FORMS = {MANIFEST: _MANIFEST, ROOT: _ROOT, INDEX: _INDEX}
# What is kept of starts beside the manifests of an environment.
_TABLES = {
    "remembered.table": _Form(remembered.MAGIC, remembered.VERSION, remembered.decode_table),
    "images.table": _Form(images.MAGIC, images.VERSION, images.decode_images),
    "contents.table": _Form(contents.MAGIC, contents.VERSION, contents.decode_contents),
    "metadata.table": _Form(distributions.MAGIC, distributions.VERSION, distributions.decode_distributions),
}


def _judge_formed(subject: Subject) -> str:
    """What another Velo wrote is not damaged: what its root protects stays protected."""
    form = _FORMS.get(subject.kind) or _TABLES[os.path.basename(subject.name)]
    data = read_file(subject.path)
    version = int.from_bytes(data[8:12], "little")
    if data[:8] == form.magic and len(data) >= 12 and version != form.version and version < _NO_VERSION:
        raise UnknownFormat(f"{subject.kind} has version {version}, unknown to this Velo")
    form.decode(data)
    return ""


_JUDGES = {
    TABLE: _judge_formed,
    PACK: _judge_pack,
    BLOB: _judge_blob,
    TWIN: _judge_blob,
    MANIFEST: _judge_formed,
    ROOT: _judge_formed,
    INDEX: _judge_formed,
}

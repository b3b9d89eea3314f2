# SPDX-License-Identifier: Apache-2.0
"""How programs start: what each reads and in which order, for reading ahead and for packs in that order.

Knows the records `run/starts/` and the notes `run/ahead/` that are made of them (FORMAT.md, section 2). The
surprise: a record names sources and never places in packs. Whenever a manifest is published, the notes are
made again from the records, and so follow the bytecode wherever it went.
"""

from __future__ import annotations

import _imp
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from velo_import.errors import StoreCorrupt, VeloError
from velo_import.format import cbor
from velo_import.format.images import Key
from velo_import.format.manifest import HASH_KEY, Build, siphash
from velo_import.format.pack import COPIES, Entry
from velo_import.host.files import private_folder, publish, read_file, remove_quietly
from velo_import.store.layout import Store
from velo_import.store.packs import PackFile, SealedPack, open_pack

from .codes import bytecode_writer, pack_id, pack_record
from .imaging import image_places, images_path
from .notes import Start
from .plan import SOURCE_SUFFIX, Code, Draft, with_other
from .publish import BASE, UPPER, published_draft

MOST_STARTS = 64  # of one environment; the oldest go first
MOST_BYTES = 256 << 20  # read ahead for one start: more would push other things out of memory
NEAR = 64 << 10  # Ranges of a file that are no farther apart are read as one.
_PAGE = 4096

Range = tuple[int, int]  # offset and length


class Kept(NamedTuple):
    """A start that is remembered, and the id of the pack that was made for it, if any."""

    start: Start
    pack: str

    @property
    def command(self) -> str:
        return " ".join(named(self.start.words))


# -- names -------------------------------------------------------------------------------------------


def named(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words that name a program: the interpreter, and all up to the first that is no option."""
    for at in range(1, len(words)):
        if not words[at].startswith("-"):
            return words[: at + 1]
    return words


def mark_of(words: tuple[str, ...], folder: str) -> str:
    """The name of a start's note; the reference for hook/ahead.py and _native/velo.c."""
    chosen = named(words)
    is_alike_everywhere = chosen[-1].startswith("/") or chosen[-2:-1] in (("-c",), ("-m",))
    text = "\0".join(["" if is_alike_everywhere else folder, *chosen])
    return _imp.source_hash(HASH_KEY, os.fsencode(text)).hex()


# -- records -----------------------------------------------------------------------------------------


def kept(store: Store, key: str) -> list[Kept]:
    """The starts of one environment that are remembered, the latest last; damaged records say nothing."""
    folder = store.run / "starts"
    found = []
    for name in _names(folder):
        if name.rpartition(".")[0] == key:
            with suppress(OSError, StoreCorrupt, KeyError, TypeError, ValueError):
                path = folder / name
                found.append((os.stat(path).st_mtime_ns, name, _decoded(read_file(path))))
    return [each for _, _, each in sorted(found, key=lambda entry: entry[:2])]


def keep(store: Store, key: str, new: Iterable[Kept]) -> None:
    """Remember these starts, in place of what was known of the same programs."""
    for each in new:
        data = _encoded(each)
        if len(data) <= cbor.LIMIT:
            private_folder(store.run / "starts")
            publish(store.run / "starts" / f"{key}.{_mark(each)}", [data], mode=0o600)


def _mark(each: Kept) -> str:
    return mark_of(each.start.words, each.start.folder)


def _encoded(each: Kept) -> bytes:
    start = each.start
    return cbor.encode(
        {
            "folder": os.fsencode(start.folder),
            "words": [os.fsencode(word) for word in start.words],
            "origins": [os.fsencode(origin) for origin in start.origins],
            "mapped": [[os.fsencode(path), [*sum(ranges, ())]] for path, ranges in start.mapped],
            "pack": each.pack,
        }
    )


def _decoded(data: bytes) -> Kept:
    record = cbor.decode(data)
    mapped = tuple(
        (os.fsdecode(path), tuple(zip(numbers[::2], numbers[1::2], strict=True)))
        for path, numbers in record["mapped"]
    )
    words = tuple(map(os.fsdecode, record["words"]))
    origins = tuple(map(os.fsdecode, record["origins"]))
    return Kept(Start(os.fsdecode(record["folder"]), words, origins, mapped), record["pack"])


def _names(folder: os.PathLike[str]) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


# -- packs -------------------------------------------------------------------------------------------


def write_pack(
    start: Start, draft: Draft, store: Store, build: Build, *, replaced: str = ""
) -> SealedPack | None:
    """Copy the bytecode of a start, in its order, into one pack; None if there is none to be copied.

    What is in the pack of another start stays there alone. `replaced` is the pack of this start until now.

    Raises:
        VeloError: the store cannot be written.
    """
    label = COPIES + " ".join(os.path.basename(word) or word for word in named(start.words))
    with Payloads(store) as payloads, bytecode_writer(store, label[:200], build) as writer:
        for origin in start.origins:
            code = draft.codes.get(origin)
            if code is None or (code.pack.label.startswith(COPIES) and pack_id(code.pack) != replaced):
                continue
            payload = payloads.of(code)
            if payload:
                writer.add(payload, source=draft.files[origin].digest)
        return writer.seal()


def place_in_packs(draft: Draft, starts: Iterable[Kept], store: Store) -> None:
    """Let the draft take bytecode from the packs of these starts wherever they have it for these very
    sources; of two that have it, from the older one's.
    """
    placed: set[str] = set()
    for each in starts:
        if not each.pack:
            continue
        try:
            file = open_pack(store.pack_path(each.pack))
        except (OSError, VeloError):
            continue
        with file:
            record = pack_record(
                SealedPack(each.pack, file.path, file.stamp, (), "bytecode", file.label, "", 0)
            )
            places = {entry.source: entry for entry in file.entries}
            for origin in each.start.origins:
                code, source = draft.codes.get(origin), draft.files.get(origin)
                entry = places.get(source.digest) if source is not None else None
                if code is None or entry is None or origin in placed:
                    continue
                placed.add(origin)
                if (code.pack, code.offset) == (record, entry.offset):
                    continue
                with suppress(OSError, VeloError):
                    payload = file.read(entry)
                    draft.codes[origin] = Code(
                        record, entry.offset, entry.length, code.source_check, siphash(payload)
                    )


class Payloads:
    """Bytecode out of packs, which stay open as long as they are read from."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.opened: dict[str, tuple[PackFile, dict[int, Entry]] | None] = {}

    def __enter__(self) -> Payloads:
        return self

    def of(self, code: Code) -> bytes:
        """Verified bytecode; nothing where the pack is no longer what it was."""
        name = pack_id(code.pack)
        if name not in self.opened:
            self.opened[name] = None
            with suppress(OSError, VeloError):
                file = open_pack(self.store.pack_path(name))
                self.opened[name] = file, {entry.offset: entry for entry in file.entries}
        opened = self.opened[name]
        if opened is None:
            return b""
        file, entries = opened
        try:
            return file.read(entries[code.offset])
        except (KeyError, OSError, VeloError):
            return b""

    def __exit__(self, *_: object) -> None:
        for opened in self.opened.values():
            if opened is not None:
                opened[0].close()


# -- reading ahead -----------------------------------------------------------------------------------


def write_notes(store: Store, key: str, codes: Mapping[str, Code]) -> None:
    """Make the notes for reading ahead anew, out of the remembered starts and where bytecode is now."""
    known = kept(store, key)
    for each in known[:-MOST_STARTS]:
        remove_quietly(store.run / "starts" / f"{key}.{_mark(each)}")
        remove_quietly(store.run / "ahead" / _mark(each))
    folder = store.run / "ahead"
    own = [store.manifest_folder(key) / name for name in ("upper.velo", "base.velo", "remembered.table")]
    own += (store.run / "hook").glob("-".join(key.split("-")[:2]) + "-*.code")  # `<cache tag>-<magic>.code`
    images = Placed(str(images_path(store, key)), *image_places(store, key))
    for each in known[-MOST_STARTS:]:
        files = [(str(path), [(0, path.stat().st_size)]) for path in own if path.exists()]
        data = encode_note(ahead_of(each.start, codes, images, str(store.home), files))
        path = folder / _mark(each)
        with suppress(OSError):
            if read_file(path) == data:
                continue
        private_folder(folder)
        publish(path, [data], mode=0o600)


class Placed(NamedTuple):
    """The file of images, where its tables end, and where each image lies."""

    path: str
    tables: int
    images: Mapping[Key, Range]


def ahead_of(
    start: Start,
    codes: Mapping[str, Code],
    placed: Placed,
    home: str,
    own: list[tuple[str, list[Range]]],
) -> list[tuple[str, list[Range]]]:
    """What to read ahead, in the order in which it is needed: the interpreter and all libraries, our own
    files, bytecode or the images of it, and native modules, which a start loads between the others.
    """
    mapped = {path: joined(ranges) for path, ranges in start.mapped if not path.startswith(f"{home}/")}
    modules = [path for path in start.origins if path in mapped]
    libraries = [path for path in mapped if path not in set(modules)]
    packs: dict[str, list[Range]] = {}
    for origin in start.origins:
        code = codes.get(origin)
        if code is not None and code.checks in placed.images:
            packs.setdefault(placed.path, [(0, placed.tables)]).append(placed.images[code.checks])
        elif code is not None:
            packs.setdefault(f"{home}/packs/v1/{code.pack.name}", []).append((code.offset, code.length))
    return list(
        _limited(
            [
                *((path, mapped[path]) for path in libraries),
                *own,
                *((path, joined(ranges)) for path, ranges in packs.items()),
                *((path, mapped[path]) for path in modules),
            ]
        )
    )


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The ranges in whole pages, ascending, those that are near each other as one."""
    found: list[list[int]] = []
    for offset, length in sorted(ranges):
        begin, end = offset // _PAGE * _PAGE, -(-(offset + length) // _PAGE) * _PAGE
        if found and begin <= found[-1][1] + NEAR:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return [(begin, end - begin) for begin, end in found]


def _limited(files: Iterable[tuple[str, list[Range]]]) -> Iterator[tuple[str, list[Range]]]:
    rest = MOST_BYTES
    for path, ranges in files:
        rest -= sum(length for _, length in ranges)
        if rest < 0:
            return
        yield path, ranges


def encode_note(files: Iterable[tuple[str, list[Range]]]) -> bytes:
    fields = [b"velo-ahead 1"]
    for path, ranges in files:
        fields += [os.fsencode(path), " ".join(f"{offset} {length}" for offset, length in ranges).encode()]
    return b"".join(field + b"\0" for field in fields)


# -- how well it still fits --------------------------------------------------------------------------


class Hits(NamedTuple):
    """Of the modules of a start: how many are served from packs made for starts, and how many elsewhere."""

    modules: int
    packed: int
    changed: int  # Sources that are no longer what the manifest describes: Python reads them.


def hits(known: Draft, each: Kept) -> Hits:
    """How well a remembered start fits what its next start would do; asks the kernel about each source."""
    modules = packed = changed = 0
    for origin in each.start.origins:
        if not origin.endswith(SOURCE_SUFFIX):
            continue
        modules += 1
        code, record = known.codes.get(origin), known.files.get(origin)
        if code is None or record is None:
            continue
        try:
            status = os.stat(origin)
            is_same = (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns)
        except OSError:
            is_same = False
        changed += not is_same
        packed += is_same and code.pack.label.startswith(COPIES)
    return Hits(modules, packed, changed)


def known_to(store: Store, key: str) -> Draft:
    """All that the manifests of an environment say."""
    return with_other(*(published_draft(store, key, layer) for layer in (BASE, UPPER)))

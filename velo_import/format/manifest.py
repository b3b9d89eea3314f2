# SPDX-License-Identifier: Apache-2.0
"""The manifest: one flat file that says what every folder and module of an environment is.

Encodes and decodes the bytes that FORMAT.md (sections 2 and 3) specifies; knows nothing of files, clocks or
stores. `decode` is the reference reader: the hook reads the same bytes without building any of these objects.
The surprise: nothing here is parsed when a program starts, so every table is laid out for random access.
"""

from __future__ import annotations

import _imp
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from struct import Struct
from struct import error as StructError
from typing import NamedTuple

from velo_import.errors import StoreCorrupt

MAGIC = b"VELOMNFT"
VERSION = 1
SHORT_PATHS, ALONE = 1, 2
FEATURES = SHORT_PATHS | ALONE  # mandatory ones that are known; any other bit: written by a later Velo
HASH_KEY = 0x56454C4F

# FORMAT.md, section 3: every integer is little-endian, every table starts on a multiple of eight bytes.
HEADER = Struct("<8sIIQQ")
SECTION = Struct("<QQ")
ROOT = Struct("<QIBBHqqQ8x")
PACK = Struct("<QIIQqqQ")
PATH = Struct("<II")
VNODE = Struct("<32sQqIHH")
STAMP = Struct("<qQ")
BLOCK = Struct("<QQQQqqQQQ")
MODULE = Struct("<QQQqqQQQQQ")
LINK = Struct("<QQ")
SECTIONS = (
    "identity",
    "roots",
    "packs",
    "strings",
    "slots",
    "path_offsets",
    "vnodes",
    "stamps",
    "folders",
    "paths",
    "blocks",
)
PREAMBLE_START = HEADER.size
TABLES_START = PREAMBLE_START + 8 + SECTION.size * len(SECTIONS)
assert (HEADER.size, ROOT.size, PACK.size, PATH.size, VNODE.size, STAMP.size) == (32, 48, 48, 8, 56, 16)
assert (BLOCK.size, MODULE.size) == (72, 80)

# Vnode flags (u16).
DIRECTORY, SYMBOLIC_LINK, EXECUTABLE = 1, 2, 4

# Module flags (u8).
IS_FOLDER, DEFER, IS_SYMLINK = 1, 2, 4

# Root kinds and checks (u8).
STDLIB, SITE, TREE = 0, 1, 2
STAT, ROOT_ONLY, NEVER = 0, 1, 2
CHECK_NAMES = ("stat", "root", "none")
KIND_NAMES = ("stdlib", "site", "tree")

MAX_PATHS = 1 << 28
MAX_PATH_BYTES = (1 << 32) - 1
MAX_PACKS = 1 << 31
NO_DIGEST = bytes(32)


class Build(NamedTuple):
    """What bytecode and file names depend on: one interpreter build at one optimisation level."""

    cache_tag: str
    magic: bytes
    optimisation: int
    abiflags: str
    suffixes: tuple[str, ...]

    @property
    def tag(self) -> str:
        """The build's name in the store, such as `cpython-312-cb0d0d0a`; free of the optimisation level."""
        return f"{self.cache_tag}-{self.magic.hex()}"

    def identity(self) -> bytes:
        """The bytes the hook compares before it trusts a manifest (FORMAT.md, section 2)."""
        parts = [self.tag, str(self.optimisation), self.abiflags, *self.suffixes]
        return "\n".join(parts).encode()


class FileRecord(NamedTuple):
    """One path: its 56-byte vnode and the two stamp fields a vnode has no room for. Times in nanoseconds.

    `link` is what a symbolic link says, where that was asked for.
    """

    path: str
    digest: bytes
    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    mode: int
    flags: int
    link: str = ""


class ModuleRecord(NamedTuple):
    """What one folder's listing offers for one module name, and where its bytecode lies.

    `mask`: bit 0, the bare name is listed; bit k+1, the name with suffix k of the build is listed.
    `suffix`, `file` and `pack` are indices, or -1 for none; `source_check` and `bytecode_check` are the
    SipHash of the source and of the bytecode, which lies at `offset` of the pack and is `length` bytes long.
    """

    tail: str
    mask: int
    flags: int = 0
    suffix: int = -1
    file: int = -1
    pack: int = -1
    offset: int = 0
    length: int = 0
    source_check: int = 0
    bytecode_check: int = 0


class FolderRecord(NamedTuple):
    """One folder that may stand on a module search path, with the stamp of the listing it describes."""

    path: str
    root: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    modules: tuple[ModuleRecord, ...]


class RootRecord(NamedTuple):
    """One search-path folder and all below it; `kind` and `check` are the constants of this module."""

    path: str
    kind: int
    check: int
    mtime_ns: int
    ctime_ns: int
    ino: int


class PackRecord(NamedTuple):
    """A bytecode pack by name (below the packs folder) and by the stamp it had when it was verified."""

    name: str
    label: str
    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int


class Manifest(NamedTuple):
    """A whole manifest. `files` are sorted by path bytes; records refer to each other by index.

    `alone` says that there is no other for this environment in the same store.
    """

    build: Build
    prefix: str
    roots: Sequence[RootRecord]
    folders: Sequence[FolderRecord]
    files: Sequence[FileRecord]
    packs: Sequence[PackRecord]
    alone: bool = False


def siphash(data: bytes | memoryview) -> int:
    """SipHash-1-3 of `data` under Velo's key: the checksum that the hook can compute without an import."""
    return int.from_bytes(_imp.source_hash(HASH_KEY, data), "little")


def manifest_key(build: Build, prefix: str) -> str:
    """The folder name of an environment's manifests: readable, and unique by its last 16 hex digits."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "", os.path.basename(prefix))[:40]
    check = _imp.source_hash(HASH_KEY, build.identity() + b"\0" + os.fsencode(prefix))
    return f"{build.cache_tag}-{readable}-{check.hex()}"


def candidates(names: Iterable[str], suffixes: Sequence[str]) -> dict[str, int]:
    """Map every module name a listing offers to its mask, in the order CPython's `FileFinder` would try them.

    Names without a dot-free stem (`a.b.py`) cannot be imported by that stem and are left out, except that a
    bare name is kept as it is: whether it is a folder is for the caller to say.
    """
    masks: dict[str, int] = {}
    for name in names:
        for k, suffix in enumerate(suffixes):
            if name.endswith(suffix):
                tail = name[: -len(suffix)]
                if tail and "." not in tail:
                    masks[tail] = masks.get(tail, 0) | 2 << k
        if "." not in name:
            masks[name] = masks.get(name, 0) | 1
    return masks


# -- encoding ------------------------------------------------------------------------------------------------


def encode(manifest: Manifest) -> bytes:
    """The bytes of `manifest`.

    Raises:
        ValueError: a record refers to a path, root or pack that is not there, or a table is over its limit.
    """
    files = sorted(manifest.files, key=lambda record: os.fsencode(record.path))
    moved = {record.path: index for index, record in enumerate(files)}
    if len(moved) != len(files) or len(files) > MAX_PATHS or len(manifest.packs) > MAX_PACKS:
        raise ValueError("paths must be unique and within the limits of the format")

    raw_paths = [os.fsencode(record.path) for record in files]
    blocks, folder_offsets = _encode_blocks(manifest, moved)
    path_offsets, paths = _encode_paths(files, raw_paths, folder_offsets)
    strings = bytearray()
    roots = b"".join(
        ROOT.pack(*_intern(strings, record.path), record.kind, record.check, 0, *record[3:])
        for record in manifest.roots
    )
    packs = bytearray()
    for pack in manifest.packs:
        at, length = _intern(strings, pack.name)
        _, label_length = _intern(strings, pack.label)
        packs += PACK.pack(at, length, label_length, *pack[2:])

    tables = {
        "identity": manifest.build.identity() + b"\0" + os.fsencode(manifest.prefix),
        "roots": roots,
        "packs": bytes(packs),
        "strings": bytes(strings),
        "slots": _encode_slots(raw_paths),
        "path_offsets": path_offsets,
        "vnodes": b"".join(VNODE.pack(r.digest, r.size, r.mtime_ns, r.mode, r.flags, 0) for r in files),
        "stamps": b"".join(STAMP.pack(r.ctime_ns, r.ino) for r in files),
        "folders": b"".join(folder_offsets.get(r.path, 0).to_bytes(8, "little") for r in files),
        "paths": paths,
        "blocks": blocks,
    }
    return _assemble(tables, _encode_links(files), SHORT_PATHS | (ALONE if manifest.alone else 0))


def _encode_blocks(manifest: Manifest, moved: dict[str, int]) -> tuple[bytes, dict[str, int]]:
    """The blocks section, and each folder's offset in it plus one (zero means: not a folder)."""
    blocks = bytearray()
    offsets: dict[str, int] = {}
    for folder in manifest.folders:
        if not 0 <= folder.root < len(manifest.roots):
            raise ValueError(f"{folder.path!r} names root {folder.root}, which is not there")
        records = bytearray()
        for module in folder.modules:
            records += _encode_module(module, manifest, moved)
        names = "\0".join(module.tail for module in folder.modules).encode("utf-8", "surrogateescape")
        size = BLOCK.size + len(records) + len(names) + -len(names) % 8
        body = BLOCK.pack(
            0,
            size,
            len(folder.modules),
            folder.root,
            folder.mtime_ns,
            folder.ctime_ns,
            folder.ino,
            moved[folder.path],
            len(names),
        )
        body = body[8:] + records + names + bytes(-len(names) % 8)
        offsets[folder.path] = len(blocks) + 1
        blocks += siphash(body).to_bytes(8, "little") + body
    return bytes(blocks), offsets


def _encode_module(module: ModuleRecord, manifest: Manifest, moved: dict[str, int]) -> bytes:
    if module.pack >= len(manifest.packs) or not 0 <= module.mask < 1 << 16:
        raise ValueError(f"module {module.tail!r} has a pack or mask out of range")
    head = module.mask | (module.suffix + 1) << 16 | module.flags << 24 | (module.pack + 1) << 32
    mtime = ctime = ino = size = path = 0
    if module.file >= 0:
        record = manifest.files[module.file]
        mtime, ctime, ino, size = record.mtime_ns, record.ctime_ns, record.ino, record.size
        path = moved[record.path] + 1
    checks = module.source_check, module.bytecode_check
    return MODULE.pack(head, module.offset, module.length, mtime, ctime, ino, size, *checks, path)


def _intern(strings: bytearray, text: str) -> tuple[int, int]:
    raw = os.fsencode(text)
    at = len(strings)
    strings += raw
    return at, len(raw)


def _encode_paths(
    files: Sequence[FileRecord], raw_paths: list[bytes], blocks: dict[str, int]
) -> tuple[bytes, bytes]:
    """Offsets and texts: folders as they are, because programs ask for them; of all else in them the name."""
    folders: dict[bytes, int] = {}
    texts = []
    parents = []
    for index, (record, raw) in enumerate(zip(files, raw_paths, strict=True)):
        folder, slash, name = raw.rpartition(b"/")
        parent = 0
        if record.flags & DIRECTORY or record.path in blocks:
            folders[raw] = index + 1
        elif slash:
            parent = folders.get(folder, 0)
        texts.append(name if parent else raw)
        parents.append(parent)
    ends = list(accumulate(map(len, texts), initial=0))
    if ends[-1] > MAX_PATH_BYTES:
        raise ValueError("the paths are over the limit of the format")
    offsets = b"".join(PATH.pack(at, parent) for at, parent in zip(ends, [*parents, 0], strict=True))
    return offsets, b"".join(texts)


def _encode_slots(raw_paths: list[bytes]) -> bytes:
    """Open addressing at most half full: a lookup reads 1.5 slots on average, a miss 2.5."""
    count = 8
    while count < 2 * len(raw_paths):
        count *= 2
    slots = [0] * count
    for index, raw in enumerate(raw_paths):
        at = siphash(raw) & (count - 1)
        while slots[at]:
            at = (at + 1) & (count - 1)
        slots[at] = index + 1
    return b"".join(slot.to_bytes(4, "little") for slot in slots)


def _encode_links(files: Sequence[FileRecord]) -> bytes:
    """What symbolic links say; nothing at all without one."""
    texts = [(index, os.fsencode(record.link)) for index, record in enumerate(files) if record.link]
    if not texts:
        return b""
    body = len(texts).to_bytes(8, "little")
    body += b"".join(LINK.pack(index, len(text)) for index, text in texts)
    body += b"".join(text for _, text in texts)
    body += bytes(-len(body) % 8)
    return siphash(body).to_bytes(8, "little") + body


def _assemble(tables: dict[str, bytes], links: bytes, features: int = SHORT_PATHS) -> bytes:
    at = TABLES_START + 8
    directory = bytearray()
    body = bytearray()
    preamble_end = 0
    for name in SECTIONS:
        table = tables[name]
        if name == "slots":
            preamble_end = at
        directory += SECTION.pack(at, len(table))
        body += table + bytes(-len(table) % 8)
        at += len(table) + -len(table) % 8
    blocks = len(body) - len(tables["blocks"])  # a multiple of eight, so that nothing follows
    paths = siphash(bytes(body[preamble_end - TABLES_START - 8 : blocks]))
    rest = preamble_end.to_bytes(8, "little") + directory + paths.to_bytes(8, "little") + body + links
    check = siphash(rest[: preamble_end - PREAMBLE_START])
    return HEADER.pack(MAGIC, VERSION, features, at + len(links), check) + rest


# -- decoding ------------------------------------------------------------------------------------------------


def decode(data: bytes | memoryview) -> Manifest:
    """Read a manifest in full, checking every offset, length, index and checksum.

    Raises:
        StoreCorrupt: the bytes are not a manifest of this version, or contradict themselves.
    """
    try:
        return _decode(memoryview(data))
    except (StructError, IndexError, ValueError, OverflowError) as error:
        raise StoreCorrupt(f"manifest is damaged: {error}", hint="run `velo ingest` again") from error


def _decode(view: memoryview) -> Manifest:
    tables = _sections(view)
    identity, _, prefix = bytes(tables["identity"]).partition(b"\0")
    tag, optimisation, abiflags, *suffixes = identity.decode().split("\n")
    cache_tag, _, magic = tag.rpartition("-")
    build = Build(cache_tag, bytes.fromhex(magic), int(optimisation), abiflags, tuple(suffixes))

    strings = bytes(tables["strings"])
    roots = [
        RootRecord(_slice(strings, at, length), kind, check, mtime, ctime, ino)
        for at, length, kind, check, _, mtime, ctime, ino in ROOT.iter_unpack(tables["roots"])
    ]
    packs = [
        PackRecord(_slice(strings, at, length), _slice(strings, at + length, label), *rest)
        for at, length, label, *rest in PACK.iter_unpack(tables["packs"])
    ]
    files = _decode_files(tables)
    folders = list(_decode_folders(tables, files, len(roots), len(packs)))
    alone = bool(HEADER.unpack_from(view)[2] & ALONE)
    return Manifest(build, os.fsdecode(prefix), roots, folders, files, packs, alone)


def _sections(view: memoryview) -> dict[str, memoryview]:
    if len(view) < TABLES_START:
        raise ValueError("shorter than its header")
    magic, version, features, size, check = HEADER.unpack_from(view)
    if magic != MAGIC or version != VERSION or features & ~FEATURES:
        raise ValueError("not a manifest of this version")
    preamble_end = int.from_bytes(view[PREAMBLE_START : PREAMBLE_START + 8], "little")
    if size != len(view) or not TABLES_START <= preamble_end <= size:
        raise ValueError(f"says {size} bytes, has {len(view)}")
    if siphash(view[PREAMBLE_START:preamble_end]) != check:
        raise ValueError("checksum of the preamble differs")
    tables = {}
    for index, name in enumerate(SECTIONS):
        at, length = SECTION.unpack_from(view, PREAMBLE_START + 8 + SECTION.size * index)
        if at % 8 or at + length > size:
            raise ValueError(f"section {name} lies outside the file")
        tables[name] = view[at : at + length]
    _check_paths(view, preamble_end)
    tables["links"] = view[at + length + -length % 8 :]  # after the last section
    return tables


def _check_paths(view: memoryview, preamble_end: int) -> None:
    """Compare the path tables with their checksum, which stands between directory and first section.

    Only here: a start compares each path that it looks up, and has no time for all of them.
    """
    first, _ = SECTION.unpack_from(view, PREAMBLE_START + 8)
    blocks, _ = SECTION.unpack_from(view, PREAMBLE_START + 8 + SECTION.size * SECTIONS.index("blocks"))
    if first >= TABLES_START + 8:  # an older Velo wrote none
        check = int.from_bytes(view[TABLES_START : TABLES_START + 8], "little")
        if siphash(view[preamble_end:blocks]) != check:
            raise ValueError("checksum of the path tables differs")


def _slice(strings: bytes, at: int, length: int) -> str:
    if at + length > len(strings):
        raise ValueError("a string lies outside its table")
    return os.fsdecode(strings[at : at + length])


def _decode_files(tables: dict[str, memoryview]) -> list[FileRecord]:
    places = list(PATH.iter_unpack(tables["path_offsets"]))
    texts = bytes(tables["paths"])
    links = _decode_links(tables["links"])
    count = len(places) - 1
    if len(tables["vnodes"]) != count * VNODE.size or len(tables["stamps"]) != count * STAMP.size:
        raise ValueError("the path tables differ in length")
    ends = [at for at, _ in places]
    if ends[0] != 0 or ends[-1] != len(texts) or any(b < a for a, b in pairwise(ends)):
        raise ValueError("the path offsets are not ascending")
    vnodes = VNODE.iter_unpack(tables["vnodes"])
    stamps = STAMP.iter_unpack(tables["stamps"])
    decoded: list[FileRecord] = []
    for (start, folder), end, vnode, (ctime, ino) in zip(places, ends[1:], vnodes, stamps, strict=False):
        digest, size, mtime, mode, flags, _ = vnode
        path = os.fsdecode(texts[start:end])
        if folder > len(decoded):
            raise ValueError("a path lies in a folder that comes after it")
        if folder:
            path = f"{decoded[folder - 1].path}/{path}"
        link = links.pop(len(decoded), "")
        decoded.append(FileRecord(path, digest, size, mtime, ctime, ino, mode, flags, link))
    if links:
        raise ValueError("a link belongs to no path")
    return decoded


def _decode_links(table: memoryview) -> dict[int, str]:
    """Path index -> text."""
    if not table:
        return {}
    check, count = LINK.unpack_from(table)
    if siphash(table[8:]) != check:
        raise ValueError("checksum of the links differs")
    texts_at = LINK.size * (1 + count)
    if texts_at > len(table):
        raise ValueError("the links lie outside the file")
    texts = bytes(table[texts_at:])
    links: dict[int, str] = {}
    at = 0
    for index, length in LINK.iter_unpack(table[LINK.size : texts_at]):
        links[index] = _slice(texts, at, length)
        at += length
    return links


def _decode_folders(
    tables: dict[str, memoryview], files: list[FileRecord], root_count: int, pack_count: int
) -> Iterator[FolderRecord]:
    blocks = tables["blocks"]
    places = Struct("<Q").iter_unpack(tables["folders"])
    for index, (place,) in enumerate(places):
        if not place:
            continue
        at = place - 1
        check, size, count, root, mtime, ctime, ino, path, names_size = BLOCK.unpack_from(blocks, at)
        names_at = at + BLOCK.size + count * MODULE.size
        if at % 8 or at + size > len(blocks) or names_at + names_size > at + size:
            raise ValueError("a folder block lies outside its section")
        if siphash(blocks[at + 8 : at + size]) != check:
            raise ValueError("checksum of a folder block differs")
        if root >= root_count or path != index:
            raise ValueError("a folder block belongs to another path")
        names = bytes(blocks[names_at : names_at + names_size]).decode("utf-8", "surrogateescape")
        tails = names.split("\0") if count else []
        if len(tails) != count:
            raise ValueError("a folder block has fewer names than modules")
        records = MODULE.iter_unpack(blocks[at + BLOCK.size : names_at])
        modules = tuple(
            _module(tail, record, len(files), pack_count) for tail, record in zip(tails, records, strict=True)
        )
        yield FolderRecord(files[index].path, root, mtime, ctime, ino, modules)


def _module(tail: str, record: tuple[int, ...], file_count: int, pack_count: int) -> ModuleRecord:
    head, offset, length, _, _, _, _, source_check, bytecode_check, path = record
    pack = (head >> 32) - 1
    if path > file_count or pack >= pack_count:
        raise ValueError(f"module {tail!r} refers to a path or pack that is not there")
    return ModuleRecord(
        tail,
        head & 0xFFFF,
        head >> 24 & 0xFF,
        (head >> 16 & 0xFF) - 1,
        path - 1,
        pack,
        offset,
        length,
        source_check,
        bytecode_check,
    )

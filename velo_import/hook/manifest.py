# SPDX-License-Identifier: Apache-2.0
"""The mapped manifest, read in place: folders by path, packs by number. Parses nothing it is not asked for.

`velo_import.format.manifest` is the reference for every offset (FORMAT.md, section 3). Here a doubtful
byte is a miss, never an error: the program then starts as it would without Velo.
"""

import sys
from _imp import source_hash

import velo_import.hook.mapping as mapping

HASH_KEY = 0x56454C4F
# The first 16 bytes: magic, version 1, and the mandatory features, of which the first is harmless to us.
STARTS = tuple(b"VELOMNFT\x01\x00\x00\x00%c\x00\x00\x00" % features for features in range(4))
ALONE = 2
PREAMBLE_START = 32
TABLES_START = 216
# Positions of the section directory's entries, in 8-byte words from the start of the file: (offset, length).
IDENTITY, ROOTS, PACKS, STRINGS, SLOTS, PATH_OFFSETS, FOLDERS, PATHS, BLOCKS = 5, 7, 9, 11, 13, 15, 21, 23, 25
DIRECTORY_END = 27
ROOT_WORDS = PACK_WORDS = 6
BLOCK_WORDS = 9
MODULE_WORDS = 10
STAT, ROOT_ONLY, NEVER = 0, 1, 2

Unusable = mapping.Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def signed(word: int) -> int:
    """A time: before 1970 it is negative."""
    return word - (1 << 64) if word >> 63 else word


class Block:
    """One folder as the manifest describes it: stamp, module table, and records as flat words."""

    __slots__ = ("ctime", "ino", "manifest", "mtime", "records", "root", "table")

    def __init__(self, manifest: "Manifest", at: int, index: int) -> None:
        words = manifest.words
        end = words[BLOCKS] + words[BLOCKS + 1]
        if at * 8 + BLOCK_WORDS * 8 > end:
            raise Unusable("damaged")
        size, count, root, mtime, ctime, ino, path, names_size = words[at + 1 : at + BLOCK_WORDS]
        start = at + BLOCK_WORDS
        names_at = start + count * MODULE_WORDS
        # What leads here has no checksum that is looked at; so the block says whose it is.
        if path != index or size % 8 or names_at * 8 + names_size > at * 8 + size or at * 8 + size > end:
            raise Unusable("damaged")
        body = manifest.bytes[at * 8 + 8 : at * 8 + size]
        if int.from_bytes(source_hash(HASH_KEY, body), "little") != words[at]:
            raise Unusable("damaged")
        self.manifest = manifest
        self.root = root
        self.mtime = signed(mtime)
        self.ctime = signed(ctime)
        self.ino = ino
        self.records: memoryview = words[start:names_at]
        names = str(manifest.bytes[names_at * 8 : names_at * 8 + names_size], "utf-8", "surrogateescape")
        listed = names.split("\0") if count else []
        if len(listed) != count:
            raise Unusable("damaged")
        places = range(0, count * MODULE_WORDS, MODULE_WORDS)
        self.table: dict[str, int] = dict(zip(listed, places, strict=True))


class Manifest:
    """One mapped manifest, checked once: magic, version, size, preamble checksum, owner, interpreter build.

    `owner` is the account that the store belongs to, whose files are believed beside our own and root's.

    Raises:
        Unusable: with the reason, for the constructor only; all other methods answer None instead.
        OSError: the file cannot be opened or mapped.
    """

    __slots__ = ("bytes", "owner", "pack_folder", "packs", "path", "roots_checked", "words")

    def __init__(self, path: str, pack_folder: str, identity: bytes, owner: int = 0) -> None:
        mapped, stamp = mapping.map_private(path, owner)
        self.bytes = memoryview(mapped)
        self.path = path
        self.owner = owner
        self.pack_folder = pack_folder
        self.packs: dict[int, Any] = {}
        self.roots_checked: dict[int, bool] = {}
        size = stamp[0]
        if size < TABLES_START or size % 8 or self.bytes[:16] not in STARTS:
            raise Unusable("not a manifest")
        self.words = words = self.bytes.cast("Q")
        end = words[4]
        if words[2] != size or not TABLES_START <= end <= size:
            raise Unusable("damaged")
        check = source_hash(HASH_KEY, self.bytes[PREAMBLE_START:end])
        if int.from_bytes(check, "little") != words[3]:
            raise Unusable("damaged")
        for at in range(IDENTITY, DIRECTORY_END, 2):
            if words[at] % 8 or words[at] + words[at + 1] > size:
                raise Unusable("damaged")
        slots, paths = words[SLOTS + 1] >> 2, words[PATH_OFFSETS + 1] >> 3
        if not slots or slots & (slots - 1) or not paths or words[FOLDERS + 1] >> 3 < paths - 1:
            raise Unusable("damaged")
        if self._identity().partition(b"\0")[0] != identity:
            raise Unusable("build")

    def _identity(self) -> bytes:
        at, size = self.words[IDENTITY], self.words[IDENTITY + 1]
        return bytes(self.bytes[at : at + size])

    def is_alone(self) -> bool:
        """Whether no other manifest of this environment lies beside it, so that none has to be looked for."""
        return bool(self.bytes[12] & ALONE)

    def prefix(self) -> bytes:
        """The `sys.prefix` of the environment this manifest was made for, in file system bytes."""
        return self._identity().partition(b"\0")[2]

    def block(self, path: bytes) -> "Block | None":
        """The block of one folder, or None when the manifest does not cover it."""
        words = self.words
        slots = words[SLOTS]
        mask = (words[SLOTS + 1] >> 2) - 1
        offsets = words[PATH_OFFSETS] >> 3
        paths = words[PATHS]
        slot = int.from_bytes(source_hash(HASH_KEY, path), "little") & mask
        for _ in range(mask + 1):
            at = slots + 4 * slot
            index = int.from_bytes(self.bytes[at : at + 4], "little")
            if index == 0:
                return None
            if index >= words[PATH_OFFSETS + 1] >> 3:
                raise Unusable("damaged")
            start = words[offsets + index - 1]
            end = words[offsets + index] & 0xFFFFFFFF
            if start >> 32:  # The name of what is no folder.
                slot = (slot + 1) & mask
                continue
            if not start <= end <= words[PATHS + 1]:
                raise Unusable("damaged")
            if end - start == len(path) and self.bytes[paths + start : paths + end] == path:
                place = words[(words[FOLDERS] >> 3) + index - 1]
                if place and (place - 1) % 8:
                    raise Unusable("damaged")
                return Block(self, (words[BLOCKS] + place - 1) >> 3, index - 1) if place else None
            slot = (slot + 1) & mask
        return None

    def string(self, at: int, size: int) -> str:
        """A root's path, a pack's name or its label, from the string table."""
        if at + size > self.words[STRINGS + 1]:
            raise Unusable("damaged")
        start = self.words[STRINGS] + at
        return str(self.bytes[start : start + size], sys.getfilesystemencoding(), "surrogateescape")

    def root(self, index: int) -> "tuple[str, int, int, int, int]":
        """Path, check, mtime_ns, ctime_ns and inode of one root."""
        if not 0 <= index < self.words[ROOTS + 1] // (ROOT_WORDS * 8):
            raise Unusable("damaged")
        at = (self.words[ROOTS] >> 3) + index * ROOT_WORDS
        where, head, mtime, ctime, ino = self.words[at : at + 5]
        path = self.string(where, head & 0xFFFFFFFF)
        return path, head >> 40 & 0xFF, signed(mtime), signed(ctime), ino

    def pack_name(self, index: int) -> str:
        """The pack's file name below the packs folder."""
        if not 0 <= index < self.words[PACKS + 1] // (PACK_WORDS * 8):
            raise Unusable("damaged")
        at = (self.words[PACKS] >> 3) + index * PACK_WORDS
        return self.string(self.words[at], self.words[at + 1] & 0xFFFFFFFF)

    def pack(self, index: int) -> "Any":
        """One mapped pack; None when it is gone, foreign, or no longer what was verified."""
        try:
            return self.packs[index]
        except KeyError:
            pass
        pack = None
        try:
            at = (self.words[PACKS] >> 3) + index * PACK_WORDS
            mapped, stamp = mapping.map_private(f"{self.pack_folder}/{self.pack_name(index)}", self.owner)
            size, mtime, ctime, ino = self.words[at + 2 : at + 6]
            if stamp == (size, signed(mtime), signed(ctime), ino):
                pack = mapped
        except (OSError, ValueError, Unusable):
            pass
        self.packs[index] = pack
        return pack

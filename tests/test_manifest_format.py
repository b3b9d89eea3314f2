# SPDX-License-Identifier: Apache-2.0
"""The manifest's bytes, sliced by the offsets of FORMAT.md, and the hook's reader beside the reference."""

from __future__ import annotations

import itertools
import os
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velo_import.errors import StoreCorrupt
from velo_import.format import manifest as m

SUFFIXES = (".cpython-312-x86_64-linux-gnu.so", ".abi3.so", ".so", ".py", ".pyc")
BUILD = m.Build("cpython-312", bytes.fromhex("cb0d0d0a"), 0, "", SUFFIXES)


def example() -> m.Manifest:
    """One root with one package and one module, one pack, and a name that is not UTF-8."""
    files = [
        m.FileRecord("/p", m.NO_DIGEST, 4096, 5, 6, 7, 0o40755, m.DIRECTORY),
        m.FileRecord("/p/pkg", m.NO_DIGEST, 4096, 8, 9, 10, 0o40755, m.DIRECTORY),
        m.FileRecord("/p/pkg/__init__.py", b"\x11" * 32, 20, 11, 12, 13, 0o100644, 0),
        m.FileRecord("/p/app.py", b"\x22" * 32, 30, 14, 15, 16, 0o100755, m.EXECUTABLE),
        m.FileRecord(os.fsdecode(b"/p/\xff.py"), b"\x33" * 32, 1, -1, 17, 18, 0o100644, 0),
    ]
    app = m.ModuleRecord("app", 16, 0, 3, 3, 0, 176, 50, 0xAAAA, 0xBBBB)
    package = m.ModuleRecord("pkg", 1, m.IS_FOLDER)
    odd = m.ModuleRecord("\udcff", 16, m.DEFER, 3, 4)
    inside = m.ModuleRecord("__init__", 16, 0, 3, 2, 0, 320, 60, 0xCCCC, 0xDDDD)
    return m.Manifest(
        BUILD,
        "/env",
        [m.RootRecord("/p", m.TREE, m.STAT, 5, 6, 7)],
        [
            m.FolderRecord("/p", 0, 5, 6, 7, (app, package, odd)),
            m.FolderRecord("/p/pkg", 0, 8, 9, 10, (inside,)),
        ],
        files,
        [m.PackRecord("ab/abcd.pack", "demo-1.0", 1000, 19, 20, 21)],
    )


def section(data: bytes, name: str) -> bytes:
    """A section's bytes, found as FORMAT.md 3.1 says: at 40 + 16 x its number."""
    at = 40 + 16 * m.SECTIONS.index(name)
    offset, length = struct.unpack_from("<QQ", data, at)
    return data[offset : offset + length]


def test_header_has_the_documented_bytes() -> None:
    """Magic, version, features, size and checksum stand where FORMAT.md 3.1 puts them."""
    data = m.encode(example())

    assert data[0:8] == b"VELOMNFT"
    assert struct.unpack_from("<II", data, 8) == (1, 1)
    assert struct.unpack_from("<Q", data, 16) == (len(data),)
    (end,) = struct.unpack_from("<Q", data, 32)
    assert struct.unpack_from("<Q", data, 24) == (m.siphash(data[32:end]),)
    assert len(data) % 8 == 0


def test_a_manifest_says_whether_it_is_alone(hook: ModuleType, tmp_path: Path) -> None:
    """The second feature: no other manifest of this environment has to be looked for."""
    for alone, features in ((False, 1), (True, 3)):
        data = m.encode(example()._replace(alone=alone))
        assert struct.unpack_from("<I", data, 12) == (features,)
        assert m.decode(data).alone is alone
        path = write_private(tmp_path / f"{features}.velo", data)
        assert hook.Manifest(path, str(tmp_path), BUILD.identity()).is_alone() is alone


def test_identity_roots_and_packs_have_the_documented_bytes() -> None:
    """The preamble's tables can be read with nothing but FORMAT.md."""
    data = m.encode(example())
    strings = section(data, "strings")

    assert (
        section(data, "identity") == b"cpython-312-cb0d0d0a\n0\n\n" + "\n".join(SUFFIXES).encode() + b"\0/env"
    )
    root = section(data, "roots")
    at, length, kind, check = struct.unpack_from("<QIBB", root)
    assert (strings[at : at + length], kind, check) == (b"/p", 2, 0)
    assert struct.unpack_from("<qqQ", root, 16) == (5, 6, 7)
    assert len(root) == 48
    pack = section(data, "packs")
    at, name, label = struct.unpack_from("<QII", pack)
    assert strings[at : at + name] == b"ab/abcd.pack"
    assert strings[at + name : at + name + label] == b"demo-1.0"
    assert struct.unpack_from("<QqqQ", pack, 16) == (1000, 19, 20, 21)


def test_the_path_tables_have_one_checksum() -> None:
    """From the end of the preamble to the blocks, by FORMAT.md 3.1; it stands before the first section."""
    data = m.encode(linked())
    (end,) = struct.unpack_from("<Q", data, 32)
    blocks, _ = struct.unpack_from("<QQ", data, 40 + 16 * m.SECTIONS.index("blocks"))

    assert struct.unpack_from("<Q", data, 216) == (m.siphash(data[end:blocks]),)
    assert struct.unpack_from("<Q", data, 40) == (224,)


def test_no_flipped_bit_is_overlooked_when_all_is_read() -> None:
    for example_of in (example, linked):
        raw = bytearray(m.encode(example_of()))
        for at in range(len(raw)):
            raw[at] ^= 1 << at % 8
            with pytest.raises(StoreCorrupt):
                m.decode(bytes(raw))
            raw[at] ^= 1 << at % 8


def test_a_manifest_from_before_there_was_a_checksum_is_read(hook: ModuleType, tmp_path: Path) -> None:
    """Its first section stands where the checksum is now."""
    raw = m.encode(example())
    sections = [struct.unpack_from("<QQ", raw, 40 + 16 * number) for number in range(11)]
    directory = b"".join(struct.pack("<QQ", at - 8, length) for at, length in sections)
    (end,) = struct.unpack_from("<Q", raw, 32)
    preamble = struct.pack("<Q", end - 8) + directory + raw[224:end]
    old = raw[:16] + struct.pack("<QQ", len(raw) - 8, m.siphash(preamble)) + preamble + raw[end:]

    assert m.decode(old) == m.decode(raw)
    path = write_private(tmp_path / "m.velo", old)
    assert hook.Manifest(path, str(tmp_path), BUILD.identity()).block(b"/p") is not None


def test_what_is_no_folder_is_a_name_in_its_folder() -> None:
    """By FORMAT.md, section 3: the folder comes first, is counted from 1, and is never shortened itself."""
    data = m.encode(linked())
    offsets = list(struct.iter_unpack("<II", section(data, "path_offsets")))
    paths = section(data, "paths")
    texts = [(paths[start:end], folder) for (start, folder), (end, _) in itertools.pairwise(offsets)]

    assert texts == [
        (b"/p", 0),
        (b"alias.py", 1),
        (b"app.py", 1),
        (b"/p/pkg", 0),
        (b"__init__.py", 4),
        (b"zone", 1),
        (b"\xff.py", 1),
    ]
    assert offsets[-1] == (len(paths), 0)


def test_a_link_to_a_folder_that_programs_ask_for_stands_in_full(hook: ModuleType, tmp_path: Path) -> None:
    plain = linked()
    zone = m.FolderRecord("/p/zone", 0, 8, 9, 10, ())
    data = m.encode(plain._replace(folders=[*plain.folders, zone]))
    assert b"/p/zone" in section(data, "paths")

    manifest = hook.Manifest(write_private(tmp_path / "m.velo", data), str(tmp_path), BUILD.identity())
    assert manifest.block(b"/p/zone") is not None
    for path in (b"zone", b"/p/app.py", b"app.py", b"/p/zone/", b"/"):
        assert manifest.block(path) is None


def without_short_paths(raw: bytes) -> bytes:
    """The same manifest as it was written before paths could be shortened."""
    paths = sorted(os.fsencode(record.path) for record in m.decode(raw).files)
    ends = [sum(map(len, paths[:number])) for number in range(len(paths) + 1)]
    tables = {name: section(raw, name) for name in m.SECTIONS}
    tables["path_offsets"] = struct.pack(f"<{len(ends)}Q", *ends)
    tables["paths"] = b"".join(paths)
    old = bytearray(m._assemble(tables, b""))
    struct.pack_into("<I", old, 12, 0)
    return bytes(old)


def test_a_manifest_from_before_paths_were_shortened_is_read(hook: ModuleType, tmp_path: Path) -> None:
    raw = m.encode(example())
    old = without_short_paths(raw)

    assert len(old) > len(raw) and m.decode(old) == m.decode(raw)
    path = write_private(tmp_path / "m.velo", old)
    assert hook.Manifest(path, str(tmp_path), BUILD.identity()).block(b"/p/pkg") is not None


@pytest.mark.parametrize("features", [4, 5, 1 << 31])
def test_a_manifest_with_features_of_later_ones_is_refused(
    hook: ModuleType, tmp_path: Path, features: int
) -> None:
    raw = bytearray(m.encode(example()))
    struct.pack_into("<I", raw, 12, features)
    with pytest.raises(StoreCorrupt):
        m.decode(bytes(raw))
    with pytest.raises(hook.Unusable):
        hook.Manifest(write_private(tmp_path / "m.velo", bytes(raw)), str(tmp_path), BUILD.identity())


@pytest.mark.parametrize("folder", [3, 6, 1 << 31])
def test_a_path_in_a_folder_that_comes_later_is_refused(folder: int) -> None:
    """Itself, the one behind it, none at all: with a right checksum, so that only the index is wrong."""
    raw = m.encode(example())
    tables = {name: section(raw, name) for name in m.SECTIONS}
    offsets = bytearray(tables["path_offsets"])
    struct.pack_into("<I", offsets, 8 * 1 + 4, folder)
    with pytest.raises(StoreCorrupt, match="comes after it"):
        m.decode(m._assemble({**tables, "path_offsets": bytes(offsets)}, b""))


def test_vnode_is_56_bytes_and_stamps_stand_beside_it() -> None:
    """The vnode of /p/app.py, by the offsets of FORMAT.md 3.5."""
    data = m.encode(example())
    index = sorted(os.fsencode(f.path) for f in example().files).index(b"/p/app.py")

    vnode = section(data, "vnodes")[56 * index : 56 * (index + 1)]
    assert vnode[0:32] == b"\x22" * 32
    assert struct.unpack_from("<QqIHH", vnode, 32) == (30, 14, 0o100755, 4, 0)
    assert struct.unpack_from("<qQ", section(data, "stamps"), 16 * index) == (15, 16)


def linked() -> m.Manifest:
    """The example with a link to a file and a link to a folder."""
    flags = m.SYMBOLIC_LINK
    links = [
        m.FileRecord("/p/alias.py", b"\x22" * 32, 30, 14, 15, 16, 0o100755, flags | m.EXECUTABLE, "app.py"),
        m.FileRecord("/p/zone", m.NO_DIGEST, 0, 1, 2, 3, 0o120777, flags, "pkg/../pkg"),
    ]
    plain = example()
    return plain._replace(files=[*plain.files, *links])


def test_links_stand_after_the_blocks() -> None:
    """What links say, by FORMAT.md 3.7; a manifest without links ends with its blocks."""
    data = m.encode(linked())
    offset, length = struct.unpack_from("<QQ", data, 40 + 16 * m.SECTIONS.index("blocks"))
    links = data[offset + length :]

    check, count = struct.unpack_from("<QQ", links)
    assert check == m.siphash(links[8:])
    paths = sorted(os.fsencode(record.path) for record in linked().files)
    places = [paths.index(b"/p/alias.py"), paths.index(b"/p/zone")]
    assert struct.unpack_from("<QQQQ", links, 16) == (places[0], 6, places[1], 10)
    assert count == 2
    assert links[48:] == b"app.pypkg/../pkg"
    assert {each.path: each.link for each in m.decode(data).files if each.link} == {
        "/p/alias.py": "app.py",
        "/p/zone": "pkg/../pkg",
    }
    plain = m.encode(example())
    offset, length = struct.unpack_from("<QQ", plain, 40 + 16 * m.SECTIONS.index("blocks"))
    assert offset + length == len(plain)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_links_are_refused(data: st.DataObject) -> None:
    """They are checksummed: no flipped bit turns one link into another."""
    raw = bytearray(m.encode(linked()))
    offset, length = struct.unpack_from("<QQ", raw, 40 + 16 * m.SECTIONS.index("blocks"))
    raw[data.draw(st.integers(offset + length, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(StoreCorrupt):
        m.decode(bytes(raw))


def test_links_that_say_something_impossible_are_refused() -> None:
    """A right checksum over a table that reaches too far, or belongs to no path."""
    data = m.encode(linked())
    offset, length = struct.unpack_from("<QQ", data, 40 + 16 * m.SECTIONS.index("blocks"))
    for at, value in ((8, 1 << 60), (16, 99), (24, 1 << 60)):
        links = bytearray(data[offset + length :])
        struct.pack_into("<Q", links, at, value)
        struct.pack_into("<Q", links, 0, m.siphash(bytes(links[8:])))
        with pytest.raises(StoreCorrupt):
            m.decode(data[: offset + length] + bytes(links))


def test_block_and_module_records_have_the_documented_words() -> None:
    """The block of /p, found through slots, offsets and folders as a reader would, word by word."""
    data = m.encode(example())
    slots = struct.unpack(f"<{len(section(data, 'slots')) // 4}I", section(data, "slots"))
    offsets = [at for at, _ in struct.iter_unpack("<II", section(data, "path_offsets"))]
    paths = section(data, "paths")
    slot = m.siphash(b"/p") % len(slots)
    while paths[offsets[slots[slot] - 1] : offsets[slots[slot]]] != b"/p":
        slot = (slot + 1) % len(slots)
    index = slots[slot] - 1
    (place,) = struct.unpack_from("<Q", section(data, "folders"), 8 * index)

    block = section(data, "blocks")[place - 1 :]
    check, size, count, root = struct.unpack_from("<QQQQ", block)
    assert check == m.siphash(block[8:size])
    assert (count, root) == (3, 0)
    assert struct.unpack_from("<qqQQQ", block, 32) == (5, 6, 7, index, len(b"app\0pkg\0") + 1)
    words = struct.unpack_from("<10Q", block, 72)
    assert words[0] == 16 | 4 << 16 | 0 << 24 | 1 << 32
    assert words[1:9] == (176, 50, 14, 15, 16, 30, 0xAAAA, 0xBBBB)
    assert block[72 + 3 * 80 :].startswith(b"app\0pkg\0")


def test_decode_gives_back_what_was_encoded() -> None:
    """Encoding and decoding are inverse, paths sorted."""
    decoded = m.decode(m.encode(example()))

    assert m.encode(decoded) == m.encode(example())
    assert [f.path for f in decoded.folders] == ["/p", "/p/pkg"]
    assert decoded.folders[0].modules[2].tail == "\udcff"
    assert decoded.build == BUILD
    assert decoded.prefix == "/env"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_manifests_are_refused_or_read_never_worse(data: st.DataObject) -> None:
    """Flipped, cut or grown bytes give StoreCorrupt or a manifest, in the reference and in the hook."""
    raw = bytearray(m.encode(example()))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(raw)))
    for version in (bytes(raw), bytes(raw[:cut]), bytes(raw) + b"\0" * 8):
        try:
            m.decode(version)
        except StoreCorrupt:
            pass


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    """The hook's own reader, imported as an ordinary module."""
    import velo_import.hook.manifest as reader

    return reader


def write_private(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    path.chmod(0o444)
    return str(path)


def test_hook_reads_the_same_bytes(tmp_path: Path, hook: ModuleType) -> None:
    """The hook's reader and the reference agree on every folder, module, root and pack."""
    path = write_private(tmp_path / "m.velo", m.encode(example()))
    reader = hook.Manifest(path, str(tmp_path), BUILD.identity())
    decoded = m.decode(m.encode(example()))

    assert reader.prefix() == b"/env"
    assert reader.root(0) == ("/p", m.STAT, 5, 6, 7)
    assert reader.pack_name(0) == "ab/abcd.pack"
    for folder in decoded.folders:
        block = reader.block(os.fsencode(folder.path))
        assert (block.mtime, block.ctime, block.ino, block.root) == (*folder[2:5], folder.root)
        assert list(block.table) == [module.tail for module in folder.modules]
        for module in folder.modules:
            words = block.records[block.table[module.tail] :][:10]
            assert words[0] == (
                module.mask | (module.suffix + 1) << 16 | module.flags << 24 | (module.pack + 1) << 32
            )
            assert (words[1], words[2], words[7], words[8]) == module[6:10]
    assert reader.block(b"/p/app.py") is None
    assert reader.block(b"/nowhere") is None


def test_hook_does_not_mind_links(tmp_path: Path, hook: ModuleType) -> None:
    """They stand where it never looks; folders and modules are found as before."""
    path = write_private(tmp_path / "m.velo", m.encode(linked()))
    reader = hook.Manifest(path, str(tmp_path), BUILD.identity())

    assert list(reader.block(b"/p").table) == ["app", "pkg", "\udcff"]
    assert reader.block(b"/p/zone") is None


def test_hook_and_reference_agree_on_names(hook: ModuleType) -> None:
    """Identity and folder name of an environment are the same bytes on both sides."""
    import velo_import.hook.install as install

    magic = __import__("importlib.util").util.MAGIC_NUMBER
    tag = sys.implementation.cache_tag
    own = m.Build(tag, magic, sys.flags.optimize, sys.abiflags, SUFFIXES)

    assert install.build_identity(list(SUFFIXES)) == own.identity()
    assert install.manifest_key(own.identity(), os.fsencode(sys.prefix)) == m.manifest_key(own, sys.prefix)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: d[:100], "not a manifest"),
        (lambda d: d[:-8], "damaged"),
        (lambda d: b"X" + d[1:], "not a manifest"),
        (lambda d: d[:8] + b"\x02" + d[9:], "not a manifest"),
        (lambda d: d[:12] + b"\x04" + d[13:], "not a manifest"),
        (lambda d: d[:50] + bytes([d[50] ^ 1]) + d[51:], "damaged"),
        (lambda d: d + bytes(8), "damaged"),
        (lambda d: b"", "not a manifest"),
    ],
)
def test_hook_refuses_damaged_manifests(
    tmp_path: Path, hook: ModuleType, damage: object, reason: str
) -> None:
    """Each kind of damage at open has its reason, and none of them is an exception of another type."""
    path = write_private(tmp_path / "m.velo", damage(m.encode(example())))  # type: ignore[operator]

    with pytest.raises(hook.Unusable, match=reason):
        hook.Manifest(path, str(tmp_path), BUILD.identity())


def test_hook_refuses_other_builds_and_open_permissions(tmp_path: Path, hook: ModuleType) -> None:
    """A manifest of another build, or one that others may write, is not used."""
    path = write_private(tmp_path / "m.velo", m.encode(example()))

    with pytest.raises(hook.Unusable, match="build"):
        hook.Manifest(path, str(tmp_path), BUILD._replace(optimisation=1).identity())
    Path(path).chmod(0o666)
    with pytest.raises(hook.Unusable, match="owner"):
        hook.Manifest(path, str(tmp_path), BUILD.identity())


@settings(max_examples=300, deadline=None)
@given(st.integers(216, 4000), st.integers(0, 7))
def test_hook_survives_any_flipped_bit(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    """Whatever bit is flipped: the hook's reader misses or answers, and what it answers is checksummed."""
    import velo_import.hook.manifest as reader_module

    raw = bytearray(m.encode(example()))
    raw[at % len(raw)] ^= 1 << bit
    folder = tmp_path_factory.mktemp("flip")
    path = write_private(folder / "m.velo", bytes(raw))
    truth = m.decode(m.encode(example())).folders[0]
    try:
        reader = reader_module.Manifest(path, str(folder), BUILD.identity())
        block = reader.block(b"/p")
    except (reader_module.Unusable, IndexError, ValueError):
        return
    if block is not None:
        assert list(block.table) == [module.tail for module in truth.modules]


def test_candidates_follow_the_standard_finder() -> None:
    """Each name a listing offers gets the mask of its forms; dotted stems cannot be imported."""
    names = ["a.py", "a.abi3.so", "a", "b.pyc", "c.txt", "d.e.py", ".py", "f.cpython-312-x86_64-linux-gnu.so"]

    assert m.candidates(names, SUFFIXES) == {"a": 1 | 2 << 3 | 2 << 1, "b": 2 << 4, "f": 2}

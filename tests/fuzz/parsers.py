# SPDX-License-Identifier: Apache-2.0
"""The parsers of everything that Velo reads back from a disk, and what each of them promises.

For each: `parse`, which gives whether the bytes were accepted and fails if an accepted answer does not hold;
`refusals`, the only exceptions it may raise; `repair`, which puts the checksums right after a mutation, or
nothing behind them would ever be reached; and samples as the real writers write them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from struct import Struct
from types import SimpleNamespace
from typing import Any, NamedTuple

import cbor2
from blake3 import blake3

from tests.support.stores import BUILD, digest_of, payload, source
from tests.test_manifest_format import BUILD as MANIFEST_BUILD
from tests.test_manifest_format import example
from tests.test_node_format import index as example_index
from velo_import.errors import StoreCorrupt, VeloError
from velo_import.format import (
    blobindex,
    cbor,
    codec,
    contents,
    distributions,
    manifest,
    node,
    pack,
    references,
    root,
    tree,
)
from velo_import.hook import answers as hook_answers
from velo_import.hook import contents as hook_contents
from velo_import.hook import manifest as hook
from velo_import.hook import mapping
from velo_import.ingest import notes
from velo_import.ingest.node import notes as node_notes
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, open_pack


class Parser(NamedTuple):
    parse: Callable[[bytes], bool]
    refusals: tuple[type[Exception], ...]
    repair: Callable[[bytes], bytes]
    samples: Callable[[], Iterable[bytes]]


_SCRATCH = tempfile.TemporaryDirectory(prefix="velo-fuzz-")


def _scratch(name: str, data: bytes) -> Path:
    """The bytes as a file that only we can write."""
    path = Path(_SCRATCH.name) / name
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o444)
    return path


def _as_it_is(data: bytes) -> bytes:
    return data


def _put(data: bytes, at: int, what: bytes) -> bytes:
    return data[:at] + what + data[at + len(what) :]


# -- packs -----------------------------------------------------------------------------------------


def _parse_pack(data: bytes) -> bool:
    path = _scratch(f"{data[-48:-16].hex()}.pack", data)
    try:
        with open_pack(path) as file:
            for entry in file.entries:
                assert 0 < entry.offset <= entry.offset + entry.length <= len(data)
                try:
                    assert digest_of(file.read(entry)) == entry.digest
                except StoreCorrupt:
                    assert file.damaged(), "a payload cannot be read, and the pack is said to be sound"
            file.damaged()
    finally:
        path.unlink()
    return True


def _repair_pack(data: bytes) -> bytes:
    if len(data) < pack.HEADER.size + pack.TAIL.size:
        return data
    start = pack.TAIL.unpack(data[-pack.TAIL.size :])[1]
    data = _put(data, len(data) - pack.TAIL.size + 40, len(data).to_bytes(8, "little"))
    body = data[:64] + data[start : -pack.TAIL.size]
    return _put(data, len(data) - 48, blake3(body).digest())


def _sample_packs() -> Iterable[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "home", create=True)
        writer = PackWriter(store, label="demo-1.0", kind="bytecode", build=BUILD)
        for number in range(5):
            writer.add(payload(number), source=source(number))
        writer.add(payload(1), source=source(9))
        files = PackWriter(store, label="files", kind="content")
        small = PackWriter(store, label="cold", kind="content", compress=True)
        for each in (files, small):
            each.add(b"text " * 40)
            each.add(b"")
        for each in (writer, files, small):
            sealed = each.seal()
            assert sealed is not None
            yield sealed.path.read_bytes()


# -- manifests -------------------------------------------------------------------------------------


def _parse_manifest(data: bytes) -> bool:
    decoded = manifest.decode(data)
    for folder in decoded.folders:
        assert 0 <= folder.root < len(decoded.roots)
        for module in folder.modules:
            assert -1 <= module.file < len(decoded.files)
            assert -1 <= module.pack < len(decoded.packs)
    return True


def _parse_manifest_in_the_hook(data: bytes) -> bool:
    path = _scratch("m.velo", data)
    reader = hook.Manifest(str(path), _SCRATCH.name, MANIFEST_BUILD.identity())
    known = {folder.path.encode(): folder for folder in example().folders}
    for name in (*known, b"/p/app.py", b"/nowhere", b""):
        block = reader.block(name)
        if block is not None:
            reader.root(block.root)
            for place in block.table.values():
                assert len(block.records[place : place + hook.MODULE_WORDS]) == hook.MODULE_WORDS
    reader.prefix()
    for index in range(2):
        reader.pack(index)
    return True


def _parse_references(data: bytes) -> bool:
    found = references.references(lambda at, length: data[at : at + length], len(data))
    digests = {digest for step in found.steps for digest in step}
    try:
        decoded = manifest.decode(data)
    except StoreCorrupt:
        return True
    # What a program may be served must be protected.
    assert digests == {file.digest for file in decoded.files} - {manifest.NO_DIGEST}
    assert found.packs == [each.name for each in decoded.packs]
    return True


def _repair_manifest(data: bytes) -> bytes:
    if len(data) < manifest.TABLES_START:
        return data
    data = _put(data, 16, len(data).to_bytes(8, "little"))
    sections = {}
    for index, name in enumerate(manifest.SECTIONS):
        sections[name] = manifest.SECTION.unpack_from(data, 40 + 16 * index)
    blocks, _ = sections["blocks"]
    start, length = sections["folders"]
    table = data[start : start + min(length, 800)]
    for (place,) in Struct("<Q").iter_unpack(table[: len(table) // 8 * 8]):
        at = blocks + place - 1
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        if place and size >= manifest.BLOCK.size and at + size <= len(data):
            check = manifest.siphash(data[at + 8 : at + size])
            data = _put(data, at, check.to_bytes(8, "little"))
    end = int.from_bytes(data[32:40], "little")
    data = _put(data, 216, manifest.siphash(data[end:blocks]).to_bytes(8, "little"))
    return _put(data, 24, manifest.siphash(data[32:end]).to_bytes(8, "little"))


def _sample_manifests() -> Iterable[bytes]:
    yield manifest.encode(example())
    yield manifest.encode(example()._replace(folders=(), files=(), packs=()))


# -- distributions -----------------------------------------------------------------------------------

_IDENTITY = b"identity of seventeen"


def _parse_distributions(data: bytes) -> bool:
    table = distributions.decode_distributions(data)
    assert distributions.decode_distributions(distributions.encode_distributions(table)) == table
    return True


def _parse_distributions_in_the_hook(data: bytes) -> bool:
    path = str(_scratch("metadata.table", data))
    table = hook_answers.Table(path, _IDENTITY, mapping, None)
    for name in ("/environment", "/empty", "/absent"):
        found = table.root(name)
        for index in range(len(found.children) if found else 0):
            known = found.known(index)
            assert len(known.points) % 3 == 0
            assert "\0" not in known.source()
    return True


def _repair_distributions(data: bytes) -> bytes:
    if len(data) < distributions.HEADER.size:
        return data
    data = _put(data, 16, len(data).to_bytes(8, "little"))
    at = first = (distributions.HEADER.size + int.from_bytes(data[32:40], "little") + 7) // 8 * 8
    while at + distributions.ROOT.size <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        data = _put(data, at + 8, manifest.siphash(data[at + 16 : at + length]).to_bytes(8, "little"))
        at += max(length, 8)
    return _put(data, 24, manifest.siphash(data[32:first]).to_bytes(8, "little"))


def _sample_distributions() -> Iterable[bytes]:
    made = distributions.Distribution
    stamp, points = (1, -2, 3, 4), ("group", "name", "value", "group", "other", "v\udc80")
    any_size = (5, 6, 7, distributions.ANY_SIZE)
    found = (
        made("demo-1.dist-info", "demo", "Demo", "1", stamp, stamp, points),
        made("other-2.egg-info", "other", "", "", (0, 0, 0, 0), any_size, ()),
    )
    roots = [distributions.Root("/empty", 1, True, 1, 2, 3, ())]
    roots.append(distributions.Root("/environment", 0, False, -1, 2, 3, found))
    yield distributions.encode_distributions(distributions.Table(_IDENTITY, roots))
    yield distributions.encode_distributions(distributions.Table(_IDENTITY, ()))


# -- contents of distributions ---------------------------------------------------------------------


def _parse_contents(data: bytes) -> bool:
    table = contents.decode_contents(data)
    assert contents.decode_contents(contents.encode_contents(table)) == table
    return True


def _parse_contents_in_the_hook(data: bytes) -> bool:
    path = str(_scratch("contents.table", data))
    start, entry = hook_answers.START_OF_CONTENTS, hook_answers.ENTRY_SIZE
    mapped = hook_answers.mapped_table(path, start, _IDENTITY, mapping, entry)
    nothing = property(lambda self: None)
    answers: Any = SimpleNamespace(
        names={"Distribution": object},
        getters={"metadata": nothing, "files": nothing},
        stock_functions={},
        codes_of=hook_answers.Answers.codes_of,
    )
    table = hook_contents.Contents(answers, mapped)
    for kind in "MFTX":
        page = table.page(kind, "/site/demo-1.dist-info")
        if page is not None:
            assert (len(page.first), len(page.second)) == (4, 4)
            assert not any("\0" in text for text in page.texts)
    return True


def _repair_contents(data: bytes) -> bytes:
    if len(data) < contents.HEADER.size:
        return data
    data = _put(data, 16, len(data).to_bytes(8, "little"))
    identity_size, count = (int.from_bytes(data[at : at + 8], "little") for at in (32, 40))
    index = (contents.HEADER.size + identity_size + 7) // 8 * 8
    first = index + min(count, len(data)) * contents.ENTRY.size
    for at in range(index, min(first, len(data)) - contents.ENTRY.size + 1, contents.ENTRY.size):
        _, offset, length = contents.ENTRY.unpack_from(data, at)
        if first <= offset <= len(data) - 8:
            data = _put(
                data, offset, manifest.siphash(data[offset + 8 : offset + length]).to_bytes(8, "little")
            )
    return _put(data, 24, manifest.siphash(data[32:first]).to_bytes(8, "little"))


def _sample_contents() -> Iterable[bytes]:
    place, stamp, none = "/site/demo-1.dist-info", (1, -2, 3, 4), contents.NO_STAMP
    pages = [
        contents.Page("M", place, stamp, none, ("body", "Name", "demo", "Name", "v\udc80")),
        contents.Page("F", place, stamp, none, ("+demo/a.py", "sha256=x", "12", "-b.py", "", "")),
        contents.Page("T", place, (5, 6, 7, distributions.ANY_SIZE), stamp, ("+demo/a.py", "-b.py")),
        contents.Page("T", place + "x", stamp, none, ("=demo",)),
    ]
    yield contents.encode_contents(contents.Contents(_IDENTITY, pages))
    yield contents.encode_contents(contents.Contents(_IDENTITY, ()))


# -- everything else -------------------------------------------------------------------------------


def _parse_cbor(data: bytes) -> bool:
    assert cbor.encode(cbor.decode(data)) == data
    return True


def _parse_node(data: bytes) -> bool:
    node = tree.decode_node(data)
    for name in node:
        assert name not in (b"", b".", b"..")
        assert b"/" not in name
        assert b"\0" not in name
    assert tree.encode_node(node) == data
    return True


def _repair_cbor(data: bytes) -> bytes:
    try:
        return cbor2.dumps(cbor2.loads(data), canonical=True)
    except Exception:
        return data


def _sample_cbor() -> Iterable[bytes]:
    yield cbor.encode({"label": "demo-1.0", "build": BUILD, "optimisation": 0, "by": "velo 0.1.0"})
    yield cbor.encode({"a": [1, -1, 1.5, None, True, b"x"], "b": {"c": "ü"}, "n": 1 << 70})


def _sample_nodes() -> Iterable[bytes]:
    _, encoded = tree.build(
        [
            (b"a/b/c.py", tree.Entry(tree.FILE, bytes(32), 3)),
            (b"a/run", tree.Entry(tree.EXECUTABLE, bytes(32), 3, mtime_ns=-5)),
            (b"a/link", tree.Entry(tree.LINK, target=b"../x")),
            (b"\xff", tree.Entry(tree.FILE, b"\x01" * 32, 1 << 40)),
        ]
    )
    return encoded.values()


def _parse_root(data: bytes) -> bool:
    found = root.decode_root(data)
    assert all(len(each) == 32 for each in found.packs)
    assert all(len(each) == 32 for step in found.steps(2) for each in step)
    return True


def _repair_root(data: bytes) -> bytes:
    if len(data) < root.HEADER.size:
        return data
    _, _, length, packs, _, _ = root.HEADER.unpack_from(data)
    left = len(data) - root.HEADER.size - length - packs * 32
    if left >= 0:
        data = _put(data, 24, (left // 32).to_bytes(8, "little"))
    check = blake3(b"%d %d " % (length, packs) + data[root.HEADER.size :]).digest()
    return _put(data, 32, check)


def _parse_blob_index(data: bytes) -> bool:
    layout = blobindex.decode_header(data, len(data))
    view = memoryview(data)
    ids = blobindex.pack_ids(data, layout)
    for digest in (*_DIGESTS, bytes(32), b"\xff" * 32):
        place = blobindex.find(view, layout, digest)
        assert place is None or place.pack < len(ids)
    return True


_DIGESTS = sorted(digest_of(b"%d" % number) for number in range(9))


def _sample_indexes() -> Iterable[bytes]:
    places = [(digest, blobindex.Place(n % 2, 0, 2, 160 + n, 5, 5)) for n, digest in enumerate(_DIGESTS)]
    yield blobindex.encode([b"\1" * 32, b"\2" * 32], places)
    yield blobindex.encode([], [])


def _repair_index(data: bytes) -> bytes:
    if len(data) < blobindex.HEADER.size:
        return data
    data = _put(data, 16, len(data).to_bytes(8, "little"))
    packs = int.from_bytes(data[24:32], "little")
    table = data[blobindex.HEADER.size : blobindex.HEADER.size + packs * 32]
    return _put(data, 64, blake3(data[:64] + table).digest())


def _parse_frame(data: bytes) -> bool:
    size = int.from_bytes(data[:8], "little")
    assert len(codec.expanded(data[8:], pack.ZSTD, size)) == size
    return True


def _sample_frames() -> Iterable[bytes]:
    for content in (b"text " * 400, bytes(1 << 20)):
        frame = codec.compressed(content)
        assert frame is not None
        yield len(content).to_bytes(8, "little") + frame


def _parse_notes(data: bytes) -> bool:
    parsed = notes.parse_notes(data)
    assert all(name and origin.startswith("/") for name, origin in parsed.modules)
    return True


def _sample_notes() -> Iterable[bytes]:
    said = ["key=k", "executable=/p", "prefix=/e", "base_prefix=/b", "path=/e/lib/", "stdlib=/s"]
    said += [f"identity={MANIFEST_BUILD.identity().hex()}", "mark=0011223344556677", "module=a.b\t/e/a/b.py"]
    yield b"".join(each.encode() + b"\0" for each in ("velo-notes 1", *said))


_CORRUPT = (StoreCorrupt,)
# What the finder answers with "not ours".
_HOOK = (hook.Unusable, IndexError, ValueError)
_HOOK_ANSWERS = (hook_answers.Unusable, IndexError, ValueError)

# -- Node ------------------------------------------------------------------------------------------


def _parse_node_index(data: bytes) -> bool:
    index = node.decode_index(data)
    again = node.decode_index(node.encode(index))  # folders in order, which nobody asks for
    assert node.decode_index(node.encode(again)) == again
    assert sorted(again.files) == sorted(index.files)
    assert node.pack_names(data) == (index.subject, [each.name for each in index.packs])
    return True


def _repair_node_index(data: bytes) -> bytes:
    if len(data) < node.HEADER_SIZE:
        return data
    data = data[: len(data) // 8 * 8]
    data = _put(data, 16, len(data).to_bytes(4, "little"))
    # Of the kind that it says it has.
    check = node.checksum(data[32:], is_crc=int.from_bytes(data[28:32], "little") == node.CRC)
    return _put(data, 24, b"".join(half.to_bytes(4, "little") for half in check))


def _sample_node_indexes() -> Iterable[bytes]:
    yield node.encode(example_index())
    yield node.encode(example_index()._replace(is_crc=False))
    yield node.encode(example_index("/日本/😀.js"))


def _parse_node_notes(data: bytes) -> bool:
    path = _scratch("start-0123456789abcdef.1.notes", data)
    _scratch("start-0123456789abcdef.1.units", bytes(64))
    parsed = node_notes.read_notes(path)
    assert all(each.startswith("/") for each in (*parsed.files, *parsed.mains, *parsed.units))
    return node_notes.joined(parsed, parsed)._replace(units={}) == parsed._replace(
        marks=tuple(dict.fromkeys(parsed.marks)),
        mains=tuple(dict.fromkeys(parsed.mains)),
        files=tuple(dict.fromkeys(parsed.files)),
        requests=tuple(dict.fromkeys(parsed.requests)),
        units={},
    )


def _sample_node_notes() -> Iterable[bytes]:
    said = ["identity=node\nv22.1.0\nx64\n\n.js,.json,.node", "subject=/p", "executable=/usr/bin/node"]
    said += ["option=--max-old-space-size=99", "mark=0011223344556677", "main=/p/app", "file=/p/app.js"]
    said += ["request=/p/app.js\t./lib", "unit=0 32 /p/app.js"]
    yield b"".join(each.encode() + b"\0" for each in ("velo-node-notes 1", *said))


PARSERS = {
    "pack": Parser(_parse_pack, _CORRUPT, _repair_pack, _sample_packs),
    "manifest": Parser(_parse_manifest, _CORRUPT, _repair_manifest, _sample_manifests),
    "hook": Parser(
        _parse_manifest_in_the_hook, _HOOK, _repair_manifest, lambda: [manifest.encode(example())]
    ),
    "references": Parser(_parse_references, _CORRUPT, _repair_manifest, _sample_manifests),
    "cbor": Parser(_parse_cbor, _CORRUPT, _repair_cbor, _sample_cbor),
    "node": Parser(_parse_node, _CORRUPT, _repair_cbor, _sample_nodes),
    "root": Parser(
        _parse_root, _CORRUPT, _repair_root, lambda: [root.encode_root("/m", _DIGESTS[:2], _DIGESTS)]
    ),
    "index": Parser(_parse_blob_index, _CORRUPT, _repair_index, _sample_indexes),
    "frame": Parser(_parse_frame, _CORRUPT, _as_it_is, _sample_frames),
    "distributions": Parser(_parse_distributions, _CORRUPT, _repair_distributions, _sample_distributions),
    "hook-distributions": Parser(
        _parse_distributions_in_the_hook, _HOOK_ANSWERS, _repair_distributions, _sample_distributions
    ),
    "contents": Parser(_parse_contents, _CORRUPT, _repair_contents, _sample_contents),
    "hook-contents": Parser(_parse_contents_in_the_hook, _HOOK_ANSWERS, _repair_contents, _sample_contents),
    "notes": Parser(_parse_notes, (VeloError,), _as_it_is, _sample_notes),
    "node-index": Parser(_parse_node_index, _CORRUPT, _repair_node_index, _sample_node_indexes),
    "node-notes": Parser(_parse_node_notes, (VeloError, ValueError), _as_it_is, _sample_node_notes),
}

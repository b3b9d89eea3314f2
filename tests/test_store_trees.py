# SPDX-License-Identifier: Apache-2.0
"""Trees of manifests and folders, kept in a store and made into files again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.stores import digest_of, flip_bit, replace, small_disk, temporaries
from tests.support.trees import path_sets
from velo_import.errors import StoreCorrupt, StoreMissing, UsageFault, VeloError
from velo_import.format import manifest as m
from velo_import.format import tree as t
from velo_import.format.tree import Entry
from velo_import.host import materialise
from velo_import.host.materialise import Way
from velo_import.ingest.trees import tree_of_folder
from velo_import.store import names
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import Catalog
from velo_import.store.export import Exported, export
from velo_import.store.kept import keep, load
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter
from velo_import.store.reading import Reader
from velo_import.store.roots import needs, roots
from velo_import.store.trees import Grown, own_folders, tree_of_manifest

LARGE = bytes(range(256)) * 2048
MTIME = 1_600_000_000_123_456_789


@pytest.fixture
def reader(catalog: Catalog) -> Iterator[Reader]:
    with Reader(catalog) as reader:
        yield reader


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one of everything that a tree can hold."""
    source = tmp_path / "source"
    for name, content in {
        "app.py": b"print('hello')",
        "empty.txt": b"",
        "lib/large.bin": LARGE,
        "lib/same.bin": LARGE,
        "lib/pkg/__init__.py": b"",
        os.fsdecode(b"lib/\xff\xfe name\n.py"): b"odd = 1",
        "bin/tool": b"#!/bin/sh\n",
        "bin/large": LARGE + b"x",
    }.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(MTIME, MTIME))
    (source / "bin/tool").chmod(0o755)
    (source / "bin/large").chmod(0o700)
    (source / "nothing").mkdir()
    (source / "lib64").symlink_to("lib")
    (source / "broken").symlink_to("/no/such/place")
    return source


def stored(folder: Path, store: Store, catalog: Catalog, *, times: bool = False) -> Grown:
    """The tree of a folder, with its content in the store: small files packed, large ones loose."""
    writer = PackWriter(store, label="content:test", kind="content")
    loose = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            if path.stat().st_size < 4096:
                writer.add(path.read_bytes())
            else:
                loose.append(path)
    sealed = writer.seal()
    with catalog.write() as writing:
        if sealed is not None:
            writing.put_pack(sealed)
        for blob in Blobs(store).put_files(loose):
            writing.put_loose(blob.digest, blob.size)
    return tree_of_folder(str(folder), None, times=times)


def exported(
    tree: t.Tree, target: Path, store: Store, reader: Reader, way: Way = Way.CLONE
) -> tuple[Exported, list[tuple[int, int]]]:
    steps: list[tuple[int, int]] = []
    result = export(tree, target, store, reader, way=way, advance=lambda *step: steps.append(step))
    return result, steps


def listing(folder: Path) -> dict[str, tuple[str, object]]:
    """What a user can see of a folder, without times."""
    found: dict[str, tuple[str, object]] = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            seen: tuple[str, object] = ("link", os.readlink(path))
        elif path.is_dir():
            seen = ("folder", None)
        else:
            seen = ("program" if path.stat().st_mode & 0o111 else "file", path.read_bytes())
        found[str(path.relative_to(folder))] = seen
    return found


# -- of a folder -----------------------------------------------------------------------------------


def test_equal_folders_have_equal_ids(source: Path, tmp_path: Path) -> None:
    """Made in another order, at another time, with other modes and owners' bits: the same id."""
    twin = tmp_path / "elsewhere" / "twin"
    for name in sorted(listing(source), reverse=True):
        path = twin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_symlink():
            path.symlink_to(os.readlink(source / name))
        elif (source / name).is_dir():
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes((source / name).read_bytes())
            path.chmod(0o711 if name.startswith("bin/") else 0o600)
    (twin / "lib" / "__pycache__").mkdir()
    (twin / "lib" / "__pycache__" / "x.pyc").write_bytes(b"not part of it")

    assert tree_of_folder(str(twin), None) == tree_of_folder(str(source), None)
    assert tree_of_folder(str(source), None).tree.root == tree_of_folder(f"{source}/", None).tree.root
    first, second = (tree_of_folder(str(each), None, times=True).tree.root for each in (source, twin))
    assert first != second, "times count when they are asked for"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "app.py").write_bytes(b"print('hellO')"),
        lambda folder: (folder / "app.py").chmod(0o755),
        lambda folder: (folder / "app.py").rename(folder / "App.py"),
        lambda folder: (folder / "nothing").rmdir(),
        lambda folder: ((folder / "lib64").unlink(), (folder / "lib64").symlink_to("./lib")),
        lambda folder: ((folder / "lib64").unlink(), (folder / "lib64").mkdir()),
    ],
    ids=["content", "executable", "name", "empty folder", "link", "kind"],
)
def test_every_change_changes_the_id(source: Path, change: object) -> None:
    before = tree_of_folder(str(source), None).tree
    change(source)  # type: ignore[operator]
    after = tree_of_folder(str(source), None).tree

    assert before.root != after.root
    assert list(t.diff(before, after))


def test_what_has_no_content_is_named(source: Path) -> None:
    """Pipes and sockets are no part of a tree, and nobody has to guess which."""
    os.mkfifo(source / "pipe")

    assert tree_of_folder(str(source), None).left_out == [str(source / "pipe")]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, source: Path) -> None:
    for path in (tmp_path / "none", source / "app.py"):
        with pytest.raises(VeloError, match=f"cannot read {path}"):
            tree_of_folder(str(path), None)


# -- of a manifest ---------------------------------------------------------------------------------

BUILD = m.Build("cpython-312", bytes.fromhex("cb0d0d0a"), 0, "", (".py",))


def manifest_of(paths: Mapping[str, m.FileRecord | None], roots: Mapping[str, int]) -> m.Manifest:
    """A manifest of these paths; None is a folder."""
    folder = m.FileRecord("", m.NO_DIGEST, 4096, 1, 2, 3, 0o40755, m.DIRECTORY)
    files = [(record or folder)._replace(path=path) for path, record in paths.items()]
    return m.Manifest(
        BUILD, "/venv", [m.RootRecord(path, kind, 0, 1, 2, 3) for path, kind in roots.items()], [], files, []
    )


def file(content: bytes = b"x", flags: int = 0, link: str = "") -> m.FileRecord:
    return m.FileRecord("", digest_of(content), len(content), 7, 8, 9, 0o100644, flags, link)


LINK = m.FileRecord("", m.NO_DIGEST, 0, 0, 0, 0, 0o120777, m.SYMBOLIC_LINK, "lib")
VENV = {
    "/usr/lib/python3.12": None,
    "/usr/lib/python3.12/os.py": file(),
    "/usr/lib/python3.12/site-packages": None,
    "/usr/lib/python3.12/site-packages/a.py": file(),
    "/venv": None,
    "/venv/bin": None,
    "/venv/bin/python": file(b"interpreter", m.SYMBOLIC_LINK | m.EXECUTABLE, "/usr/bin/python3"),
    "/venv/lib": None,
    "/venv/lib/a.py": file(b"a"),
    "/venv/lib/run": file(b"run", m.EXECUTABLE),
    "/venv/lib64": LINK,
    "/venv/lib64/a.py": file(b"seen through the link"),
    "/venv/lib64/deep/er/a.py": file(b"seen through the link"),
    "/venv/secret": m.FileRecord("", m.NO_DIGEST, 4, 1, 2, 3, 0o100600, 0),
    "/venv-other": None,
}
ROOTS = {"/usr/lib/python3.12": m.STDLIB, "/usr/lib/python3.12/site-packages": m.SITE, "/venv/lib": m.SITE}


def test_tree_of_a_manifest_says_what_its_vnodes_say() -> None:
    """Links as they were written, nothing twice behind them, and what has no content is named."""
    grown = tree_of_manifest(manifest_of(VENV, ROOTS), "/venv")

    assert {path: entry for path, entry in t.walk(grown.tree) if entry.kind != t.FOLDER} == {
        b"bin/python": Entry(t.LINK, target=b"/usr/bin/python3"),
        b"lib/a.py": Entry(t.FILE, digest_of(b"a"), 1),
        b"lib/run": Entry(t.EXECUTABLE, digest_of(b"run"), 3),
        b"lib64": Entry(t.LINK, target=b"lib"),
    }
    assert grown.left_out == ["/venv/secret"]
    times = tree_of_manifest(manifest_of(VENV, ROOTS), "/venv/lib", times=True).tree
    assert [entry.mtime_ns for _, entry in t.walk(times)] == [7, 7]


def test_own_folders_are_the_topmost_ones_without_the_standard_library() -> None:
    assert own_folders(manifest_of(VENV, ROOTS)) == [
        "/usr/lib/python3.12/site-packages",
        "/venv",
        "/venv-other",
    ]


def test_a_link_without_its_text_is_the_file_behind_it() -> None:
    """What learning notes has no text; the content is what the program saw."""
    record = file(b"content", m.SYMBOLIC_LINK)
    grown = tree_of_manifest(manifest_of({"/p/a.py": record}, {}), "/p")

    assert dict(t.walk(grown.tree)) == {b"a.py": Entry(t.FILE, digest_of(b"content"), 7)}


def test_a_manifest_with_hostile_paths_gives_no_tree() -> None:
    for path in ("/p/../../etc/passwd", "/p//a", "/p/./a"):
        with pytest.raises(StoreCorrupt):
            tree_of_manifest(manifest_of({path: file()}, {}), "/p")


# -- export ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", Way)
def test_what_was_stored_comes_out_again(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader, way: Way
) -> None:
    """Bytes, names, links, empty folders, executable bits and, where the tree has them, times."""
    grown = stored(source, store, catalog, times=True)
    target = tmp_path / "new" / "export"
    result, steps = exported(grown.tree, target, store, reader, way)

    assert listing(target) == listing(source)
    assert tree_of_folder(str(target), None).tree == tree_of_folder(str(source), None).tree
    assert (result.folders, result.files, result.links) == (4, 8, 2)
    assert result.bytes == sum(
        len(each) for kind, each in listing(source).values() if kind in ("file", "program")
    )  # type: ignore[arg-type]
    assert result.written == 5
    assert result.hardlinked + result.cloned + result.copied == 3
    assert result.hardlinked == (3 if way is Way.HARDLINK else 0)
    assert steps[-1] == (14, 14)
    linked = {"lib/large.bin", "bin/large"} if way is Way.HARDLINK else set()
    for name in ("app.py", "lib/large.bin", "bin/large"):
        assert name in linked or (target / name).stat().st_mtime_ns == MTIME
    assert [path.name for path in target.parent.iterdir()] == ["export"]


def test_exported_files_are_the_users_own(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """Writing to them does not reach the store; the modes follow the umask."""
    grown = stored(source, store, catalog)
    old = os.umask(0o027)
    try:
        exported(grown.tree, tmp_path / "export", store, reader)
    finally:
        os.umask(old)
    modes = {
        name: stat.S_IMODE((tmp_path / "export" / name).stat().st_mode)
        for name in ("app.py", "bin/large", "lib")
    }
    assert modes == {"app.py": 0o640, "bin/large": 0o750, "lib": 0o750}
    for path in (tmp_path / "export").rglob("*"):
        if path.is_file():
            path.write_bytes(b"mine now")
    exported(grown.tree, tmp_path / "again", store, reader)

    assert listing(tmp_path / "again") == listing(source)


def test_clones_are_verified_where_they_lie(
    source: Path,
    tmp_path: Path,
    store: Store,
    catalog: Catalog,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a file system made of a clone is read and hashed, not what it was made from."""
    grown = stored(source, store, catalog, times=True)

    def clone(original: int, copy: int, spoil: bytes = b"") -> bool:
        os.write(copy, os.pread(original, 1 << 30, 0) + spoil)
        return True

    monkeypatch.setattr(materialise, "clone", clone)
    result, _ = exported(grown.tree, tmp_path / "export", store, reader)
    assert (result.cloned, result.copied) == (3, 0)
    assert tree_of_folder(str(tmp_path / "export"), None, times=True).tree == grown.tree

    monkeypatch.setattr(materialise, "clone", partial(clone, spoil=b"!"))
    with pytest.raises(StoreCorrupt):
        exported(grown.tree, tmp_path / "spoilt", store, reader)
    assert not (tmp_path / "spoilt").exists()


def test_hard_links_are_read_only_and_share_the_disk(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """One inode with the store, which nobody may write; other files are read-only for likeness."""
    grown = stored(source, store, catalog)
    exported(grown.tree, tmp_path / "export", store, reader, Way.HARDLINK)

    linked = (tmp_path / "export" / "lib/large.bin").stat()
    assert os.path.samestat(linked, store.loose_path(digest_of(LARGE)).stat())
    for path in (tmp_path / "export").rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o222 == 0
    assert (tmp_path / "export" / "bin/large").stat().st_mode & 0o111 == 0o111


def test_executables_are_linked_to_an_inode_of_their_own(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """Made once, whole and verified; kept while somebody links to it, a left-over afterwards."""
    grown = stored(source, store, catalog)
    for name in ("one", "two"):
        exported(grown.tree, tmp_path / name, store, reader, Way.HARDLINK)
    twin = store.executable_path(digest_of(LARGE + b"x"))

    assert os.path.samestat(twin.stat(), (tmp_path / "one" / "bin/large").stat())
    assert (twin.stat().st_nlink, stat.S_IMODE(twin.stat().st_mode)) == (3, 0o555)
    assert not store.loose_path(digest_of(LARGE + b"x")).stat().st_mode & 0o111
    assert temporaries(store.home) == []
    assert store.remove_leftovers(older_than=-10) == 0
    for name in ("one", "two"):
        (tmp_path / name / "bin/large").unlink()
    assert store.remove_leftovers() == 0, "an export may be about to link to it"
    assert store.remove_leftovers(older_than=-10) == 1
    assert not twin.exists()


def test_no_executable_is_made_of_damaged_content_or_in_a_store_that_is_read_only(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """There the file is copied, and damage is found as ever."""
    grown = stored(source, store, catalog)
    readonly = Store.open(store.home, readonly=True)
    result, _ = exported(grown.tree, tmp_path / "export", readonly, reader, Way.HARDLINK)
    assert (result.hardlinked, result.cloned + result.copied) == (2, 1)
    assert listing(tmp_path / "export") == listing(source)

    blob = store.loose_path(digest_of(LARGE + b"x"))
    flip_bit(blob, 9)
    with pytest.raises(StoreCorrupt, match=str(blob)):
        exported(grown.tree, tmp_path / "again", store, reader, Way.HARDLINK)
    assert not store.executables.exists()
    assert temporaries(store.home) == []


def test_a_damaged_executable_is_made_again_once_it_has_gone(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """It is refused like any content; `velo verify` puts it aside."""
    grown = stored(source, store, catalog)
    exported(grown.tree, tmp_path / "one", store, reader, Way.HARDLINK)
    twin = store.executable_path(digest_of(LARGE + b"x"))
    flip_bit(twin, 9)
    twin.chmod(0o555)

    with pytest.raises(StoreCorrupt, match=str(twin)):
        exported(grown.tree, tmp_path / "two", store, reader, Way.HARDLINK)
    twin.unlink()
    exported(grown.tree, tmp_path / "two", store, reader, Way.HARDLINK)
    assert listing(tmp_path / "two") == listing(source)


def test_a_blob_that_may_be_written_is_not_linked(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    grown = stored(source, store, catalog)
    store.loose_path(digest_of(LARGE)).chmod(0o644)

    result, _ = exported(grown.tree, tmp_path / "export", store, reader, Way.HARDLINK)

    assert (result.hardlinked, result.cloned + result.copied) == (1, 2)
    assert listing(tmp_path / "export") == listing(source)


def test_another_disk_gets_copies(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """Hard links and clones end where a file system ends; content does not."""
    grown = stored(source, store, catalog)
    with small_disk(tmp_path / "disk", "8m") as disk:
        for way in Way:
            result, _ = exported(grown.tree, disk / way.value, store, reader, way)
            assert (result.hardlinked, result.cloned, result.copied) == (0, 0, 3)
            assert listing(disk / way.value) == listing(source)


def test_a_full_disk_leaves_nothing(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """An error with a hint, before anything is written or in the middle of it."""
    grown = stored(source, store, catalog)
    with small_disk(tmp_path / "disk", "1m") as disk:
        for way, message in ((Way.COPY, "has no room for"), (Way.CLONE, "no space left")):
            with pytest.raises(VeloError, match=message) as caught:
                exported(grown.tree, disk / "export", store, reader, way)
            assert caught.value.hint
            assert list(disk.iterdir()) == []


def test_an_empty_folder_is_filled_where_it_is(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """It may be a mount point; a failed export empties it again."""
    grown = stored(source, store, catalog)
    target = tmp_path / "volume"
    target.mkdir()
    inode = target.stat().st_ino
    exported(grown.tree, target, store, reader)

    assert listing(target) == listing(source)
    assert target.stat().st_ino == inode

    other = tmp_path / "other"
    other.mkdir()
    flip_bit(store.loose_path(digest_of(LARGE)), 5)
    with pytest.raises(StoreCorrupt):
        exported(grown.tree, other, store, reader)
    assert list(other.iterdir()) == []


def test_what_is_in_the_way_is_left_alone(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """A folder with something in it, a file, the store itself."""
    grown = stored(source, store, catalog)
    before = listing(source)
    for target in (source, source / "app.py", source / "app.py" / "below", store.home / "export"):
        with pytest.raises(VeloError) as caught:
            exported(grown.tree, target, store, reader)
        assert caught.value.hint
    assert listing(source) == before
    assert not (store.home / "export").exists()


@pytest.mark.parametrize("place", ["loose", "packed"])
def test_damaged_content_is_never_exported(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader, place: str
) -> None:
    """Whichever way it would have gone: StoreCorrupt, and no folder at all."""
    grown = stored(source, store, catalog)
    if place == "loose":
        path = store.loose_path(digest_of(LARGE))
        damaged = bytearray(LARGE)
        damaged[-1] ^= 1
        replace(path, bytes(damaged))
        path.chmod(0o444)
    else:
        assert reader.missing([digest_of(b"odd = 1")]) == set()
        (path,) = store.packs.rglob("*.pack")
        flip_bit(path, path.read_bytes().index(b"odd = 1"))
    for way in Way:
        with pytest.raises((StoreCorrupt, StoreMissing)):
            exported(grown.tree, tmp_path / "export", store, reader, way)
        assert not (tmp_path / "export").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "source"]


def test_missing_content_is_named_before_anything_is_made(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    grown = stored(source, store, catalog)
    store.loose_path(digest_of(LARGE)).unlink()

    with pytest.raises(StoreMissing, match=r"content of 1 files, lib/large\.bin the first"):
        exported(grown.tree, tmp_path / "export", store, reader)
    assert not (tmp_path / "export").exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=path_sets(), way=st.sampled_from(Way))
def test_whatever_the_tree_it_comes_out_as_it_is(
    tmp_path: Path, store: Store, catalog: Catalog, paths: dict[bytes, Entry], way: Way
) -> None:
    """Any names, links and shapes: what was made has the id of the tree."""
    contents = [b"one", b"second"]
    chosen = {path: contents[entry.size % 2] for path, entry in paths.items() if entry.digest}
    entries = {
        path: entry._replace(digest=digest_of(chosen[path]), size=len(chosen[path]))
        if path in chosen
        else entry
        for path, entry in paths.items()
    }
    with PackWriter(store, label="content:test", kind="content") as writer:
        for content in contents:
            writer.add(content)
        sealed = writer.seal()
    assert sealed is not None
    with catalog.write() as writing:
        writing.put_pack(sealed)
    tree = t.build(entries.items())[0]
    target = tmp_path / os.urandom(8).hex()
    with Reader(catalog) as reader:
        exported(tree, target, store, reader, way)

    assert tree_of_folder(str(target), None).tree == tree


def test_hostile_links_do_not_lead_an_export_astray(
    tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """A link to a folder outside, and then a file below that very name: no tree can say so."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "evil").write_bytes(b"evil")
    content = stored(tmp_path / "source", store, catalog).tree.nodes
    evil = next(iter(content.values()))[b"evil"]
    link = Entry(t.LINK, target=os.fsencode(outside))

    with pytest.raises(StoreCorrupt):
        t.build([(b"x", link), (b"x/evil", evil)])
    for name in (b"../outside/evil", b"x/../../outside/evil"):
        hostile = t.Tree(b"root", {b"root": {b"x": link, name: evil}})
        with pytest.raises((StoreCorrupt, OSError)):
            exported(hostile, tmp_path / "export", store, reader)
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "export").exists()


def test_a_name_that_leads_out_is_refused_by_the_last_step_too(tmp_path: Path) -> None:
    """Names are checked when nodes are read; should one get through, no file is made through a link."""
    (tmp_path / "outside").mkdir()
    with materialise.new_folder(tmp_path / "export") as root:
        materialise.make_link(root, b"x", os.fsencode(tmp_path / "outside"))
        with pytest.raises(FileExistsError):
            materialise.make_folder(root, b"x")
        with pytest.raises(FileExistsError):
            materialise.make_file(root, b"x", b"evil", 0o666, None)
        materialise.make_link(root, b"y", os.fsencode(tmp_path / "outside" / "new"))
        with pytest.raises(FileExistsError):
            materialise.make_file(root, b"y", b"evil", 0o666, None)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_tree_that_lies_about_sizes_is_refused(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """The size is part of what was promised, also when the content is right."""
    stored(source, store, catalog)
    for content in (LARGE, b"odd = 1"):
        lie = t.build([(b"a", Entry(t.FILE, digest_of(content), len(content) - 1))])[0]
        with pytest.raises(StoreCorrupt, match="bytes and not"):
            exported(lie, tmp_path / "export", store, reader)


# -- kept trees ------------------------------------------------------------------------------------


def test_a_kept_tree_outlives_its_folder(
    source: Path, tmp_path: Path, store: Store, catalog: Catalog, reader: Reader
) -> None:
    """Its nodes are in the store, and a root protects them and all content."""
    grown = stored(source, store, catalog)
    keep(grown, catalog, reader)
    keep(grown, catalog, reader)

    with Reader(catalog) as anew:
        again = load(grown.tree.root, anew)
        exported(again, tmp_path / "export", store, anew)
    assert again == grown.tree
    assert listing(tmp_path / "export") == listing(source)
    (root,) = roots(store)
    assert root.name == f"tree:{grown.tree.root.hex()}"
    with needs(root) as (_, steps):
        protected = {digest for step in steps for digest in step}
    assert protected == {*grown.encoded, *map(digest_of, (b"", LARGE, LARGE + b"x"))} | {
        digest_of(path.read_bytes()) for path in source.rglob("*.py")
    } | {digest_of((source / "bin/tool").read_bytes())}


def test_half_a_tree_is_not_kept(source: Path, store: Store, catalog: Catalog, reader: Reader) -> None:
    grown = stored(source, store, catalog)
    store.loose_path(digest_of(LARGE)).unlink()
    packs = set(store.packs.rglob("*.pack"))

    with pytest.raises(StoreMissing):
        keep(grown, catalog, reader)
    assert set(store.packs.rglob("*.pack")) == packs
    assert roots(store) == []


def test_what_is_no_tree_is_refused(source: Path, store: Store, catalog: Catalog, reader: Reader) -> None:
    """Content of a file under a tree's name, and a digest that nobody has."""
    stored(source, store, catalog)
    with pytest.raises(StoreCorrupt):
        load(digest_of(b"odd = 1"), reader)
    with pytest.raises(StoreMissing):
        load(bytes(32), reader)


# -- names -----------------------------------------------------------------------------------------

DIGESTS = [bytes.fromhex(start.ljust(64, "0")) for start in ("aabbccdd1", "aabbccdd23", "aabbccdd24", "ff")]


def among(digits: str) -> list[bytes]:
    return [digest for digest in DIGESTS if digest.hex().startswith(digits)]


def test_prefixes_mean_one_digest_or_are_refused() -> None:
    """Like git: any unambiguous prefix will do, upper case too, with or without the kind."""
    assert names.resolve("tree:aabbccdd1", "tree", among) == DIGESTS[0]
    assert names.resolve("AABBCCDD23", "tree", among) == DIGESTS[1]
    assert names.resolve(f"tree:{DIGESTS[3].hex()}", "tree", among) == DIGESTS[3]
    for text, message in {
        "tree:aabbccdd": "is ambiguous",
        "tree:aabbccdd2": "is ambiguous",
        "tree:0123456789": "no tree begins with 0123456789",
        "tree:aabbccd": "has 7 digits",
        "tree:" + "a" * 65: "has 65 digits",
        "tree:": "not a tree",
        "tree:hello123": "not a tree",
        "blob:aabbccdd1": "not a tree",
    }.items():
        with pytest.raises(UsageFault, match=message) as caught:
            names.resolve(text, "tree", among)
        assert caught.value.hint


def test_ambiguous_names_say_what_they_may_be() -> None:
    with pytest.raises(UsageFault) as caught:
        names.resolve("tree:aabbccdd", "tree", among)
    assert "tree:aabbccdd1000, tree:aabbccdd2300, tree:aabbccdd2400" in caught.value.hint


def test_digests_are_shown_as_short_as_they_may_be() -> None:
    """Eight digits, or as many as it takes; what is shown can be typed."""
    shown = [names.shortened(digest, among) for digest in DIGESTS]

    assert shown == ["aabbccdd1", "aabbccdd23", "aabbccdd24", "ff000000"]
    assert [names.resolve(text, "blob", among) for text in shown] == DIGESTS


def test_the_catalogue_knows_prefixes(source: Path, store: Store, catalog: Catalog) -> None:
    stored(source, store, catalog)
    digest = digest_of(LARGE)

    assert catalog.digests_with(digest.hex()[:9]) == [digest]
    assert catalog.digests_with(digest.hex()) == [digest]
    assert catalog.digests_with("0" * 63) == catalog.digests_with("f" * 63) == []
    assert len(catalog.digests_with("")) == 6

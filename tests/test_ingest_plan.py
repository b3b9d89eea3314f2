# SPDX-License-Identifier: Apache-2.0
"""What has to be done, decided from plain data: no disk, no clock."""

from __future__ import annotations

import pytest

from velo_import.format.manifest import (
    DEFER,
    DIRECTORY,
    IS_FOLDER,
    IS_SYMLINK,
    NEVER,
    NO_DIGEST,
    ROOT_ONLY,
    SITE,
    STAT,
    STDLIB,
    SYMBOLIC_LINK,
    TREE,
    Build,
    FileRecord,
    Manifest,
    ModuleRecord,
    PackRecord,
    decode,
    encode,
)
from velo_import.host.filesystems import named
from velo_import.ingest.distributions import label_of, tree_label
from velo_import.ingest.plan import (
    SOURCE_LIMIT,
    Code,
    Draft,
    Plan,
    assemble,
    carry_over,
    default_check,
    draft_of,
    file_record,
    keep_content,
    only_folders,
    plan_ingest,
    with_other,
)
from velo_import.ingest.scan import Area, FileEntry, Folder, Scan

BUILD = Build("cpython-312", b"\xcb\r\r\n", 0, "", (".cpython-312-x.so", ".abi3.so", ".so", ".py", ".pyc"))
PY, PYC, SO = 3, 4, 2  # Indices of suffixes.
PACK = PackRecord("ab/abc.pack", "stdlib", 100, 1, 2, 3)


def entry(name: str, size: int = 10, mtime: int = 1, is_link: bool = False) -> FileEntry:
    return FileEntry(name, size, mtime, mtime + 1, hash(name) & 0xFFFF, 0o100644, is_link)


def folder(
    path: str, *names: str | FileEntry, area: int = 0, importable: bool = True, **more: object
) -> Folder:
    """A listing; a name that ends in `/` is a folder."""
    files = tuple(name if isinstance(name, FileEntry) else entry(name) for name in names if name[-1:] != "/")
    folders = tuple(name[:-1] for name in names if isinstance(name, str) and name.endswith("/"))
    made = Folder(path, 5, 6, 7, 0o40755, files, folders, (), (), area, importable)
    return made._replace(**more)


def scanned(*folders: Folder, areas: tuple[Area, ...] = (Area("/site", SITE),)) -> Scan:
    return Scan(areas, folders, (), (), 0)


def planned(found: Scan, known: Draft | None = None, **options: object) -> Plan:
    checks = {area.path: STAT for area in found.areas}
    return plan_ingest(found, known or Draft.empty(), BUILD, checks=checks, **options)


def served(path: str, entry: FileEntry) -> Draft:
    """What is known after a source was hashed and compiled."""
    draft = Draft.empty()
    draft.files[path] = file_record(path, entry, b"d" * 32)
    draft.codes[path] = Code(PACK, 160, 40, 1, 2)
    return draft


def modules_of(plan: Plan, path: str) -> dict[str, tuple[int, int, int, str]]:
    return {module.tail: module[1:] for module in plan.draft.folders[path].modules}


def test_a_listing_says_what_each_name_offers():
    plan = planned(
        scanned(
            folder("/site", "a.py", "b.so", "b.py", "pkg/", "both/", "both.py", "old.pyc", "README"),
            folder("/site/pkg", "__init__.py"),
        )
    )

    assert modules_of(plan, "/site") == {
        "a": (2 << PY, 0, PY, "/site/a.py"),
        "b": (2 << SO | 2 << PY, 0, SO, "/site/b.so"),  # The extension module wins, as in Python.
        "pkg": (1, IS_FOLDER, -1, ""),
        "both": (1 | 2 << PY, IS_FOLDER, PY, "/site/both.py"),
        "old": (2 << PYC, 0, PYC, "/site/old.pyc"),
        "README": (1, 0, -1, ""),
    }
    assert modules_of(plan, "/site/pkg") == {"__init__": (2 << PY, 0, PY, "/site/pkg/__init__.py")}
    assert set(plan.uncompiled) == {"/site/a.py", "/site/both.py", "/site/pkg/__init__.py"}


def test_what_only_looks_like_a_module_is_left_to_python():
    plan = planned(
        scanned(folder("/site", "x.py/", links=("linked",), others=("dead.py",)), folder("/site/x.py"))
    )

    modules = modules_of(plan, "/site")
    assert modules["x"] == (2 << PY, DEFER, PY, "")
    assert modules["dead"] == (2 << PY, DEFER, PY, "")
    assert modules["linked"] == (1, IS_FOLDER | IS_SYMLINK, -1, "")


def test_bytecode_without_source_is_left_to_python():
    manifest = assemble(planned(scanned(folder("/site", "old.pyc"))).draft, BUILD, "/env")

    (module,) = manifest.folders[0].modules
    assert module.flags & DEFER and module.pack == -1


def test_only_module_files_are_recorded_where_content_is_not_wanted():
    plan = planned(scanned(folder("/site", "a.py", "b.so", "data.txt")))

    assert set(plan.draft.files) == {"/site", "/site/a.py", "/site/b.so"}
    assert [(item.path, item.is_content) for item in plan.unread] == [("/site/a.py", False)]
    assert plan.content == {}


def test_all_files_are_kept_where_content_is_wanted():
    found = scanned(
        folder("/env", "pyvenv.cfg", importable=False),
        folder("/env/site", "a.py", "data.txt", area=1),
        areas=(Area("/env", None), Area("/env/site", SITE)),
    )

    plan = planned(found, content_below="/env")

    assert set(plan.content) == {"/env/pyvenv.cfg", "/env/site/a.py", "/env/site/data.txt"}
    assert set(plan.draft.folders) == {"/env/site"}
    assert set(plan.draft.roots) == {"/env/site"}


def test_a_folder_beside_the_target_is_not_in_it():
    found = scanned(folder("/envoy", "a.py"), areas=(Area("/envoy", TREE),))

    assert planned(found, content_below="/env").content == {}


@pytest.mark.parametrize(
    "name", [".env", ".env.production", "id_ed25519", "server.key", "cert.pem", ".netrc"]
)
def test_secrets_of_a_project_are_not_copied(name):
    project = scanned(folder("/app", name, "app.py"), areas=(Area("/app", TREE),))
    installed = scanned(folder("/site", name, "app.py"))

    plan = planned(project, content_below="/app")

    assert set(plan.content) == {"/app/app.py"} and plan.secrets == [f"/app/{name}"]
    # What a package brings is no secret: certifi's certificates are called cacert.pem.
    assert f"/site/{name}" in planned(installed, content_below="/site").content


def test_a_file_with_the_same_stamp_is_not_read_again():
    found = scanned(folder("/site", "a.py"))

    plan = planned(found, served("/site/a.py", entry("a.py")))

    assert plan.unread == () and plan.uncompiled == {}
    assert plan.draft.codes["/site/a.py"].offset == 160


@pytest.mark.parametrize("field", ["size", "mtime_ns", "ctime_ns", "ino"])
def test_a_file_with_any_other_stamp_is_read_and_compiled_again(field):
    known = served("/site/a.py", entry("a.py")._replace(**{field: 99}))

    plan = planned(scanned(folder("/site", "a.py")), known)

    assert [item.path for item in plan.unread] == ["/site/a.py"]
    assert set(plan.uncompiled) == {"/site/a.py"} and not plan.draft.codes


def test_force_believes_no_stamp():
    plan = planned(scanned(folder("/site", "a.py")), served("/site/a.py", entry("a.py")), force=True)

    assert [item.path for item in plan.unread] == ["/site/a.py"]


def test_bytecode_that_was_lost_is_made_again():
    known = served("/site/a.py", entry("a.py"))
    known.codes.clear()

    plan = planned(scanned(folder("/site", "a.py")), known)

    assert set(plan.uncompiled) == {"/site/a.py"} and len(plan.unread) == 1


def test_a_source_that_cannot_be_served_is_not_tried_again_until_it_changes():
    known = served("/site/a.py", entry("a.py"))
    known.codes.clear()
    known.deferred.add("/site/a.py")

    unchanged = planned(scanned(folder("/site", "a.py")), known)
    changed = planned(scanned(folder("/site", entry("a.py", mtime=9))), known)

    assert unchanged.unread == () and unchanged.draft.deferred == {"/site/a.py"}
    assert set(changed.uncompiled) == {"/site/a.py"} and not changed.draft.deferred


def test_learning_compiles_only_what_is_wanted():
    found = scanned(folder("/site", "a.py", "b.py"))

    plan = planned(found, wanted=["/site/b.py"])

    assert set(plan.uncompiled) == {"/site/b.py"}
    assert set(plan.draft.files) == {"/site", "/site/a.py", "/site/b.py"}


def test_a_source_of_five_gigabytes_is_content_and_no_module():
    plan = planned(scanned(folder("/site", entry("a.py", size=SOURCE_LIMIT + 1))), content_below="/site")

    assert plan.uncompiled == {} and plan.draft.deferred == {"/site/a.py"}
    assert [item.is_source for item in plan.unread] == [False]


def whole() -> Draft:
    found = scanned(folder("/site", "a.py", "pkg/"), folder("/site/pkg", "__init__.py", "b.py"))
    draft = planned(found, content_below="/site").draft
    for path in ("/site/a.py", "/site/pkg/b.py"):
        draft.codes[path] = Code(PACK, 160, 40, 1, 2)
    draft.deferred.add("/site/pkg/__init__.py")
    return draft


def test_a_draft_survives_being_published():
    draft = whole()

    again = draft_of(decode(encode(assemble(draft, BUILD, "/env"))))

    assert again == draft


def test_one_draft_always_gives_the_same_bytes():
    draft = whole()
    shuffled = draft._replace(
        folders=dict(reversed(draft.folders.items())), files=dict(reversed(draft.files.items()))
    )

    assert encode(assemble(draft, BUILD, "/env")) == encode(assemble(shuffled, BUILD, "/env"))


def test_bytecode_in_a_pack_that_has_gone_is_forgotten():
    manifest = decode(encode(assemble(whole(), BUILD, "/env")))

    assert draft_of(manifest, []).codes == {}


def test_a_file_that_could_not_be_read_leaves_its_name_in_the_table():
    draft = whole()
    del draft.files["/site/a.py"], draft.codes["/site/a.py"]

    manifest = assemble(draft, BUILD, "/env")

    module = next(module for module in manifest.folders[0].modules if module.tail == "a")
    assert module == ModuleRecord("a", 2 << PY, 0, PY)


def test_other_roots_of_an_environment_are_carried_over():
    previous = whole()
    draft = planned(scanned(folder("/app", "main.py"), areas=(Area("/app", TREE),))).draft

    carry_over(draft, previous, ["/app"], ["/site", "/app"])

    assert set(draft.roots) == {"/app", "/site"}
    assert set(draft.folders) == {"/app", "/site", "/site/pkg"}
    assert draft.codes == previous.codes and draft.deferred == previous.deferred
    assert isinstance(assemble(draft, BUILD, "/env"), Manifest)


def test_a_root_that_has_gone_is_not_carried_over():
    draft = Draft.empty()

    carry_over(draft, whole(), [], [])

    assert draft == Draft.empty()


def test_what_was_scanned_is_not_carried_over():
    draft = Draft.empty()

    carry_over(draft, whole(), ["/site"], ["/site"])

    assert draft == Draft.empty()


def test_content_of_an_earlier_ingest_is_kept_while_it_is_unchanged():
    """/site was ingested with all of its files; now /app is, and /site is only its search path."""
    first = scanned(folder("/site", "a.py", "data.txt", "old.txt", "gone.txt", "pkg.dist-info/"))
    info = folder("/site/pkg.dist-info", "METADATA", importable=False)
    previous = planned(first._replace(folders=(*first.folders, info)), content_below="/site").draft
    for path, record in list(previous.files.items()):
        if record.digest == NO_DIGEST and not record.flags & DIRECTORY:
            previous.files[path] = record._replace(digest=b"\1" * 32)
    link = FileRecord("/site/lib", NO_DIGEST, 0, 0, 0, 0, 0o120777, SYMBOLIC_LINK, "pkg")
    previous.files[link.path] = link
    now = scanned(
        folder("/site", "a.py", "data.txt", entry("old.txt", mtime=9), "new.txt", links=("lib",)),
        folder("/app", "data.txt", area=1),
        areas=(Area("/site", SITE), Area("/app", TREE)),
    )
    now = now._replace(folders=(*now.folders, info))
    draft = planned(now, previous, content_below="/app").draft

    keep_content(draft, previous, now, "/app")

    kept = {path: record.digest != NO_DIGEST for path, record in draft.files.items() if path[:5] == "/site"}
    assert kept == {
        "/site": False,
        "/site/a.py": True,
        "/site/data.txt": True,
        "/site/old.txt": False,
        "/site/lib": False,
        "/site/pkg.dist-info": False,
        "/site/pkg.dist-info/METADATA": True,
    }
    assert draft.files["/site/old.txt"].mtime_ns == 9
    assert draft.files["/site/lib"] == link
    assert "/app/data.txt" in draft.files


def test_of_two_drafts_the_one_with_bytecode_counts():
    old, new = served("/site/a.py", entry("a.py")), served("/site/a.py", entry("a.py", mtime=9))
    old.codes["/site/a.py"] = Code(PACK, 1, 1, 1, 1)

    both = with_other(old, new)

    assert both.files["/site/a.py"].mtime_ns == 9 and both.codes["/site/a.py"].offset == 160


def test_a_part_of_a_draft_refers_to_nothing_outside_of_it():
    draft = whole()

    part = only_folders(draft, {"/site/pkg": draft.folders["/site/pkg"]})

    assert set(part.files) == {"/site/pkg", "/site/pkg/__init__.py", "/site/pkg/b.py"}
    assert set(part.codes) == {"/site/pkg/b.py"}
    assert len(assemble(part, BUILD, "/env").folders) == 1


@pytest.mark.parametrize(
    ("filesystem", "stdlib", "site", "tree"),
    [
        ("ext4", STAT, STAT, STAT),
        ("nfs4", ROOT_ONLY, ROOT_ONLY, STAT),
        ("squashfs", NEVER, NEVER, NEVER),
        ("overlay", STAT, STAT, STAT),
    ],
)
def test_the_default_check_follows_the_file_system(filesystem, stdlib, site, tree):
    place = named(filesystem)

    assert [default_check(kind, place) for kind in (STDLIB, SITE, TREE)] == [stdlib, site, tree]


def test_labels_are_one_for_every_spelling_of_a_distribution():
    assert label_of("Foo_Bar.baz-1.2.post1.dist-info") == "foo-bar-baz-1.2.post1"
    assert label_of("strange.dist-info") == "strange"
    assert tree_label("/home/me/secret-project").startswith("tree:")
    assert "secret" not in tree_label("/home/me/secret-project")

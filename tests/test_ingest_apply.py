# SPDX-License-Identifier: Apache-2.0
"""Ingesting whole folders: what is published, what is read again, and trees and disks that misbehave."""

from __future__ import annotations

import errno
import marshal
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.interpreters import Interpreter
from tests.support.tree import Tree, make_environment
from velo_import.errors import StoreLocked, VeloError
from velo_import.format.manifest import (
    DEFER,
    IS_SYMLINK,
    KIND_NAMES,
    Manifest,
    ModuleRecord,
    decode,
    siphash,
)
from velo_import.host.locks import exclusive
from velo_import.ingest import apply, codes, content, ingest, scan
from velo_import.ingest.apply import IngestSummary
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.reading import Reader


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def environment(python: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment; its standard library is left out, because compiling it would take seconds."""
    monkeypatch.setattr(apply, "areas_of", _without_stdlib(apply.areas_of))
    return python.parents[1]


def _without_stdlib(areas_of: Callable[..., tuple[apply.Area, ...]]) -> Callable[..., tuple[apply.Area, ...]]:
    return lambda *given: tuple(area for area in areas_of(*given) if area.kind != KIND_NAMES.index("stdlib"))


COMPILE_UNCHECKED = """
import py_compile, sys
py_compile.compile(sys.argv[1], invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


def published(summary: IngestSummary) -> Manifest:
    return decode(Path(summary.manifest).read_bytes())


def module(manifest: Manifest, path: Path) -> ModuleRecord:
    """The record of one source or folder in its folder's table."""
    folder = next(folder for folder in manifest.folders if folder.path == str(path.parent))
    return next(module for module in folder.modules if module.tail == path.name.partition(".")[0])


def code_of(store: Store, manifest: Manifest, path: Path) -> bytes:
    record = module(manifest, path)
    data = (store.packs / manifest.packs[record.pack].name).read_bytes()
    return data[record.offset : record.offset + record.length]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file that is read for its content."""
    seen: list[str] = []
    real = content.read_steadily

    def note(path: str, *rest: object, **more: object) -> object:
        seen.append(path)
        return real(path, *rest, **more)

    monkeypatch.setattr(content, "read_steadily", note)
    monkeypatch.setattr(codes, "read_steadily", note)
    return seen


def test_everything_in_an_environment_is_stored_and_compiled(environment, site_packages, store):
    site_packages.write(
        {"pkg/__init__.py": "", "pkg/a.py": "x = 1\n", "pkg/data.json": "{}", "b.py": "y = 2\n"}
    )

    summary = ingest(environment, store=store)

    manifest = published(summary)
    assert summary.modules == 3 and summary.compiled == 3 and not summary.unchanged
    assert {"pkg/a.py", "pkg/data.json", "b.py"} <= {
        os.path.relpath(record.path, site_packages.folder) for record in manifest.files
    }
    with Catalog.open(store) as catalog:
        digests = {record.digest for record in manifest.files if not record.flags & 1}
        assert catalog.has_blobs(digests) == digests
    for name in ("pkg/a.py", "b.py"):
        record = module(manifest, site_packages / name)
        payload = code_of(store, manifest, site_packages / name)
        assert record.bytecode_check == siphash(payload)
        assert record.source_check == siphash((site_packages / name).read_bytes())


def test_the_bytecode_is_that_of_the_environments_own_python(environment, site_packages, store, python):
    site_packages.write({"a.py": "import sys\nprint(sys.version_info[:2], __debug__)\n"})
    summary = ingest(environment, store=store, optimisation=1)
    payload = code_of(store, published(summary), site_packages / "a.py")

    out = subprocess.run(
        [python, "-c", "import marshal, sys; exec(marshal.loads(sys.stdin.buffer.read()))"],
        input=payload,
        capture_output=True,
        check=True,
    ).stdout.decode()

    assert out.endswith("False\n")


def test_an_unchanged_tree_publishes_and_reads_nothing(environment, site_packages, store, reads):
    site_packages.write({"pkg/__init__.py": "", "pkg/a.py": "x = 1\n"})
    first = ingest(environment, store=store)
    before = {path: os.stat(path) for path in store.home.rglob("*") if path.is_file()}
    reads.clear()

    second = ingest(environment, store=store)

    assert second.unchanged and reads == []
    assert (second.files, second.modules, second.blobs) == (first.files, first.modules, first.blobs)
    assert second.new_blobs == second.compiled == 0
    changed = {str(path) for path, status in before.items() if os.stat(path)[:10] != status[:10]}
    assert not changed & {str(path) for path in before if path.suffix in (".velo", ".pack", ".code")}


def test_a_changed_file_is_the_only_one_read_again(environment, site_packages, store, reads):
    site_packages.write({f"pkg/m{number}.py": f"x = {number}\n" for number in range(20)})
    ingest(environment, store=store)
    site_packages.write({"pkg/m3.py": "x = 'new'\n"})
    reads.clear()

    summary = ingest(environment, store=store)

    assert set(reads) == {str(site_packages / "pkg/m3.py")}
    assert summary.compiled == 1 and summary.modules == 20 and summary.new_blobs == 1
    payload = code_of(store, published(summary), site_packages / "pkg/m3.py")
    assert b"new" in payload


def test_a_deleted_file_is_gone_from_the_manifest(environment, site_packages, store):
    site_packages.write({"a.py": "", "b.py": ""})
    ingest(environment, store=store)
    site_packages.write({"b.py": None})

    manifest = published(ingest(environment, store=store))

    assert not [record for record in manifest.files if record.path.endswith("b.py")]


def test_a_second_environment_with_the_same_packages_compiles_and_stores_nothing(
    environment, site_packages, store, tmp_path, interpreter, base_python
):
    files = {f"pkg/m{number}.py": f"x = {number}\n" for number in range(5)}
    site_packages.write({**files, "pkg-1.0.dist-info/RECORD": "".join(f"{name},,\n" for name in files)})
    first = published(ingest(environment, store=store))
    twin = make_environment(tmp_path / "twin", interpreter, base_python).parents[1]
    Tree(twin / interpreter.library / "site-packages").write(files)

    summary = ingest(twin, store=store)

    assert summary.compiled == 0 and summary.reused == 5
    assert summary.new_bytes < summary.bytes
    assert published(summary).packs == first.packs
    assert [pack.label for pack in first.packs] == ["pkg-1.0"]


def test_the_users_tree_is_left_as_it_was(environment, site_packages, store):
    site_packages.write({"pkg/__init__.py": "", "pkg/a.py": "x = 1\n", "big.bin": b"x" * 400_000})
    before = Tree(environment).listing()

    ingest(environment, store=store)

    assert Tree(environment).listing() == before
    assert all(path.lstat().st_nlink == 1 for path in environment.rglob("*") if path.is_file())


def test_bytecode_that_python_has_cached_is_taken_over(environment, site_packages, store, python):
    site_packages.write({"a.py": "x = 1\n", "b.py": "x = 2\n"})
    subprocess.run([python, "-m", "py_compile", site_packages / "a.py"], check=True)

    summary = ingest(environment, store=store)

    assert (summary.taken_over, summary.compiled) == (1, 1)


def test_a_stale_cached_file_is_not_taken_over(environment, site_packages, store, python):
    site_packages.write({"a.py": "x = 'old'\n"})
    subprocess.run([python, "-m", "py_compile", site_packages / "a.py"], check=True)
    site_packages.write_unnoticed("a.py", "x = 'new'\n")

    summary = ingest(environment, store=store)

    assert summary.taken_over == 0
    assert b"new" in code_of(store, published(summary), site_packages / "a.py")


def test_a_module_whose_cached_file_python_does_not_check_is_left_to_python(
    environment, site_packages, store, python
):
    site_packages.write({"a.py": "x = 'old'\n"})
    subprocess.run([python, "-c", COMPILE_UNCHECKED, site_packages / "a.py"], check=True)

    record = module(published(ingest(environment, store=store)), site_packages / "a.py")

    assert record.flags & DEFER and record.pack == -1


def test_also_when_the_store_has_bytecode_for_its_source(environment, site_packages, store, python, tmp_path):
    site_packages.write({"a.py": "x = 'same'\n"})
    ingest(environment, store=store)
    site_packages.write({"b.py": "x = 'same'\n"})
    subprocess.run([python, "-c", COMPILE_UNCHECKED, site_packages / "b.py"], check=True)

    manifest = published(ingest(environment, store=store))

    assert module(manifest, site_packages / "a.py").pack >= 0
    assert module(manifest, site_packages / "b.py").flags & DEFER


def test_a_source_that_does_not_compile_is_left_to_python(environment, site_packages, store):
    site_packages.write({"bad.py": "def\n", "good.py": "x = 1\n"})

    summary = ingest(environment, store=store)

    assert summary.deferred == 1
    assert module(published(summary), site_packages / "bad.py").flags & DEFER
    assert module(published(summary), site_packages / "good.py").pack >= 0


def test_odd_names_links_pipes_and_empty_files_are_no_obstacle(environment, site_packages, store):
    site_packages.write({"real.py": "x = 1\n", "empty.py": "", "pkg/__init__.py": ""})
    (site_packages / "alias.py").symlink_to("real.py")
    (site_packages / "pkg" / "loop").symlink_to(site_packages.folder)
    (site_packages / "dead.py").symlink_to("nowhere")
    os.mkfifo(site_packages / "pipe")
    odd = os.fsencode(site_packages.folder) + b"/m\xff.py"
    with open(odd, "wb") as file:
        file.write(b"x = 3\n")

    manifest = published(ingest(environment, store=store))

    assert module(manifest, site_packages / "alias.py").flags & IS_SYMLINK
    assert module(manifest, site_packages / "alias.py").pack >= 0
    assert module(manifest, site_packages / "dead.py").flags & DEFER
    assert code_of(store, manifest, site_packages / "empty.py")
    assert odd in {os.fsencode(record.path) for record in manifest.files}
    assert not [record for record in manifest.files if "/loop/" in record.path]


def test_a_large_file_is_a_blob_of_its_own(environment, site_packages, store):
    site_packages.write(
        {"big.bin": b"a" * (content.LOOSE_FROM + 1), "twin.bin": b"a" * (content.LOOSE_FROM + 1)}
    )

    summary = ingest(environment, store=store)

    big = next(record for record in published(summary).files if record.path.endswith("big.bin"))
    assert Blobs(store).read(big.digest) == b"a" * (content.LOOSE_FROM + 1)
    assert summary.bytes - summary.new_bytes >= content.LOOSE_FROM


@pytest.mark.slow
def test_a_file_of_five_gigabytes(environment, site_packages, store):
    with open(site_packages / "huge.bin", "wb") as file:
        file.truncate(5 << 30)

    summary = ingest(environment, store=store)

    huge = next(record for record in published(summary).files if record.path.endswith("huge.bin"))
    assert huge.size == 5 << 30 and summary.bytes >= 5 << 30


def test_a_source_edited_while_it_is_read_is_read_again(environment, site_packages, store, monkeypatch):
    site_packages.write({"a.py": "x = 'old'\n"})
    real = content.read_whole

    def edit_first(descriptor: int) -> bytes:
        data = real(descriptor)
        if data == b"x = 'old'\n":
            site_packages.write({"a.py": "x = 'newer'\n"})
        return data

    monkeypatch.setattr(content, "read_whole", edit_first)
    summary = ingest(environment, store=store)

    assert summary.changed_during == []
    assert b"newer" in code_of(store, published(summary), site_packages / "a.py")
    status = os.stat(site_packages / "a.py")
    record = next(record for record in published(summary).files if record.path.endswith("a.py"))
    assert (record.mtime_ns, record.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)


def test_a_log_that_somebody_writes_costs_nothing_else(environment, site_packages, store, monkeypatch):
    """Not its folder, not what is below; the next ingest takes it in if it is at rest."""
    site_packages.write({"trace.py": "x = 0\n", "b.py": "y = 1\n", "pkg/__init__.py": ""})
    real = scan.scan

    def scribble(seconds: float) -> None:
        time.sleep(seconds)
        site_packages.write({"trace.py": f"x = {time.time_ns()}\n"})

    def look(*arguments: object, **options: object) -> scan.Scan:
        scribble(0)
        return real(*arguments, **options, sleep=scribble)

    monkeypatch.setattr(apply, "scan", look)
    summary = ingest(environment, store=store)

    assert summary.changed_during == [str(site_packages / "trace.py")]
    assert module(published(summary), site_packages / "trace.py").pack == -1
    assert not any(record.path.endswith("trace.py") for record in published(summary).files)
    for served in ("b.py", "pkg/__init__.py"):
        assert module(published(summary), site_packages / served).pack >= 0

    monkeypatch.setattr(apply, "scan", real)
    again = ingest(environment, store=store)
    assert not again.changed_during
    assert module(published(again), site_packages / "trace.py").pack >= 0


def test_a_file_that_never_holds_still_is_reported(environment, site_packages, store, monkeypatch):
    site_packages.write({"a.py": "x = 0\n", "b.py": "y = 1\n"})
    real = content.read_whole

    def always_edit(descriptor: int) -> bytes:
        data = real(descriptor)
        if data.startswith(b"x"):
            site_packages.write({"a.py": f"x = {time.time_ns()}\n"})
        return data

    monkeypatch.setattr(content, "read_whole", always_edit)
    summary = ingest(environment, store=store)

    assert summary.changed_during == [str(site_packages / "a.py")]
    assert module(published(summary), site_packages / "a.py").pack == -1
    assert module(published(summary), site_packages / "b.py").pack >= 0
    monkeypatch.undo()
    monkeypatch.setattr(apply, "areas_of", _without_stdlib(apply.areas_of))
    assert not ingest(environment, store=store).unchanged


def test_a_file_that_cannot_be_read_is_reported(environment, site_packages, store, monkeypatch):
    site_packages.write({"a.py": "x = 0\n", "b.py": "y = 1\n"})
    real = content.open_quietly

    def refuse(path: str) -> int:
        if path.endswith("a.py"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(content, "open_quietly", refuse)
    summary = ingest(environment, store=store)

    assert summary.unreadable == [(str(site_packages / "a.py"), "Permission denied")]
    assert module(published(summary), site_packages / "b.py").pack >= 0


def test_stamps_are_never_fresher_than_a_tick(environment, site_packages, store):
    """A stamp taken within one tick of a write could not tell the next write from none."""
    site_packages.write({"a.py": "x = 1\n"})

    manifest = published(ingest(environment, store=store))

    now = time.time_ns()
    assert all(record.ctime_ns < now - 50_000_000 for record in manifest.files)


def test_a_project_is_added_to_what_its_environment_has_already(
    environment, site_packages, store, tmp_path, python
):
    site_packages.write({"a.py": "x = 1\n"})
    ingest(environment, store=store)
    project = Tree(tmp_path / "project").write({"app.py": "y = 1\n", ".env": "SECRET=1\n", "lib/m.py": ""})

    summary = ingest(project.folder, python=str(python), store=store)

    manifest = published(summary)
    assert module(manifest, site_packages / "a.py").pack >= 0
    assert module(manifest, project / "app.py").pack >= 0
    assert {root.path for root in manifest.roots} >= {str(site_packages.folder), str(project.folder)}
    assert summary.excluded == 1
    assert ingest(project.folder, python=str(python), store=store).unchanged
    assert ingest(environment, store=store).unchanged


def test_a_root_that_was_removed_leaves_the_manifest(environment, site_packages, store, tmp_path, python):
    project = Tree(tmp_path / "project").write({"app.py": "y = 1\n"})
    ingest(project.folder, python=str(python), store=store)
    project.write({"app.py": None})
    project.folder.rmdir()
    site_packages.write({"a.py": "x = 1\n"})

    manifest = published(ingest(environment, store=store))

    assert str(project.folder) not in {root.path for root in manifest.roots}


def test_the_manifest_is_also_put_where_it_is_asked_for(environment, site_packages, store, tmp_path):
    site_packages.write({"a.py": "x = 1\n"})
    output = tmp_path / "out" / "app.velo"

    summary = ingest(environment, store=store, output=output)

    assert output.read_bytes() == Path(summary.manifest).read_bytes()
    output.unlink()
    assert ingest(environment, store=store, output=output).unchanged
    assert output.exists()


def test_a_store_inside_the_project_is_not_ingested_into_itself(environment, tmp_path, python):
    project = Tree(tmp_path / "project").write({"app.py": "y = 1\n"})
    store = Store.open(project / "cache", create=True)

    summary = ingest(project.folder, python=str(python), store=store)

    assert not [record for record in published(summary).files if "cache/" in record.path]
    assert ingest(project.folder, python=str(python), store=store).unchanged


@pytest.mark.parametrize("loss", ["pack", "content", "manifest", "catalogue", "blob", "cut", "hook"])
def test_what_the_store_has_lost_is_made_again(environment, site_packages, store, loss):
    site_packages.write({"a.py": "x = 1\n", "small.txt": "small", "big.bin": b"b" * 300_000})
    first = published(ingest(environment, store=store))
    bytecode = {store.packs / pack.name for pack in first.packs}
    if loss == "cut":
        for path in store.loose.rglob("*"):
            if path.is_file():
                path.chmod(0o600)
                os.truncate(path, 7)
    for path in {
        "pack": [store.packs / first.packs[0].name],
        "content": [path for path in store.packs.glob("*/*.pack") if path not in bytecode],
        "cut": [],
        "hook": list(store.run.glob("hook/*.code")),
        "manifest": list(store.manifests.glob("*/base.velo")),
        "catalogue": list(store.catalogue.iterdir()),
        "blob": [path for path in store.loose.rglob("*") if path.is_file()],
    }[loss]:
        path.unlink()

    summary = ingest(environment, store=store)

    manifest = published(summary)
    assert list(store.run.glob("hook/*.code"))
    assert module(manifest, site_packages / "a.py").pack >= 0
    assert code_of(store, manifest, site_packages / "a.py")
    big = next(record for record in manifest.files if record.path.endswith("big.bin"))
    assert Blobs(store).read(big.digest) == b"b" * 300_000
    with Catalog.open(store) as catalog, Reader(catalog) as reader:
        small = next(record for record in manifest.files if record.path.endswith("small.txt"))
        assert reader.read(small.digest) == b"small"
    assert ingest(environment, store=store).unchanged


def test_a_damaged_manifest_is_replaced(environment, site_packages, store):
    site_packages.write({"a.py": "x = 1\n"})
    path = Path(ingest(environment, store=store).manifest)
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[: len(data) // 2])

    ingest(environment, store=store)

    assert path.read_bytes() == data


def test_two_ingests_of_one_environment_take_turns(environment, site_packages, store):
    site_packages.write({f"m{number}.py": f"x = {number}\n" for number in range(50)})
    summaries: list[IngestSummary] = []
    threads = [
        threading.Thread(target=lambda: summaries.append(ingest(environment, store=store))) for _ in range(1)
    ]
    other = subprocess.Popen(
        [sys.executable, "-c", _INGEST, str(environment), str(store.home)],
        cwd=Path(__file__).parents[1],
        stderr=subprocess.PIPE,
    )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _, complaint = other.communicate(timeout=60)

    assert other.returncode == 0, complaint
    assert len(summaries) == 1
    assert module(published(summaries[0]), site_packages / "m7.py").pack >= 0


_INGEST = """
import sys
from pathlib import Path
from velo_import.format.manifest import STDLIB
from velo_import.ingest import apply
from velo_import.store.layout import Store
from velo_import.store.reading import Reader
real = apply.areas_of
apply.areas_of = lambda *given: tuple(area for area in real(*given) if area.kind != STDLIB)
apply.ingest(Path(sys.argv[1]), store=Store.open(Path(sys.argv[2])))
"""


def test_an_environment_that_stays_locked_is_an_error(environment, site_packages, store, monkeypatch):
    site_packages.write({"a.py": "x = 1\n"})
    key = ingest(environment, store=store).key
    site_packages.write({"a.py": "x = 2\n"})
    monkeypatch.setattr(apply, "LOCK_PATIENCE", 0.1)

    with exclusive(store.run / f"{key}.lock"), pytest.raises(StoreLocked) as refusal:
        ingest(environment, store=store)

    assert refusal.value.hint


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_is_an_error_and_nothing_is_published(
    environment, site_packages, store, monkeypatch, code
):
    site_packages.write({"a.py": "x = 1\n"})
    before = Path(ingest(environment, store=store).manifest).read_bytes()
    site_packages.write({"a.py": "x = 2\n", "b-1.dist-info/METADATA": "Name: b\nVersion: 1\n"})
    children = psutil.Process().children()

    def refuse(*given: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("velo_import.store.packs.write_all", refuse)
    with pytest.raises(VeloError) as refusal:
        ingest(environment, store=store)

    assert refusal.value.hint
    (manifest,) = store.manifests.glob("*/base.velo")
    assert manifest.read_bytes() == before
    assert psutil.Process().children() == children  # Nobody still looks for what is installed.
    assert not [path for path in store.home.rglob(".tmp-*") if path.is_file()]


def test_a_read_only_store_is_refused(environment, store):
    with pytest.raises(VeloError, match="read-only"):
        ingest(environment, store=Store(store.home, readonly=True))


def test_dying_at_any_moment_leaves_what_was_published(environment, site_packages, store):
    """kill -9 in the middle: the next ingest finds a sound store, and programs an old or a new manifest."""
    site_packages.write({f"m{number}.py": f"x = {number}\n" for number in range(200)})
    for delay in (0.15, 0.3, 0.45):
        process = subprocess.Popen(
            [sys.executable, "-c", _INGEST, str(environment), str(store.home)],
            cwd=Path(__file__).parents[1],
            stderr=subprocess.DEVNULL,
        )
        time.sleep(delay)
        process.kill()
        process.wait()
        for path in store.manifests.glob("*/*.velo"):
            decode(path.read_bytes())

    summary = ingest(environment, store=store)

    manifest = published(summary)
    assert all(module(manifest, site_packages / f"m{number}.py").pack >= 0 for number in range(200))
    code = code_of(store, manifest, site_packages / "m7.py")
    if sys.implementation.cache_tag in manifest.build.cache_tag:
        assert marshal.loads(code).co_filename.endswith("m7.py")


def test_progress_is_told_phase_by_phase(environment, site_packages, store):
    site_packages.write({f"m{number}.py": f"x = {number}\n" for number in range(30)})
    steps: list[apply.Progress] = []

    summary = ingest(environment, store=store, progress=steps.append)

    last = {step.phase: step for step in steps}
    assert list(last) == ["scan", "plan", "store", "bytecode", "publish"]
    assert last["store"].done == last["store"].total >= 30
    assert last["bytecode"].done == last["bytecode"].total == 30
    assert set(summary.phases) >= {"scan", "plan", "store", "bytecode", "publish"}


def test_many_small_changes_do_not_make_many_packs(environment, site_packages, store):
    """Each pack costs a start some system calls, so a distribution's packs are merged when they are many."""
    for number in range(8):
        site_packages.write({f"m{number}.py": f"x = {number}\n"})
        manifest = published(ingest(environment, store=store))

    assert len(manifest.packs) <= codes.MOST_PACKS
    assert all(code_of(store, manifest, site_packages / f"m{number}.py") for number in range(8))
    again = published(ingest(environment, store=store, force=True))
    assert len(again.packs) <= codes.MOST_PACKS


@pytest.mark.core
def test_the_standard_library_comes_with_its_environment(
    python, site_packages, store, interpreter: Interpreter
):
    summary = ingest(python.parents[1], store=store)

    manifest = published(summary)
    stdlib = next(root.path for root in manifest.roots if KIND_NAMES[root.kind] == "stdlib")
    record = module(manifest, Path(stdlib) / "json" / "__init__.py")
    assert record.pack >= 0 and manifest.packs[record.pack].label.startswith("stdlib-")
    # Its files are the interpreter's, not the environment's: they are compiled and not copied.
    assert all(
        not record.path.startswith(stdlib) or record.path.endswith((".py", ".so", ".pyc")) or record.flags & 1
        for record in manifest.files
    )
    assert not summary.unreadable and not summary.changed_during

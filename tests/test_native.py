# SPDX-License-Identifier: Apache-2.0
"""The native half of the hook and its Python twin: the same answers; then sanitizers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from velo_import.hook import mapping as twin

SOURCE = Path(__file__).parents[1] / "velo_import" / "_native" / "core.c"
COMPILER = shutil.which(os.environ.get("CC", "cc"))


def compiled(folder: Path, *flags: str) -> Path:
    """core.c as an extension module in `folder`, every warning an error."""
    if COMPILER is None:
        pytest.skip("needs a C compiler")
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").exists():
        pytest.skip("needs the headers of Python")
    target = folder / "core.abi3.so"
    command = [COMPILER, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{include}", *flags]
    subprocess.run([*command, str(SOURCE), "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The native functions as the hook loads them."""
    saved = twin.map_file, twin.is_unchanged, twin.take_lock, twin.watch
    assert twin.use_native(str(compiled(tmp_path_factory.mktemp("native"), "-O2")))
    loaded = SimpleNamespace(
        map_file=twin.map_file,
        is_unchanged=twin.is_unchanged,
        take_lock=twin.take_lock,
        watch=twin.watch,
    )
    twin.map_file, twin.is_unchanged, twin.take_lock, twin.watch = saved
    return loaded


@pytest.fixture(params=["native", "twin"])
def core(request: pytest.FixtureRequest) -> object:
    """Each of the two bodies of one interface."""
    return twin if request.param == "twin" else request.getfixturevalue("native")


def open_descriptors() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if _is_open(n)}


def _is_open(number: str) -> bool:
    try:
        os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("content", [b"", b"x", b"velo" * 5000])
def test_a_mapped_file_has_its_bytes_and_stamp(core, tmp_path, content) -> None:
    """The buffer is the file, the numbers are those of stat, and no descriptor stays behind."""
    path = tmp_path / "file"
    path.write_bytes(content)

    mapped, stamp = core.map_file(os.fsencode(path))

    status = path.stat()
    assert bytes(memoryview(mapped)) == content
    assert stamp == (
        status.st_uid,
        status.st_mode,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )
    assert str(path) not in open_descriptors()
    assert memoryview(mapped).readonly


def test_what_is_not_a_plain_file_is_refused_at_once(core, tmp_path) -> None:
    """Missing, folder, link, pipe and device: OSError, and nobody waits for a writer."""
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")

    for name in ("missing", ".", "link", "pipe"):
        with pytest.raises(OSError):
            core.map_file(os.fsencode(tmp_path / name))
    with pytest.raises(OSError):
        core.map_file(b"/dev/zero")
    with pytest.raises(ValueError):
        core.map_file(os.fsencode(tmp_path / "file") + b"\0hidden")


def test_a_map_outlives_its_file_and_its_forgetting(core, tmp_path) -> None:
    """Unlinked and given back to the kernel, the bytes are still those of the file."""
    path = tmp_path / "file"
    path.write_bytes(b"velo" * 5000)
    mapped, _ = core.map_file(os.fsencode(path))
    view = memoryview(mapped)
    path.unlink()

    getattr(mapped, "forget", twin.nothing)()

    assert bytes(view) == b"velo" * 5000


def test_unchanged_means_every_part_of_the_stamp(core, tmp_path) -> None:
    """True for the same stamp, False for another size or no file, None where the content must be asked."""
    path = tmp_path / "file"
    path.write_bytes(b"velo")
    status = path.stat()
    size, mtime, ctime, ino = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

    assert core.is_unchanged(str(path), size, mtime, ctime, ino) is True
    assert core.is_unchanged(str(path), -1, mtime, ctime, ino) is True
    assert core.is_unchanged(str(path), size + 1, mtime, ctime, ino) is False
    assert core.is_unchanged(str(path), size, mtime + 1, ctime, ino) is None
    assert core.is_unchanged(str(path), size, mtime, ctime - 1, ino) is None
    assert core.is_unchanged(str(path), -1, mtime, ctime, ino + 1) is None
    assert core.is_unchanged(str(tmp_path / "missing"), -1, mtime, ctime, ino) is False
    with pytest.raises(ValueError):
        core.is_unchanged(str(path) + "\0", size, mtime, ctime, ino)


def test_times_before_1970_and_odd_names(core, tmp_path) -> None:
    """Negative times and names that are not UTF-8 are times and names."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    Path(path).write_bytes(b"x")
    os.utime(path, ns=(-5_000_000_123, -5_000_000_123))
    status = os.stat(path)

    assert core.map_file(os.fsencode(path))[1][3] == -5_000_000_123
    assert core.is_unchanged(path, 1, -5_000_000_123, status.st_ctime_ns, status.st_ino) is True


def test_a_lock_is_taken_once_and_not_inherited(core, tmp_path) -> None:
    """The second taker is told at once; the descriptor is closed on exec."""
    path = os.fsencode(tmp_path / "lock")
    first = core.take_lock(path)
    try:
        assert not os.get_inheritable(first)
        assert os.stat(path).st_mode & 0o777 == 0o600
        with pytest.raises(BlockingIOError):
            core.take_lock(path)
        other = os.open(path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(other)
    finally:
        os.close(first)
    os.close(core.take_lock(path))


def test_native_under_sanitizers(tmp_path) -> None:
    """Every path through core.c, errors included, without a finding of AddressSanitizer or UBSan."""
    compiled(tmp_path, "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    runtime = subprocess.run(
        [str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("needs the runtime of AddressSanitizer")
    script = """
import os, sys
sys.path.insert(0, sys.argv[1])
import core
path = os.path.join(sys.argv[1], "file").encode()
for content in (b"", b"x" * 100_000):
    with open(path, "wb") as file:
        file.write(content)
    for _ in range(50):
        mapped, stamp = core.map_file(path)
        view = memoryview(mapped)
        mapped.forget()
        assert bytes(view) == content
        del mapped
        view.release()
        core.is_unchanged(path.decode(), *stamp[2:])
for wrong in (b"/missing/file", b"/", b"/dev/null", b"a\\0b", "text", 5, None):
    for function in (core.map_file, core.take_lock):
        if function is core.take_lock and wrong == b"/dev/null":
            continue
        try:
            function(wrong)
        except (OSError, ValueError, TypeError):
            pass
        else:
            sys.exit(f"{function} took {wrong}")
wrong_stamps = [(), ("/",), ("/", "a", 1, 2, 3), (None, 1, 2, 3, 4), ("/", 1 << 70, 1, 1, 1)]
for wrong in (*wrong_stamps, ("a\\0", 1, 1, 1, 1)):
    try:
        core.is_unchanged(*wrong)
    except (ValueError, TypeError, OverflowError):
        pass
    else:
        sys.exit(f"is_unchanged took {wrong}")
status = os.stat("/")
whole = ("/", None, b"/", False, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
for _ in range(50):
    assert core.watch([whole, ("/x", None, None, True, 0, 0, 0)]).is_current(2, {"/x": None})
for wrong in (None, (), [()], [whole, whole[:3]], [("/", None, "text", False, 1, 1, 1)], [whole, 5]):
    try:
        core.watch(wrong)
    except (ValueError, TypeError):
        pass
    else:
        sys.exit(f"watch took {wrong}")
lock = os.path.join(sys.argv[1], "lock").encode()
held = core.take_lock(lock)
try:
    core.take_lock(lock)
except BlockingIOError:
    pass
os.close(held)
print("all paths")
"""
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-c", script, str(tmp_path)],
        env={
            **os.environ,
            "LD_PRELOAD": runtime,
            # The interpreter itself frees nothing at exit, and allocates before it is looked at.
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all paths\n"
    assert "runtime error" not in done.stderr


def entry_of(folder: Path, importer: object) -> tuple[object, ...]:
    status = folder.stat()
    return (
        str(folder),
        importer,
        os.fsencode(folder),
        False,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )


def test_a_watch_sees_every_entry_up_to_the_count(core, tmp_path) -> None:
    """Changed folders, other importers and new folders are seen; what lies behind the count is not asked."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    finder = object()
    missing = (str(tmp_path / "missing"), None, None, True, 0, 0, 0)
    entries = [entry_of(folders[0], finder), missing, entry_of(folders[1], None), entry_of(folders[2], None)]
    importers: dict[str, object] = {str(folders[0]): finder, missing[0]: None}
    watch = core.watch(entries)

    assert watch.is_current(4, importers)
    assert watch.is_current(99, importers)
    assert not watch.is_current(1, {})
    assert not watch.is_current(2, {str(folders[0]): finder})
    assert not watch.is_current(2, importers | {missing[0]: finder})
    assert not watch.is_current(3, importers | {str(folders[1]): finder})
    (folders[2] / "new.py").touch()
    assert watch.is_current(3, importers)
    assert not watch.is_current(4, importers)
    folders[1].rmdir()
    assert watch.is_current(2, importers)
    assert not watch.is_current(3, importers)
    assert core.watch([]).is_current(0, {})

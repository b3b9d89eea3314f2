# SPDX-License-Identifier: Apache-2.0
"""The native half of the hook and its Python twin: the same answers; then sanitizers."""

from __future__ import annotations

import _imp
import contextlib
import fcntl
import marshal
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.native import compiled, run_under_sanitizers
from velo_import.hook import mapping as twin
from velo_import.ingest.publish import publish_manifest


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The native functions as the hook loads them."""
    library = compiled("core", tmp_path_factory.mktemp("native"), "-O2")
    return twin.load_native("velo_import._native.core", str(library))


@pytest.fixture(params=["native", "twin"])
def core(request: pytest.FixtureRequest) -> object:
    """Each of the two bodies of one interface."""
    return twin if request.param == "twin" else request.getfixturevalue("native")


def resident() -> int:
    """Bytes of memory that this process has, those of files included."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGESIZE")


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


def test_a_map_outlives_its_file(core, tmp_path) -> None:
    """Unlinked, the bytes are still those of the file."""
    path = tmp_path / "file"
    path.write_bytes(b"velo" * 5000)
    mapped, _ = core.map_file(os.fsencode(path))
    view = memoryview(mapped)
    path.unlink()

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


class Packed:
    """A source file, its bytecode in the middle of a pack, and the record that describes both."""

    def __init__(self, core: Any, folder: Path, text: str = "VALUE = 6 * 7\n") -> None:
        self.source = folder / "module.py"
        self.source.write_text(text)
        code = marshal.dumps(compile(text, "elsewhere", "exec"))
        (folder / "pack").write_bytes(b"before" + code + b"after")
        self.pack, _ = core.map_file(os.fsencode(folder / "pack"))
        status = self.source.stat()
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
        self.words = [0, 6, len(code), *stamp, 0, 0, 0]

    def load(self, core: Any, asks: bool = True, at: int = 10) -> Any:
        # The record stands second, so that a wrong place shows.
        records = memoryview(struct.pack("<20Q", *[0] * 10, *self.words)).cast("Q")
        return core.load_code(str(self.source), "module.pyc", records, at, asks, self.pack)


def test_code_is_made_of_the_pack_and_named_after_its_source(core, tmp_path) -> None:
    """The code that runs is the pack's; every function in it says which file it stands for."""
    packed = Packed(core, tmp_path, "def f():\n    def g(): pass\n    return g\n")

    code = packed.load(core)

    namespace: dict[str, Any] = {}
    exec(code, namespace)
    files = {code.co_filename, namespace["f"].__code__.co_filename, namespace["f"]().__code__.co_filename}
    assert files == {str(packed.source)}


def test_no_code_is_made_for_another_source(core, tmp_path) -> None:
    """Another size or no file: False. Another time or inode: None. Not asked, it is made all the same."""
    packed = Packed(core, tmp_path)
    os.utime(packed.source, ns=(1, 1))
    assert packed.load(core) is None
    assert packed.load(core, asks=False).co_name == "<module>"
    packed.source.write_text("VALUE = 6 * 7  # another size\n")
    assert packed.load(core) is False
    packed.source.unlink()
    assert packed.load(core) is False


@pytest.mark.parametrize(
    ("word", "value"),
    [(1, 1 << 40), (1, (1 << 64) - 1), (2, 0), (2, 1 << 40), (2, (1 << 64) - 1), (2, (1 << 63) + 5)],
)
def test_a_range_that_the_pack_does_not_have_is_refused(core, tmp_path, word, value) -> None:
    """Offsets and lengths of a hostile record never reach memory outside the map."""
    packed = Packed(core, tmp_path)
    packed.words[word] = value
    with pytest.raises(IndexError):
        packed.load(core)


@pytest.mark.parametrize("at", [11, 20, 1 << 40, -1, -10])
def test_a_record_that_is_not_there_is_refused(core, tmp_path, at) -> None:
    """A place outside the records."""
    with pytest.raises(IndexError):
        Packed(core, tmp_path).load(core, at=at)


def test_bytes_that_are_no_code_are_refused(core, tmp_path) -> None:
    """Another object, a truncated one, noise: an exception for the loader to count, never a value."""
    packed = Packed(core, tmp_path)
    for content in (marshal.dumps(b"text"), marshal.dumps((1, 2)), b"\xff" * 9, marshal.dumps("word")[:-1]):
        (tmp_path / "pack").unlink()
        (tmp_path / "pack").write_bytes(content)
        packed.pack, _ = core.map_file(os.fsencode(tmp_path / "pack"))
        packed.words[1:3] = 0, len(content)
        with pytest.raises((EOFError, TypeError, ValueError)):
            packed.load(core)


def test_auditors_are_told_and_may_refuse(core, tmp_path) -> None:
    """The event is the one of reading the cached file; what the auditor raises arrives."""
    packed = Packed(core, tmp_path)
    seen = []

    def auditor(event: str, details: tuple[object, ...]) -> None:
        if event == "open" and details[0] == "module.pyc":
            seen.append(details[1:])
            if len(seen) == 2:
                raise PermissionError("refused")

    sys.addaudithook(auditor)
    packed.load(core)
    with pytest.raises(PermissionError, match="refused"):
        packed.load(core)
    assert seen[0] == ("r", os.O_RDONLY | os.O_CLOEXEC)


def test_pages_that_were_read_are_given_back(native, tmp_path) -> None:
    """Reading 40 MB of packs leaves the process less than 4 MB larger."""
    packed = Packed(native, tmp_path)
    code = (tmp_path / "pack").read_bytes()[6:-5]
    path = tmp_path / "large"
    path.write_bytes(code + bytes(40 << 20))
    packed.pack, _ = native.map_file(os.fsencode(path))

    before = resident()
    for start in range(0, 40 << 20, 1 << 16):
        packed.words[1:3] = start, 1 << 16
        with contextlib.suppress(EOFError, TypeError, ValueError):
            packed.load(native)  # zeros are no code, but they are read
        bytes(memoryview(packed.pack)[start : start + (1 << 16)])
    assert resident() - before < 4 << 20


def test_pages_of_what_others_read_are_given_back(native, tmp_path) -> None:
    """Python code that looks into a map says so, and the process does not grow by what it saw."""
    path = tmp_path / "large"
    path.write_bytes(bytes(40 << 20))
    mapped, _ = native.map_file(os.fsencode(path))

    before = resident()
    for at in range(0, 40 << 20, 1 << 15):
        native.note_read(mapped, 1 << 15)
        assert memoryview(mapped)[at] == 0
    assert resident() - before < 4 << 20
    with pytest.raises(TypeError):
        native.note_read(b"no map", 1)


def test_who_touches_a_table_does_not_get_all_of_it(native, tmp_path) -> None:
    """Newer kernels map in one piece what was written in one piece, so tables are written in pages."""
    path = tmp_path / "table"
    publish_manifest(path, os.urandom(8 << 20))
    mapped, _ = native.map_file(os.fsencode(path))
    before = resident()

    for at in range(1 << 19, 8 << 20, 1 << 20):
        assert memoryview(mapped)[at] >= 0

    assert resident() - before <= 8 << 17


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
import marshal, struct
status = os.stat(path)
code = marshal.dumps(compile("x = 1", "x", "exec"))
packs = []
for number in range(20):  # more maps than are remembered, more bytes than stay
    with open(path + b"%d" % number, "wb") as file:
        file.write(code * 10 + bytes(400_000))
    packs.append(core.map_file(path + b"%d" % number)[0])
stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
def record(start, length):
    return memoryview(struct.pack("<10Q", 1, start, length, *stamp, 0, 0, 0)).cast("Q")
for pack in packs * 3:
    for start in (0, len(code) * 3):
        made = core.load_code(path.decode(), "c", record(start, len(code)), 0, True, pack)
        assert made.co_filename == path.decode()
    try:
        core.load_code(path.decode(), "c", record(len(code) * 10, 390_000), 0, False, pack)
    except (TypeError, EOFError, ValueError):
        pass
good = (path.decode(), "c", record(0, len(code)), 0, True, packs[0])
empty = core.map_file(path)[0]
wrong_ones = [(0, 5), (0, "a\\0"), (2, 5), (2, b""), (3, -1), (3, "x"), (3, 1 << 70), (5, b"x"), (5, None)]
for place, wrong in wrong_ones:
    try:
        core.load_code(*good[:place], wrong, *good[place + 1:])
    except (ValueError, TypeError, IndexError, OverflowError):
        pass
    else:
        sys.exit(f"load_code took {wrong}")
for start, length in ((1 << 63, 1), (0, 1 << 63), (1 << 62, 1 << 62), (0, 0), (999_999, 1)):
    try:
        core.load_code(path.decode(), "c", record(start, length), 0, True, packs[0])
    except IndexError:
        pass
    else:
        sys.exit(f"load_code read {start}, {length}")
try:
    core.load_code()
except TypeError:
    pass
del pack, packs, good, empty
lock = os.path.join(sys.argv[1], "lock").encode()
held = core.take_lock(lock)
try:
    core.take_lock(lock)
except BlockingIOError:
    pass
os.close(held)
print("all paths")
"""
    done = run_under_sanitizers("core", tmp_path, script)
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


def test_a_watch_sees_every_entry_up_to_the_count(tmp_path) -> None:
    """Changed folders, other importers and new folders are seen; what lies behind the count is not asked.

    Only the twin's finder needs it.
    """
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    finder = object()
    missing = (str(tmp_path / "missing"), None, None, True, 0, 0, 0)
    entries = [entry_of(folders[0], finder), missing, entry_of(folders[1], None), entry_of(folders[2], None)]
    importers: dict[str, object] = {str(folders[0]): finder, missing[0]: None}
    watch = twin.watch(entries)

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
    assert twin.watch([]).is_current(0, {})


def test_a_private_file_is_mapped_for_its_owner_only(core, tmp_path) -> None:
    """Bytes, size, times and inode; refused where others may write, or where it belongs to somebody else."""
    path = tmp_path / "file"
    path.write_bytes(b"velo")
    path.chmod(0o600)
    status = path.stat()

    mapped, stamp = core.map_private(str(path), os.geteuid())

    assert bytes(memoryview(mapped)) == b"velo"
    assert stamp == (4, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    path.chmod(0o622)
    with pytest.raises(core.Unusable, match="owner"):
        core.map_private(str(path), os.geteuid())
    with pytest.raises(FileNotFoundError):
        core.map_private(str(tmp_path / "missing"), os.geteuid())


def test_built_in_modules_are_loaded_beside_sys_modules(core, monkeypatch) -> None:
    """The module that is there, or one of its own that nobody else sees."""
    assert core.load_extension("gc") is sys.modules["gc"]
    monkeypatch.delitem(sys.modules, "atexit")
    made = core.load_extension("atexit")
    assert "atexit" not in sys.modules
    assert made.__name__ == "atexit"
    assert made._ncallbacks() >= 0
    with pytest.raises((ImportError, OSError)):
        core.load_extension("no such module")


def test_pieces_of_the_hook_are_checked_before_they_are_read(native) -> None:
    """A range that is not there, another checksum: nothing. Auditors do not hear that it is run."""
    piece = marshal.dumps(compile("answer = 6 * 7", "there", "exec", dont_inherit=True))
    pieces = b"before" + piece + b"after"
    check = _imp.source_hash(0x56454C4F, piece)
    heard = []
    is_over = False
    sys.addaudithook(lambda event, arguments: None if is_over else heard.append(event))
    namespace: dict[str, Any] = {"__builtins__": {}}

    native.run(native.unpack(memoryview(pieces), 6, len(piece), check), namespace)
    is_over = True

    assert namespace["answer"] == 42
    assert heard == ["marshal.loads"]
    for start, length in ((5, len(piece)), (6, len(piece) + 6), (-1, 4), (6, -1), (1 << 40, 1), (6, 1 << 62)):
        assert native.unpack(pieces, start, length, check) is None
    assert native.unpack(pieces, 6, len(piece), check[:4]) is None
    for wrong in (5, None, (lambda: None)):
        with pytest.raises((TypeError, AttributeError)):
            native.run(wrong, {})

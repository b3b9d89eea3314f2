# SPDX-License-Identifier: Apache-2.0
"""What the hook does when the program has ended: one line of statistics if asked, and starting the learner.

Loaded at exit only. The program's results are out by now, but its exit is still waited for: nothing here may
block, and the learner must hold no descriptor, terminal or process group of the program's.
"""

import sys
from _imp import source_hash
from os import environ, fsencode
from os.path import realpath
from posix import (
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    O_NOFOLLOW,
    O_NONBLOCK,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    POSIX_SPAWN_CLOSE,
    POSIX_SPAWN_DUP2,
    POSIX_SPAWN_OPEN,
    close,
    fstat,
    getcwd,
    getpid,
    listdir,
    lseek,
    memfd_create,
    mkdir,
    open,
    posix_spawn,
    read,
    readlink,
    rename,
    sysconf,
    write,
)
from time import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from velo_import.hook.counts import Counts

LOCK_DESCRIPTOR = 3
LONGEST_PAUSE = 12  # powers of two: after twelve fruitless runs the learner is started about once an hour
HASH_KEY = 0x56454C4F
MOST_NOTES = 64
MOST_WORDS = 64  # of a command line: what names the program comes first
LARGEST_COMPARISON = 1 << 18
NUMBERS: "tuple[str, ...]" = ("served", "deferred", "stale", "native", "errors", "images", "patterns")
NUMBERS += ("sources", "metadata", "install_us", "compared", "differed")
PAGE = sysconf("SC_PAGE_SIZE")
SMALL_GAP = bytes(16)  # pages that were not used, between others that were
IS_PRESENT = bytes(byte >> 7 for byte in range(256))
MOST_VAIN, VAIN_SIZE = 256, 16  # records of fruitless starts, and the bytes of one


def farewell(
    home: str, key: str, identity: bytes, counts: "Counts", take_lock: "Callable[[bytes], int]"
) -> None:
    """Write VELO_STATS if asked; start the learner if it could serve something next time."""
    target = environ.get("VELO_STATS", "")
    if target not in ("", "0"):
        append_statistics(target, counts)
    may_write = environ.get("VELO_READONLY", "0") in ("", "0")
    if counts.compared and may_write:
        leave_comparison(home, key, counts)
    if "VELO_PACK" in environ:
        # `velo pack` waits for these notes and learns from them itself.
        keep_notes(environ["VELO_PACK"], take_notes(key, identity, counts, bytes(8)))
    elif counts.wanted and may_write:
        start_learner(home, key, identity, counts, take_lock)


def append_statistics(target: str, counts: "Counts") -> None:
    """Append one JSON object to the file (`1`: to stderr), in one write, so that lines stay whole."""
    argv = ", ".join(quoted(argument) for argument in getattr(sys, "orig_argv", sys.argv))
    reasons = ", ".join(f"{quoted(reason)}: {count}" for reason, count in counts.reasons.items())
    numbers = ", ".join(f'"{name}": {getattr(counts, name)}' for name in NUMBERS)
    line = (
        f'{{"runtime": "python", "pid": {getpid()}, "version": {quoted(sys.version.split()[0])}, '
        f'"argv": [{argv}], {numbers}, "wanted": {len(counts.wanted)}, '
        f'"calm": {"true" if counts.calm else "false"}, "reasons": {{{reasons}}}}}\n'
    )
    try:
        if target == "1":
            write(2, line.encode())
            return
        descriptor = open(target, 0o2001 | O_CREAT | O_CLOEXEC, 0o600)  # O_WRONLY | O_APPEND
        try:
            write(descriptor, line.encode())
        finally:
            close(descriptor)
    except OSError:
        pass


def leave_comparison(home: str, key: str, counts: "Counts") -> None:
    """Append what shadow mode saw to the store, one line of JSON (FORMAT.md, section 2)."""
    path = f"{home}/run/{key}.shadow"
    argv = ", ".join(quoted(argument) for argument in getattr(sys, "orig_argv", sys.argv)[:MOST_WORDS])
    differences = ", ".join(quoted(difference) for difference in counts.differences)
    line = (
        f'{{"time": {int(time())}, "argv": [{argv}], "compared": {counts.compared}, '
        f'"differed": {counts.differed}, "differences": [{differences}]}}\n'
    )
    try:
        descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        try:
            if fstat(descriptor).st_size > LARGEST_COMPARISON:
                rename(path, f"{path}.old")  # This line still goes there; the next process begins anew.
            write(descriptor, line.encode())
        finally:
            close(descriptor)
    except OSError:
        pass


def quoted(text: str) -> str:
    """A JSON string, in ASCII."""
    out = []
    for character in text:
        code = ord(character)
        if character in '"\\':
            out.append("\\" + character)
        elif 32 <= code < 127:
            out.append(character)
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            code -= 0x10000
            out.append(f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}")
    return f'"{"".join(out)}"'


def start_learner(
    home: str, key: str, identity: bytes, counts: "Counts", take_lock: "Callable[[bytes], int]"
) -> None:
    """Start the learner detached, or leave the notes for the one that is at work.

    The lock is taken here and inherited by the learner, so that of a hundred programs ending at once exactly
    one starts a process.
    """
    lock_path = fsencode(f"{home}/run/{key}.lock")
    mark = source_hash(HASH_KEY, "\0".join(sorted(counts.wanted)).encode("utf-8", "surrogateescape"))
    try:
        command = learner_command(home)
        if is_subinterpreter():
            # The process goes on, and would be given a child that it never started and may wait for.
            leave_notes(home, key, take_notes(key, identity, counts, mark))
            return
        try:
            lock = take_lock(lock_path)
        except BlockingIOError:
            leave_notes(home, key, take_notes(key, identity, counts, mark))
            # It may have looked for such notes just before we left ours.
            lock = take_lock(lock_path)
    except OSError:
        return
    try:
        if is_in_vain(f"{home}/run/{key}.vain", mark):
            return
        notes = memfd_create("velo-notes")
        try:
            # Through one descriptor that is rewound: what is written here is what the learner reads.
            write_all(notes, take_notes(key, identity, counts, mark))
            lseek(notes, 0, 0)
            posix_spawn(
                command[0],
                command,
                {**environ, "VELO_DISABLE": "1", "PYTHONPATH": "", "VELO_HOME": home},
                file_actions=descriptors_for(notes, lock),
                setsid=True,
            )
        finally:
            close(notes)
    except OSError:
        return
    finally:
        close(lock)


def is_subinterpreter() -> bool:
    """Whether the process has another interpreter, which outlives this one."""
    if sys.version_info >= (3, 12):
        from _thread import _is_main_interpreter  # type: ignore[attr-defined]

        return not _is_main_interpreter()
    # Asking for its number ends it on 3.11: the answer is an object whose end is that of the interpreter.
    # There is no signal 0, but who may not set signals at all is told that first.
    from _signal import signal  # type: ignore[import-not-found]

    try:
        signal(0, 0)
    except ValueError as error:
        return "only works in main thread" in str(error)
    return False


def is_in_vain(path: str, mark: bytes) -> bool:
    """Whether learners were started for the very same wants before, without gain, and not long ago.

    The learner keeps a record of each fruitless start (FORMAT.md, section 2).
    """
    try:
        descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    except OSError:
        return False
    try:
        records = read(descriptor, MOST_VAIN * VAIN_SIZE)
    finally:
        close(descriptor)
    for at in range(0, len(records) - VAIN_SIZE + 1, VAIN_SIZE):
        if records[at : at + 8] == mark:
            when = int.from_bytes(records[at + 8 : at + 12], "little")
            times = int.from_bytes(records[at + 12 : at + 16], "little")
            pause: int = 1 << min(times, LONGEST_PAUSE)
            return 0 <= time() - when < pause
    return False


def leave_notes(home: str, key: str, notes: bytes) -> None:
    """Put the notes where the learner that is at work will look before it ends; bounded in number."""
    folder = f"{home}/run/notes"
    try:
        mkdir(folder, 0o700)
    except FileExistsError:
        pass
    if len(listdir(folder)) >= MOST_NOTES:
        return
    # The final name appears with a rename, so that the learner never reads half of it.
    temporary = f"{folder}/.tmp-{getpid()}"
    descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, notes)
    finally:
        close(descriptor)
    rename(temporary, f"{folder}/{key}.{getpid()}")


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`."""
    rest = memoryview(data)
    while rest:
        rest = rest[write(descriptor, rest) :]


def learner_command(home: str) -> "list[str]":
    """The learner's argument list, written by `velo` into the store's private folder."""
    descriptor = open(f"{home}/run/learner", O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
    try:
        text = read(descriptor, 65536).decode(sys.getfilesystemencoding(), "surrogateescape")
    finally:
        close(descriptor)
    return text.rstrip("\0").split("\0")


def descriptors_for(notes: int, lock: int) -> "list[tuple[Any, ...]]":
    """File actions: notes on 0, nothing on 1 and 2, the lock on 3, and every other descriptor closed.

    A job runner waits for the last holder of its pipes: it would wait for a learner that kept one.
    """
    open_now = {int(name) for name in listdir("/proc/self/fd") if name.isdigit()}
    # Away from the low numbers first, so that no step overwrites what a later one needs.
    free = (number for number in range(LOCK_DESCRIPTOR + 1, 1 << 20) if number not in open_now)
    safe_notes, safe_lock = next(free), next(free)
    above = sorted(number for number in open_now | {safe_notes, safe_lock} if number > LOCK_DESCRIPTOR)
    return [
        (POSIX_SPAWN_DUP2, notes, safe_notes),
        (POSIX_SPAWN_DUP2, lock, safe_lock),
        (POSIX_SPAWN_DUP2, safe_notes, 0),
        (POSIX_SPAWN_OPEN, 1, "/dev/null", O_RDWR, 0),
        (POSIX_SPAWN_OPEN, 2, "/dev/null", O_RDWR, 0),
        (POSIX_SPAWN_DUP2, safe_lock, LOCK_DESCRIPTOR),
        *((POSIX_SPAWN_CLOSE, number) for number in above),
    ]


def interpreter() -> str:
    """The path of this interpreter. `sys.executable` is a guess when argv[0] was not its name.

    The learner checks whom it has got before it believes any bytecode.
    """
    try:
        running = readlink("/proc/self/exe")
    except OSError:
        return sys.executable
    if realpath(sys.executable) == running or not running.rpartition("/")[2].startswith("python"):
        return sys.executable
    return running


def take_notes(key: str, identity: bytes, counts: "Counts", mark: bytes) -> bytes:
    """What the learner has to know: the interpreter, its path, every module that came from a file, and what
    could be remembered.

    What was wanted adds those modules that were looked for but failed when they were imported.
    """
    notes = [
        "velo-notes 1",
        f"key={key}",
        f"mark={mark.hex()}",
        f"executable={interpreter()}",
        f"prefix={sys.prefix}",
        f"base_prefix={sys.base_prefix}",
        f"optimize={sys.flags.optimize}",
        f"identity={identity.hex()}",
    ]
    stdlib = getattr(sys.modules.get("os"), "__file__", None)
    if isinstance(stdlib, str):
        notes.append(f"stdlib={stdlib.rpartition('/')[0]}")
    notes += [f"path={entry}" for entry in sys.path if str(entry).startswith("/")]
    plain_module: type = type(sys)
    for module in list(sys.modules.values()):
        # Only true modules are looked at, and only in their dict: asking a lazy one would run its code.
        if type(module) is not plain_module:
            continue
        spec: Any = module.__dict__.get("__spec__")
        origin = getattr(spec, "origin", None)
        if isinstance(origin, str) and origin.startswith("/") and getattr(spec, "has_location", False):
            notes.append(f"module={spec.name}\t{origin}")
    notes += [f"module={name}\t{origin}" for name, origin in counts.wanted.items() if origin]
    if counts.open_memory or counts.memory:
        notes.append("remember=again" if "remembered" in counts.wanted else "remember=on")
    if "metadata" in counts.wanted:
        notes.append("metadata=again")
    if counts.image_file or "images" in counts.wanted:
        notes.append("images=again" if "images" in counts.wanted else "images=on")
    notes += [f"input={key.hex()}" for key in counts.inputs]
    notes += start_notes()
    return b"".join(fsencode(note) + b"\0" for note in notes)


def start_notes() -> list[str]:
    """How this program was started, and what it read of mapped files: for reading ahead next time."""
    try:
        files = touched_files().items()
        return [
            f"folder={getcwd()}",
            *(f"word={word}" for word in sys.orig_argv[:MOST_WORDS]),
            *(f"mapped={path}\t{' '.join(map(str, ranges))}" for path, ranges in files if ranges),
        ]
    except (OSError, ValueError):  # No /proc, or no current folder: then nothing is read ahead.
        return []


def touched_files() -> dict[str, list[int]]:
    """The mapped files, by and large in the order in which they were mapped, and offset, length, offset,
    length, ... of what was used of each.

    The kernel places most maps below the ones before them, and the program itself lowest.
    """
    files: dict[str, list[int]] = {}
    mapped: list[tuple[int, int, int, str]] = []
    for fields in [line.split(None, 5) for line in read_all("/proc/self/maps").split("\n")]:
        if len(fields) == 6 and fields[1][0] == "r" and fields[5][0] == "/" and fields[4] != "0":
            begin, _, end = fields[0].partition("-")
            mapped.append((int(begin, 16), int(end, 16), int(fields[2], 16), fields[5]))
    program = mapped[0][3] if mapped else ""
    mapped.sort(key=lambda each: (each[3] != program, -each[0]))
    descriptor = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)
    try:
        for first, last, offset, path in mapped:
            lseek(descriptor, first // PAGE * 8, 0)
            # The uppermost bit of each page's eight bytes: it is in memory, used or beside what was used.
            pages = read(descriptor, (last - first) // PAGE * 8)[7::8].translate(IS_PRESENT)
            files.setdefault(path, []).extend(ranges_of(pages, offset))
    finally:
        close(descriptor)
    return files


def ranges_of(pages: bytes, offset: int) -> list[int]:
    """Offset and length of each run of pages that were used; small gaps are read as well."""
    ranges: list[int] = []
    at = pages.find(1)
    while at >= 0:
        gap = pages.find(SMALL_GAP, at)
        end = len(pages.rstrip(b"\0")) if gap < 0 else gap
        ranges += [offset + at * PAGE, (end - at) * PAGE]
        at = pages.find(1, end)
    return ranges


def read_all(path: str) -> str:
    descriptor = open(path, O_RDONLY | O_CLOEXEC)
    try:
        parts = []
        while part := read(descriptor, 1 << 16):
            parts.append(part)
    finally:
        close(descriptor)
    return b"".join(parts).decode(sys.getfilesystemencoding(), "surrogateescape")


def keep_notes(folder: str, notes: bytes) -> None:
    """Leave the notes where `velo pack` looks, under our process id."""
    try:
        descriptor = open(f"{folder}/{getpid()}", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, notes)
        finally:
            close(descriptor)
    except OSError:
        pass

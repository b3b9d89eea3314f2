# SPDX-License-Identifier: Apache-2.0
"""Reading ahead: what the last start of this program read, asked of the disk before it is needed.

`velo run` does the same before the interpreter starts (_native/velo.c); this is for programs that were
started without it. The surprise: whether anything has to be read is seen by the note itself. A start reads
it together with all that it names: they are in the page cache together, and leave it together.
"""

import posix
import sys
from _imp import source_hash
from os import fsencode
from posix import O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, close, getcwd, open, read

HASH_KEY = 0x56454C4F
START = b"velo-ahead 1\0"
LARGEST_NOTE = 1 << 20
MOST_BYTES = 256 << 20
STEP = 1 << 17  # The kernel reads no more at once for one request than its disk's limit, 128 KiB at least.
FLAGS = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK


def mark_of(words: "list[str]") -> str:
    """The name of this program's note: a hash of the interpreter and all words up to the first that is no
    option, with the current folder unless that one is an absolute path, or given to -c or -m.
    """
    chosen = words[:1]
    for word in words[1:]:
        chosen.append(word)
        if not word.startswith("-"):
            break
    is_path = chosen[-2:-1] not in (["-c"], ["-m"])
    folder = getcwd() if is_path and not chosen[-1].startswith("/") else ""
    return source_hash(HASH_KEY, fsencode("\0".join([folder, *chosen]))).hex()


def read_ahead(home: str) -> None:
    """Have the kernel read what this start will need, if it is not in memory; nothing is waited for."""
    try:
        data = cold_note(f"{home}/run/ahead/{mark_of(sys.orig_argv)}")
        if data[: len(START)] == START:
            fields = data[len(START) :].split(b"\0")
            rest = MOST_BYTES
            for path, ranges in zip(fields[::2], fields[1::2]):  # noqa: B905 # an empty field ends them
                numbers = list(map(int, ranges.split()))
                rest -= sum(numbers[1::2])
                if rest < 0:
                    break
                ask(path, numbers)
    except Exception:
        pass


def cold_note(path: str) -> bytes:
    """The note, if it is there and had to be read from the disk; otherwise nothing."""
    descriptor = open(path, FLAGS)
    try:
        try:
            posix.preadv(descriptor, [bytearray(1)], 0, getattr(posix, "RWF_NOWAIT", 0))
            return b""
        except BlockingIOError:
            return read(descriptor, LARGEST_NOTE)
    finally:
        close(descriptor)


def ask(path: bytes, numbers: "list[int]") -> None:
    """Have the kernel read these ranges (offset, length, offset, length, ...) of a file if it is there."""
    try:
        descriptor = open(path, FLAGS)
    except OSError:
        return
    try:
        for start, length in zip(numbers[::2], numbers[1::2]):  # noqa: B905
            for at in range(start, start + length, STEP):
                posix.posix_fadvise(descriptor, at, min(STEP, start + length - at), posix.POSIX_FADV_WILLNEED)
    finally:
        close(descriptor)

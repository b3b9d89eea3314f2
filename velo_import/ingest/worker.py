# SPDX-License-Identifier: Apache-2.0
"""Compiles source to bytecode; run as a script by the interpreter whose bytecode is wanted, never imported.

Says first who it is: the length of its build tag as u32 (little-endian, like all sizes), and the tag. Then it
reads frames from stdin and writes one answer for each: sizes first. A frame is a count, then for each file
the length of its path and of its source, then all paths and sources. An answer is, for each file, the length
of its bytecode (NO_CODE: it cannot be compiled), then all bytecode. Ends with its input. Python 3.11 to 3.15,
without a site or any other import than what is built in.
"""

import gc
import marshal
import sys
from _frozen_importlib_external import MAGIC_NUMBER
from struct import Struct

SIZE = Struct("<I")
NO_CODE = 0xFFFFFFFF


def compile_source(source: bytes, path: str, optimisation: int) -> "bytes | None":
    """The marshalled code of one file as CPython would cache it; None where an import would fail, or warn."""
    try:
        code = compile(source, path, "exec", dont_inherit=True, optimize=optimisation)
        return marshal.dumps(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, UnicodeError):
        return None


def main() -> None:
    """Answer frames until the input ends."""
    optimisation = int(sys.argv[1])
    read = sys.stdin.buffer.read
    write = sys.stdout.buffer.write
    # Compiling makes no reference cycles worth looking for; the collector would cost a tenth of the time.
    gc.disable()
    tag = f"{sys.implementation.cache_tag}-{MAGIC_NUMBER.hex()}".encode()
    write(SIZE.pack(len(tag)) + tag)
    sys.stdout.buffer.flush()
    while True:
        head = read(SIZE.size)
        if len(head) < SIZE.size:
            return
        (count,) = SIZE.unpack(head)
        sizes = [value for (value,) in SIZE.iter_unpack(read(2 * count * SIZE.size))]
        files = [
            (read(path_size).decode("utf-8", "surrogateescape"), read(source_size))
            for path_size, source_size in zip(sizes[0::2], sizes[1::2], strict=True)
        ]
        answers = [compile_source(source, path, optimisation) for path, source in files]
        write(b"".join(SIZE.pack(NO_CODE if code is None else len(code)) for code in answers))
        write(b"".join(code for code in answers if code is not None))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

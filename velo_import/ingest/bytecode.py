# SPDX-License-Identifier: Apache-2.0
"""Bytecode for sources: taken over from a valid `.pyc`, or compiled by the interpreter that will run it.

Knows when a cached file may be believed and how to keep every core compiling; which modules need it is
decided in plan.py, where it goes in apply.py. The surprise: a cached file that Python itself accepts may be
refused here. Python compares whole seconds and is wrong only until the next edit; a shared store would stay
wrong.
"""

from __future__ import annotations

import _imp
import fcntl
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from struct import Struct
from typing import IO, NamedTuple

from velo_import.errors import VeloError
from velo_import.format.manifest import Build

from .scan import FileEntry

# PEP 552: magic, flags, then source mtime and size, or the SipHash of the source.
HEADER = Struct("<4sIII")
assert HEADER.size == 16
UNCHECKED_HASH, CHECKED_HASH = 0b01, 0b11
SECOND = 1_000_000_000
CODE_MARKS = (b"\xe3", b"c")  # How a marshalled code object begins, with and without a back reference.

SIZE = Struct("<I")
NO_CODE = 0xFFFFFFFF
BATCH_BYTES = 256 * 1024  # Of source in one frame: some 30 files, so that waiting for a turn costs nothing.
BATCH_FILES = 64
FRAMES_AHEAD = 3  # Frames a worker may have unanswered, so that it never waits for us.
HOPELESS = 16  # Deaths without a single answer after which the interpreter, and no file, is to blame.
# What the compiler warns with: an invalid escape was a DeprecationWarning until 3.12. The last option counts.
WARNINGS = ("ignore", "error::SyntaxWarning", "error::DeprecationWarning")
_F_SETPIPE_SZ = 1031
_PIPE_BYTES = 1 << 20


class Cached(Enum):
    """What a cached file is good for."""

    USABLE = "usable"
    REFUSED = "refused"  # Stale, foreign, damaged, or too close to call: compile.
    UNCHECKED = "unchecked"  # Python runs it without looking at the source, so Python has to go on doing it.


def judge_cached(
    cached: bytes, stamp: FileEntry, source: Callable[[], bytes], source_entry: FileEntry, magic: bytes
) -> tuple[Cached, bytes]:
    """Whether a `.pyc` holds the bytecode of exactly this source; and its bytecode if it does."""
    if len(cached) <= HEADER.size:
        return Cached.REFUSED, b""
    its_magic, flags, mtime, size = HEADER.unpack_from(cached)
    if its_magic != magic:
        return Cached.REFUSED, b""
    if flags == UNCHECKED_HASH:
        return Cached.UNCHECKED, b""
    if flags == CHECKED_HASH:
        fits = cached[8:16] == _imp.source_hash(int.from_bytes(magic[:4], "little"), source())
    elif flags == 0:
        # Within its second Python would take the old bytecode for a new source of the same size.
        # Nobody can set change times, so a cached file younger by its own is younger. Within one tick of that
        # clock they are equal, as after unpacking an archive: then only a source of long ago is believed.
        fits = (
            mtime == source_entry.mtime_ns // SECOND & 0xFFFFFFFF
            and size == source_entry.size & 0xFFFFFFFF
            and stamp.mtime_ns >= source_entry.mtime_ns
            and stamp.ctime_ns >= source_entry.ctime_ns + (source_entry.mtime_ns + SECOND > stamp.ctime_ns)
        )
    else:
        fits = False
    if fits and cached[16:17] in CODE_MARKS:
        return Cached.USABLE, cached[HEADER.size :]
    return Cached.REFUSED, b""


def cached_name(tail: str, cache_tag: str, optimisation: int) -> str:
    """The name of a module's cached file in its `__pycache__`."""
    level = f".opt-{optimisation}" if optimisation else ""
    return f"{tail}.{cache_tag}{level}.pyc"


class Source(NamedTuple):
    """One file to compile; `ticket` is whatever the caller needs to know it again."""

    ticket: int
    path: str
    text: bytes


def compile_all(
    sources: Iterable[Source], executable: str, build: Build, jobs: int
) -> Iterator[tuple[int, bytes | None]]:
    """Compile on `jobs` processes of `executable`; yields (ticket, bytecode or None) as answers arrive.

    Sources are drawn only as fast as they are compiled. A file that kills the compiler counts as one that
    cannot be compiled; so does one that it warns about, because Python says so each time it compiles it.

    Raises:
        VeloError: the interpreter cannot be started, is another build, or dies on everything.
    """
    options = ["-I", "-S", "-B", *(f"-W{each}" for each in WARNINGS)]
    command = [executable, *options, _worker_path(), str(build.optimisation)]
    pool = _Pool(iter(sources), command, build.tag)
    return pool.results(max(jobs, 1))


def _worker_path() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")


class _Pool:
    """Workers that draw batches from one iterator; each has a thread that feeds it and one that listens."""

    def __init__(self, sources: Iterator[Source], command: list[str], tag: str) -> None:
        self._sources = sources
        self._command = command
        self._hello = SIZE.pack(len(tag)) + tag.encode()
        self._drawing = threading.Lock()
        self._answers: queue.Queue[list[tuple[int, bytes | None]] | BaseException | None] = queue.Queue(32)
        self._stopping = threading.Event()
        self._answered = False
        self._deaths = 0

    def results(self, jobs: int) -> Iterator[tuple[int, bytes | None]]:
        # The first batch is drawn before a worker starts: nothing to compile costs nothing.
        first = self._draw()
        if not first:
            return
        threads = [
            threading.Thread(target=self._serve, args=(first if number == 0 else [],), daemon=True)
            for number in range(jobs)
        ]
        for thread in threads:
            thread.start()
        running = jobs
        try:
            while running:
                answer = self._answers.get()
                if answer is None:
                    running -= 1
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    yield from answer
        finally:
            self._stopping.set()
            while running:  # Empty the queue, or a thread would wait for a place in it for ever.
                if self._answers.get() is None:
                    running -= 1
            for thread in threads:
                thread.join()

    def _draw(self) -> list[Source]:
        """The next batch; empty at the end."""
        batch: list[Source] = []
        size = 0
        with self._drawing:
            while not self._stopping.is_set() and len(batch) < BATCH_FILES and size < BATCH_BYTES:
                source = next(self._sources, None)
                if source is None:
                    break
                batch.append(source)
                size += len(source.text)
        return batch

    def _serve(self, first: list[Source]) -> None:
        try:
            batch = first or self._draw()
            while batch and not self._stopping.is_set():
                self._retry(self._run_worker(batch))
                batch = self._draw()
        except BaseException as error:
            self._answers.put(error)
        finally:
            self._answers.put(None)

    def _retry(self, lost: list[Source]) -> None:
        """Compile what a dead worker owed, in halves of halves: the guilty file fails alone."""
        groups = [lost] if lost else []
        while groups and not self._stopping.is_set():
            self._deaths += 1
            if self._deaths >= HOPELESS and not self._answered:
                raise VeloError(
                    f"{self._command[0]} dies whenever it compiles something",
                    hint="create the environment anew, or name another interpreter with --python",
                )
            group = groups.pop()
            if len(group) == 1:
                self._answers.put([(group[0].ticket, None)])
                continue
            middle = len(group) // 2
            for half in (group[:middle], group[middle:]):
                if self._run_worker(half, alone=True):
                    groups.append(half)

    def _run_worker(self, batch: list[Source], alone: bool = False) -> list[Source]:
        """Feed one process until nothing is left or it dies; returns what it took and did not answer."""
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
            )
        except OSError as error:
            raise VeloError(
                f"cannot run {self._command[0]}: {error.strerror}", hint="is the environment still there?"
            ) from None
        assert process.stdin is not None and process.stdout is not None
        self._check_hello(process)
        _widen(process.stdin.fileno())
        _widen(process.stdout.fileno())
        waiting: queue.SimpleQueue[list[Source] | None] = queue.SimpleQueue()
        places = threading.Semaphore(FRAMES_AHEAD)
        lost: list[Source] = []
        listener = threading.Thread(
            target=self._listen, args=(process.stdout, waiting, places, lost), daemon=True
        )
        listener.start()
        try:
            while batch and not self._stopping.is_set():
                places.acquire()
                waiting.put(batch)
                process.stdin.write(_frame(batch))
                process.stdin.flush()
                batch = [] if alone or lost else self._draw()
            process.stdin.close()
        except OSError:  # It died; the listener knows what it still owed.
            pass
        finally:
            waiting.put(None)
            if self._stopping.is_set():
                process.kill()
            listener.join()
            process.stdout.close()
            try:
                process.stdin.close()
            except OSError:
                pass
            process.wait()
        return lost

    def _check_hello(self, process: subprocess.Popen[bytes]) -> None:
        """Refuse a worker of another build: the path that a program gives for its Python may be a guess."""
        assert process.stdout is not None
        hello = process.stdout.read(len(self._hello))
        # One that died before it could speak is handled as any other death.
        if hello and hello != self._hello:
            process.kill()
            process.communicate()
            raise VeloError(
                f"{self._command[0]} is not the interpreter that the program ran under",
                hint="start the program by the full path of its interpreter",
            )

    def _listen(
        self,
        stream: IO[bytes],
        waiting: queue.SimpleQueue[list[Source] | None],
        places: threading.Semaphore,
        lost: list[Source],
    ) -> None:
        while (batch := waiting.get()) is not None:
            answer = None if lost else _read_answer(stream, batch)
            if answer is None:
                lost += batch
            else:
                self._answered = True
                self._answers.put(answer)
            places.release()


def _frame(batch: list[Source]) -> bytes:
    paths = [source.path.encode("utf-8", "surrogateescape") for source in batch]
    parts = [SIZE.pack(len(batch))]
    parts += [
        SIZE.pack(len(path)) + SIZE.pack(len(source.text)) for path, source in zip(paths, batch, strict=True)
    ]
    for path, source in zip(paths, batch, strict=True):
        parts += (path, source.text)
    return b"".join(parts)


def _read_answer(stream: IO[bytes], batch: list[Source]) -> list[tuple[int, bytes | None]] | None:
    """The answers to one batch, or None when the worker has died."""
    head = stream.read(SIZE.size * len(batch))
    if len(head) < SIZE.size * len(batch):
        return None
    answers: list[tuple[int, bytes | None]] = []
    for source, (size,) in zip(batch, SIZE.iter_unpack(head), strict=True):
        if size == NO_CODE:
            answers.append((source.ticket, None))
            continue
        code = stream.read(size)
        if len(code) < size:
            return None
        answers.append((source.ticket, code))
    return answers


def _widen(descriptor: int) -> None:
    """A larger pipe means fewer switches between us and the worker; where it is refused nothing is lost."""
    try:
        fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass

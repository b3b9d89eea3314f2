# SPDX-License-Identifier: Apache-2.0
"""What one blob costs: stored, read, found. Against git's object store, diskcache and plain files.

`python -m bench.store --help`. All arms take the same random blobs in the same order; rounds alternate
between arms; an arm's figure is the lower quartile over rounds, in microseconds for each blob. What was read
is compared with what was stored.

Blobs are random words, so that they can be compressed. An ingest compresses small content, which nobody maps
(`velo compressed`); what must be had at once is packed as it is (`velo`).

The surprise: the arms do not promise the same. `velo` has flushed everything to the disk and verifies each
blob it reads; `files` does neither, `git` flushes its pack, `diskcache` leaves flushing to the kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import diskcache  # type: ignore[import-untyped]
from blake3 import blake3

from bench import records
from bench.arms import CHECKOUT
from bench.figures import spread
from bench.measure import BenchmarkFault, run_as_program
from velo_import.format import codec
from velo_import.store.catalog import Catalog
from velo_import.store.index import BlobIndex, write_index
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, open_pack

Stored = dict[bytes, bytes]
# Made once: to draw digits instead of words took longer than all arms together.
_WORDS = [b"%08x" % (number * 0x9E3779B97F4A7C15 % (1 << 32)) for number in range(1 << 12)]


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    dice = random.Random(options.seed)
    contents = [words_of(dice, options.size) for _ in range(options.blobs)]
    blobs = {blake3(content).digest(): content for content in contents}
    asked = list(blobs)
    dice.shuffle(asked)
    record = records.header("store", "bench.store", words)
    record["python"] = platform.python_version()
    record |= {"blobs": len(blobs), "size": options.size, "microseconds": {}, "nanoseconds_in_c": None}
    with tempfile.TemporaryDirectory(prefix="velo-bench-store-", dir=options.work or None) as folder:
        storing = {name: (arm, []) for name, arm in STORING.items()}
        for number in range(options.rounds):
            for name, (arm, taken) in storing.items():
                place = Path(folder, f"{name}-{number}")
                place.mkdir(mode=0o700)
                given = dict(islice(blobs.items(), MOST.get(name, len(blobs))))
                began = time.perf_counter()
                arm(place, given)
                taken.append((time.perf_counter() - began) / len(given) * 1e6)
                if number:
                    shutil.rmtree(place)
                os.sync()  # what this arm left to the kernel is not the next one's to pay
        _keep(record, "store", {name: taken for name, (_, taken) in storing.items()})
        with contextlib.ExitStack() as opened:
            readers = {
                name: opened.enter_context(arm(Path(folder, f"{source}-0")))
                for name, (source, arm) in READING.items()
            }
            reading: dict[str, list[float]] = {name: [] for name in readers}
            for _ in range(options.rounds):
                for name, read in readers.items():
                    began = time.perf_counter()
                    for digest in asked:
                        read(digest)
                    reading[name].append((time.perf_counter() - began) / len(asked) * 1e6)
            for name, read in readers.items():
                if any(bytes(read(digest)) != content for digest, content in blobs.items()):
                    raise BenchmarkFault(f"{name} read something else than was stored")
        _keep(record, "read", reading)
        record["nanoseconds_in_c"] = look_up_in_c(Path(folder, "velo-0"), asked, Path(folder))
    print(render(record))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.store", description="What one blob costs.")
    parser.add_argument("--blobs", type=int, default=20_000, help="how many (20,000)")
    parser.add_argument("--size", type=int, default=4096, help="bytes of each (4,096)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each arm (9)")
    parser.add_argument("--seed", type=int, default=1, help="of the contents and their order")
    records.add_store_options(parser)
    return parser


def words_of(dice: random.Random, size: int) -> bytes:
    """Compressible to about a half, somewhat less than small sources are."""
    return b" ".join(dice.choices(_WORDS, k=size // 9 + 1))[:size]  # each has eight digits and a space


def _keep(record: dict[str, Any], kind: str, taken: dict[str, list[float]]) -> None:
    for name, values in taken.items():
        record["microseconds"][f"{kind} {name}"] = spread(values, 3)


# --- storing -----------------------------------------------------------------------------------------------


def store_velo(folder: Path, blobs: Stored) -> None:
    """One pack, flushed, named, in the catalogue."""
    _seal(folder, blobs, {})


def store_velo_compressed(folder: Path, blobs: Stored) -> None:
    """The same, compressed as an ingest does it."""
    frames = codec.compressed_all(list(blobs.values()), os.cpu_count() or 1)
    _seal(folder, blobs, dict(zip(blobs, frames, strict=True)))


def _seal(folder: Path, blobs: Stored, frames: Mapping[bytes, bytes | None]) -> None:
    store = Store.open(folder, create=True)
    with PackWriter(store, label="bench", kind="content", compress=bool(frames)) as writer:
        for digest, content in blobs.items():
            writer.add(content, digest=blake3(content).digest(), frame=frames.get(digest))
        sealed = writer.seal()
    assert sealed is not None
    with Catalog.open(store) as catalog, catalog.write() as writing:
        writing.put_pack(sealed)
    write_index(store)


def store_files(folder: Path, blobs: Stored) -> None:
    """A file for each, in 256 folders; nothing is flushed."""
    for name in range(256):
        (folder / f"{name:02x}").mkdir()
    for digest, content in blobs.items():
        (folder / digest.hex()[:2] / digest.hex()).write_bytes(content)


def store_files_flushed(folder: Path, blobs: Stored) -> None:
    """A file for each, flushed before it gets its name, 80 to a folder as above; folders are flushed, too."""
    folders = [folder / f"{number:02x}" for number in range(max(1, len(blobs) // 80))]
    for each in folders:
        each.mkdir()
    for digest, content in blobs.items():
        path = folders[digest[0] % len(folders)] / digest.hex()
        with open(f"{path}.new", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.new", path)
    for each in folders:
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def store_git(folder: Path, blobs: Stored) -> None:
    """Git's fastest way in: one pack made by `git fast-import`, which flushes it."""
    _git(folder, "init", "--quiet", "--bare", ".")
    parts = (b"blob\ndata %d\n%s\n" % (len(content), content) for content in blobs.values())
    _git(folder, "-c", "core.compression=0", "fast-import", "--quiet", stdin=b"".join(parts))


def store_diskcache(folder: Path, blobs: Stored) -> None:
    """diskcache as it comes: SQLite with `synchronous=NORMAL`, larger values in files of their own."""
    with diskcache.Cache(str(folder)) as cache, cache.transact():
        for digest, content in blobs.items():
            cache.set(digest, content)


def _git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    variables = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, input=stdin, env=variables, check=True, capture_output=True).stdout


STORING: dict[str, Callable[[Path, Stored], None]] = {
    "velo": store_velo,
    "velo compressed": store_velo_compressed,
    "files": store_files,
    "files flushed": store_files_flushed,
    "git": store_git,
    "diskcache": store_diskcache,
}
# Where each blob waits for the disk, fewer tell as much: 20,000 in nine rounds took a quarter of an hour.
MOST = {"files flushed": 1000}

# --- reading -----------------------------------------------------------------------------------------------

Reader = Callable[[bytes], bytes | memoryview]


@contextlib.contextmanager
def read_index(folder: Path) -> Iterator[Reader]:
    """Found in the mapped index, copied out of the mapped pack (or unpacked), hashed."""
    with BlobIndex(Store.open(folder)) as index:

        def get(digest: bytes) -> bytes:
            view = index.get(digest)
            assert view is not None
            with view:
                return bytes(view)

        yield get


@contextlib.contextmanager
def read_mapped(folder: Path) -> Iterator[Reader]:
    """Found in the mapped index; a view of the mapped pack, nothing copied and nothing hashed."""
    index = BlobIndex(Store.open(folder))  # its views outlive this block, so it is not closed

    def get(digest: bytes) -> memoryview:
        view = index.get(digest, verify=False)
        assert view is not None
        return view

    yield get


@contextlib.contextmanager
def read_pack(folder: Path) -> Iterator[Reader]:
    """Found in the pack's own index by bisection, read through a descriptor, hashed."""
    with open_pack(next(Store.open(folder).packs.glob("*/*.pack"))) as file:

        def get(digest: bytes) -> bytes:
            entry = file.find(digest)
            assert entry is not None
            return file.read(entry)

        yield get


@contextlib.contextmanager
def read_files(folder: Path) -> Iterator[Reader]:
    """Opened by name, read, not hashed."""

    def get(digest: bytes) -> bytes:
        name = digest.hex()
        with open(f"{folder}/{name[:2]}/{name}", "rb", 0) as file:
            return file.read()

    yield get


@contextlib.contextmanager
def read_git(folder: Path) -> Iterator[Reader]:
    """`git cat-file --batch`, one request at a time over a pipe; git checks the object it reads."""
    listing = _git(folder, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").decode().split()
    contents = _git(folder, "cat-file", "--batch", stdin="\n".join(listing).encode() + b"\n")
    names: dict[bytes, bytes] = {}
    at = 0
    while at < len(contents):
        end = contents.index(b"\n", at)
        name, _, size = contents[at:end].split()
        content = contents[end + 1 : end + 1 + int(size)]
        names[blake3(content).digest()] = name
        at = end + 2 + int(size)
    process = subprocess.Popen(
        ["git", "-C", str(folder), "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    source, sink = process.stdout, process.stdin

    def get(digest: bytes) -> bytes:
        sink.write(names[digest] + b"\n")
        sink.flush()
        size = int(source.readline().split()[2])
        return source.read(size + 1)[:-1]

    yield get
    sink.close()
    process.wait()


@contextlib.contextmanager
def read_diskcache(folder: Path) -> Iterator[Reader]:
    """Found in SQLite, the value from there."""
    with diskcache.Cache(str(folder)) as cache:
        yield cache.get


READING: dict[str, tuple[str, Callable[[Path], contextlib.AbstractContextManager[Reader]]]] = {
    "velo index": ("velo", read_index),
    "velo index, mapped": ("velo", read_mapped),
    "velo index, compressed": ("velo compressed", read_index),
    "velo pack": ("velo", read_pack),
    "files": ("files", read_files),
    "git": ("git", read_git),
    "diskcache": ("diskcache", read_diskcache),
}


def look_up_in_c(home: Path, asked: Sequence[bytes], folder: Path) -> dict[str, Any]:
    """Nanoseconds for each look-up in the mapped index from C, all digests in random order."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return {"skipped": "no C compiler"}
    program, digests = folder / "look-up", folder / "digests"
    include = CHECKOUT / "velo_import" / "_native"
    source = CHECKOUT / "bench" / "store.c"
    subprocess.run([compiler, "-O2", f"-I{include}", str(source), "-o", str(program)], check=True)
    digests.write_bytes(b"".join(asked))
    index = Store.open(home).packs / "index.velo"
    lines = subprocess.run([program, index, digests], check=True, capture_output=True, text=True).stdout
    return dict(spread([float(line) for line in lines.split()], 1))


def render(record: dict[str, Any]) -> str:
    """A table in microseconds for each blob."""
    rows = [f"{'arm':<28}{'us':>9}  (p10-p90)"]
    for name, found in record["microseconds"].items():
        rows.append(f"{name:<28}{found['lower_quartile']:>9.2f}  ({found['p10']:.2f}-{found['p90']:.2f})")
    in_c = record["nanoseconds_in_c"]
    rows.append(f"{'find from C':<28}" + (in_c.get("skipped") or f"{in_c['lower_quartile']:>9.0f}  ns"))
    return "\n".join(rows)


if __name__ == "__main__":
    run_as_program(main)

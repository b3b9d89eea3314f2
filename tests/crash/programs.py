# SPDX-License-Identifier: Apache-2.0
"""Programs that write to a store, and the server that forks them, armed with a fault.

Run as `python -m tests.crash.programs`: one request in JSON on each line of standard input, one answer on
each line of standard output. A program makes promises ("these bytes are in the store") by printing them,
each on a line of its own, once the call that makes them true has returned. The surprise: programs run in a
fork of a process that has imported everything, because hundreds of them have to die within a minute.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import marshal
import os
import random
import select
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.crash import judge
from tests.crash.faults import ALL, NOTHING
from velo_import.errors import VeloError
from velo_import.format.manifest import Build, manifest_key
from velo_import.host import files
from velo_import.ingest import apply, codes, ingest
from velo_import.ingest.bytecode import Source
from velo_import.ingest.interpreter import Interpreter
from velo_import.ingest.learning import learn
from velo_import.ingest.scan import Area
from velo_import.store import compaction, gc, leases, repack, repair, verify
from velo_import.store.blobs import Blobs
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store
from velo_import.store.packs import PackWriter, seal_all

REFUSED = 3  # Exit code of a program that met a VeloError.


def promise(**said: Any) -> None:
    """Say what has to be true from now on, whatever happens."""
    os.write(1, json.dumps(said).encode() + b"\n")


# -- the programs ----------------------------------------------------------------------------------


def store_blobs(home: Path, *, seed: int, folder: str, **_: Any) -> None:
    """Packs and loose blobs straight into the store, as ingest and learning put them there."""
    chance = random.Random(seed)
    store = Store.open(home, create=True)
    digests = []
    writers = []
    for number in range(3):
        writers.append(PackWriter(store, label=f"{seed}-{number}", kind="content"))
        for _ in range(chance.randrange(1, 6)):
            data = chance.randbytes(chance.choice((0, 1, 90, 5_000, 120_000)))
            writers[-1].add(data)
            digests.append(blake3(data).hexdigest())
    sources = []
    for number in range(2):
        path = Path(folder) / f"loose-{number}"
        path.write_bytes(chance.randbytes(chance.choice((10, 5_000, 300_000))))
        sources.append(path)
        digests.append(blake3(path.read_bytes()).hexdigest())
    packs = seal_all(writers)
    blobs = Blobs(store).put_files(sources)
    with Catalog.open(store) as catalog, catalog.write() as writing:
        for pack in packs:
            writing.put_pack(pack)
        for blob in blobs:
            writing.put_loose(blob.digest, blob.size)
    promise(blobs=digests)


def ingest_tree(home: Path, *, tree: str, **_: Any) -> None:
    """`velo ingest` of a small project."""
    store = Store.open(home, create=True)
    summary = ingest(Path(tree), store=store, python=sys.executable, jobs=1)
    promise(
        blobs=[blake3(path.read_bytes()).hexdigest() for path in _files(Path(tree))],
        manifest=str(Path(summary.manifest).relative_to(home)),
    )


def learn_program(home: Path, *, tree: str, **_: Any) -> None:
    """What the learner does after a program has ended that imported every module of the tree."""
    store = Store.open(home, create=True)
    interpreter = _interpreter()
    build = interpreter.build()
    said = {
        "key": manifest_key(build, interpreter.prefix),
        "executable": interpreter.executable,
        "prefix": interpreter.prefix,
        "base_prefix": interpreter.base_prefix,
        "identity": build.identity().hex(),
        "mark": "00" * 8,
        "path": tree,
    }
    records = ["velo-notes 1", *(f"{name}={value}" for name, value in said.items())]
    records += [f"module={path.stem}\t{path}" for path in _files(Path(tree)) if path.suffix == ".py"]
    summary = learn(b"".join(os.fsencode(record) + b"\0" for record in records), store)
    if summary.folders:
        promise(manifest=str(Path(summary.manifest).relative_to(home)))


def rebuild_catalogue(home: Path, *, seed: int, **_: Any) -> None:
    """The catalogue is lost and made again, or made again by `velo rebuild`."""
    store = Store.open(home, create=True)
    promise(catalogue=False)
    if seed % 2:
        (store.catalogue / "data.mdb").unlink(missing_ok=True)
        Catalog.open(store).close()
    else:
        with leases.exclusive(store):
            Catalog.rebuild(store).close()
    promise(catalogue=True, rows=True)


def collect_garbage(home: Path, *, seed: int, **_: Any) -> None:
    """`velo gc`: what no manifest needs goes at once; now and then all environments are given up."""
    store = Store.open(home, create=True)
    if seed % 4:
        promise(forget=["blobs"])
        wish = gc.Wish(grace=0.0)
    else:
        promise(forget=["blobs", "manifests"])
        keys = tuple({path.parent.name for path in store.manifests.glob("*/*.velo")})
        wish = gc.Wish(grace=0.0, forget=keys)
    try:
        gc.collect(store, wish)
    except VeloError:
        promise(forget=[], rows=False)  # On a full disk the files go first, and then perhaps no row can.
        raise
    promise(collected=True)


def repack_store(home: Path, *, seed: int, **_: Any) -> None:
    """`velo store repack`: in turn everything is cold and compressed, and everything is used again."""
    store = Store.open(home, create=True)
    with leases.maintenance(store), Catalog.open(store) as catalog:
        later = time.time() + 2 * repack.GRACE
        repack.repack(store, catalog, now=later, cold_after=-1.0 if seed % 2 else 1e9)
    promise(repacked=True)


def compact_catalogue(home: Path, *, seed: int, folder: str, **_: Any) -> None:
    """What every large ingest, `velo gc` and `velo store repack` do at their end, worth it or not."""
    store_blobs(home, seed=seed, folder=folder)
    compaction._LEAST_FREE, compaction._LEAST_PART = 1, 0.0
    promise(compacted=compaction.compact(Store.open(home)))


def repair_store(home: Path, **_: Any) -> None:
    """`velo verify`."""
    store = Store.open(home, create=True)
    with leases.maintenance(store), Catalog.open(store) as catalog:
        found = verify.verify(store, catalog, jobs=1)
        outcomes = repair.repair(store, catalog, found)
    promise(healed=[outcome.is_healed for outcome in outcomes])


def fill_catalogue(home: Path, *, rows: int, steps: int) -> None:
    """Rows as a large store has them, without the files, in so many changes."""
    with Catalog.open(Store.open(home, create=True)) as catalog:
        for step in range(steps):
            with catalog.write() as writing:
                for number in range(rows):
                    writing.put_loose(blake3(b"%d %d" % (step, number)).digest(), 4096)
    promise(rows=rows)


def reopen(home: Path, **_: Any) -> None:
    """What the next command has to wait for."""
    began = time.perf_counter()
    Catalog.open(Store.open(home, create=True)).close()
    promise(seconds=time.perf_counter() - began)


def stay(home: Path, **_: Any) -> None:
    """Do nothing, so that what others did is struck."""
    signal.pause()


def examine(home: Path, *, promised: dict[str, Any], stamps: bool = True) -> None:
    """What the store lacks, as `judge` sees it; printed as a promise is."""
    kept = judge.Promises(**{**promised, "blobs": set(promised["blobs"])})
    promise(**judge.examine(home, kept, stamps=stamps)._asdict())


PROGRAMS: dict[str, Callable[..., None]] = {
    each.__name__: each
    for each in (
        store_blobs,
        ingest_tree,
        learn_program,
        rebuild_catalogue,
        collect_garbage,
        repack_store,
        repair_store,
        compact_catalogue,
        fill_catalogue,
        reopen,
        stay,
        examine,
    )
}


def _files(tree: Path) -> Iterator[Path]:
    return (path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink())


def _interpreter() -> Interpreter:
    return Interpreter(
        executable=sys.executable,
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        version=".".join(map(str, sys.version_info[:3])),
        implementation="cpython",
        cache_tag=sys.implementation.cache_tag or "",
        magic=importlib.util.MAGIC_NUMBER,
        abiflags=getattr(sys, "abiflags", ""),
        suffixes=(".so", ".py", ".pyc"),
        gil_disabled=False,
        stdlib=(sysconfig.get_path("stdlib"),),
        sys_path=(),
    )


class _Probe:
    """An answer without a question: starting an interpreter takes longer than all else here."""

    said = b"cpython"

    def __init__(self, python: str) -> None:
        pass

    def answer(self) -> Interpreter:
        return _interpreter()

    def abandon(self) -> None:
        pass


def _compile_here(
    sources: Iterable[Source], executable: str, build: Build, jobs: int
) -> Iterator[tuple[int, bytes | None]]:
    for source in sources:
        yield source.ticket, marshal.dumps(compile(source.text, source.path, "exec", dont_inherit=True))


def _calm() -> None:
    """Take out what costs time and never touches the store: other interpreters, and the standard library."""
    apply.areas_of = lambda target, interpreter: (Area(target, apply.TREE),)  # type: ignore[assignment]
    apply.Probe = _Probe  # type: ignore[assignment,misc]
    codes.compile_all = _compile_here
    gc._WORTH_BYTES = 0  # Packs are written again also when little is gained.


# -- the server ------------------------------------------------------------------------------------


def sabotage(what: str) -> None:
    """Make the store worse, so that the rig can show that it notices."""
    flush = files._flush
    if what == "files are not flushed":
        files._flush = lambda path: flush(path) if path.is_dir() else None
    elif what == "folders are not flushed":
        files._flush = lambda path: None if path.is_dir() else flush(path)
    elif what == "files are not renamed":
        os.rename = _rewrite
    else:
        raise ValueError(what)


def _rewrite(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())
    source.unlink()


def _run(request: dict[str, Any], shim: ctypes.CDLL) -> int:
    try:
        if "sabotage" in request:
            sabotage(request["sabotage"])
        fault = request.get("fault")
        if fault is not None:
            record = -1
            if "record" in fault:
                record = os.open(fault["record"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            shim.arm(
                os.fsencode(fault["root"]),
                fault.get("classes", ALL),
                fault.get("action", NOTHING),
                ctypes.c_long(fault.get("at", 0)),
                fault.get("error", 0),
                fault.get("sticky", 0),
                fault.get("seed", 0),
                record,
                1,
            )
        PROGRAMS[request["program"]](Path(request["home"]), **request.get("arguments", {}))
        if fault is not None:
            os.write(1, b'{"operations": %d}\n' % shim.operations())
    except VeloError as error:
        os.write(2, f"{error} | {error.hint}\n".encode())
        return REFUSED
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 1
    return 0


def _serve_one(request: dict[str, Any], shim: ctypes.CDLL) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os._exit(_run(request, shim))
    os.close(writing)
    deadline = time.monotonic() + request.get("after", 60.0)
    output = b""
    stopped = False
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            if "cut" in request:
                shim.cut_power(os.fsencode(request["cut"]), request["seed"])
            os.kill(child, signal.SIGKILL)
            stopped = True
            deadline = time.monotonic() + 60.0
        elif data := os.read(reading, 1 << 16):
            output += data
        else:
            break
    os.close(reading)
    _, status = os.waitpid(child, 0)
    # What follows the last end of a line was never said.
    said = [json.loads(line) for line in output.split(b"\n")[:-1]]
    return {"code": os.waitstatus_to_exitcode(status), "said": said, "stopped": stopped}


def serve() -> None:
    shim = ctypes.CDLL(os.environ.pop("LD_PRELOAD")) if "LD_PRELOAD" in os.environ else None
    _calm()
    for line in sys.stdin:
        print(json.dumps(_serve_one(json.loads(line), shim)), flush=True)


if __name__ == "__main__":
    serve()

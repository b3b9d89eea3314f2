# SPDX-License-Identifier: Apache-2.0
"""Images of the modules that programs start with: made by their interpreter, proved by it, and published.

Knows which modules get one and for how long it is kept; what an image is, is known to image_worker.py. The
surprise: before the file gets its name, another process has the native module load what is new in it, and
compares each object with what unmarshalling makes. What is not proved gets no image.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from struct import Struct

from velo_import.errors import StoreCorrupt, VeloError
from velo_import.format.images import Image, Images, Key, decode_images, encode_images, stamped_header
from velo_import.format.images import places as places_in
from velo_import.format.manifest import Build
from velo_import.host.files import (
    create_temporary,
    explained,
    read_file,
    remove_quietly,
    rename_all,
    write_all,
)
from velo_import.store.layout import Store

from .plan import Code
from .remembering import split_answer

SIZE, LAYOUT, CHECKS = Struct("<I"), Struct("<4I"), Struct("<QQI")
MOST_BYTES = 128 << 20  # Of all images of one environment; the oldest go first.
PATIENCE_SECONDS = 60
WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "image_worker.py")
NATIVE = os.path.join(os.path.dirname(os.path.dirname(WORKER)), "_native", "core.abi3.so")


class Unproved(Exception):
    """These images are not what unmarshalling makes, or their interpreter ended while it compared them."""

    def __init__(self, keys: Sequence[Key]) -> None:
        super().__init__(f"{len(keys)} images")
        self.keys = keys


def images_path(store: Store, key: str) -> Path:
    """Where the images of an environment are."""
    return store.manifest_folder(key) / "images.table"


def image_places(store: Store, key: str) -> tuple[int, dict[Key, tuple[int, int]]]:
    """Where the tables of the file end, and where each image lies: offset and length; nothing without it."""
    try:
        data = read_file(images_path(store, key))
        decode_images(data)
    except (OSError, StoreCorrupt):
        return 0, {}
    return places_in(data)


def image(
    store: Store,
    key: str,
    build: Build,
    executable: str,
    codes: Iterable[Code],
    payload: Callable[[Code], bytes],
    *,
    anew: bool,
) -> bool:
    """Make images of this bytecode where there are none yet; whether that changed anything.

    Args:
        codes: in the order of the start.
        payload: gives verified bytecode, or nothing.
        anew: whether the hook could not use the file that is there.

    Raises:
        VeloError: the interpreter cannot do the work.
        OSError: the store cannot be written.
    """
    if not os.path.exists(NATIVE):
        return False  # Only native code can use them.
    path = images_path(store, key)
    identity = build.identity() + b"\0"
    try:
        old = decode_images(read_file(path))
    except (OSError, StoreCorrupt):
        old = Images(b"", (0,) * 4, {})
        anew = True
    wanted = {code.checks: code for code in codes}
    missing = {each: code for each, code in wanted.items() if each not in old.images}
    bytecode = {each: found for each, code in missing.items() if (found := payload(code))}
    if not bytecode and not anew:
        return False
    version, layout, made = _made(executable, build, bytecode)
    if old.images and (old.identity != identity + version or old.layout != layout):
        # Another interpreter in the same place: all of it is done again.
        old = Images(identity + version, layout, {})
        bytecode = {each: found for each, code in wanted.items() if (found := payload(code))}
        version, layout, made = _made(executable, build, bytecode)
    kept = newest({**old.images, **made})
    try:
        _publish(path, Images(identity + version, layout, kept), executable, build, bytecode)
    except Unproved as doubt:
        kept.update(dict.fromkeys(doubt.keys))
        _publish(path, Images(identity + version, layout, kept), executable, build, {})
    return True


def newest(images: Mapping[Key, Image | None]) -> dict[Key, Image | None]:
    """As many of the youngest images as there is room for."""
    size = 0
    kept = []
    for key, made in reversed(list(images.items())):
        size += len(made.data) if made is not None else 0
        if size > MOST_BYTES:
            break
        kept.append((key, made))
    return dict(reversed(kept))


def _made(
    executable: str, build: Build, bytecode: Mapping[Key, bytes]
) -> tuple[bytes, tuple[int, ...], dict[Key, Image | None]]:
    """The interpreter's `sys.version`, the layout of its objects, and the images that it makes."""
    data = b"".join(SIZE.pack(len(code)) + code for code in bytecode.values())
    version, layout, *answers = split_answer(_run(executable, build, ["make"], data))
    return version, LAYOUT.unpack(layout), dict(zip(bytecode, map(_image, answers), strict=True))


def _image(answer: bytes) -> Image | None:
    if not answer:
        return None
    data, internal, external, bodies, holes, others, marshalled, *names = split_answer(answer)
    count = SIZE.unpack(others)[0]
    return Image(data, internal, external, bodies, holes, count, marshalled, tuple(names))


def _publish(
    path: Path,
    images: Images,
    executable: str,
    build: Build,
    bytecode: Mapping[Key, bytes],
) -> None:
    """Write the file, stamp it, have the images of this bytecode proved, and give it its name."""
    data = encode_images(images)
    with explained(path):
        descriptor, temporary = create_temporary(path.parent)
        try:
            try:
                write_all(descriptor, data)
                now = time.time_ns()
                os.utime(descriptor, ns=(now, now))
                status = os.fstat(descriptor)  # Some file systems keep times less exactly.
                os.pwrite(descriptor, stamped_header(data, status.st_mtime_ns, status.st_ino), 0)
                os.fchmod(descriptor, 0o444)
                os.utime(descriptor, ns=(status.st_mtime_ns, status.st_mtime_ns))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            _prove(temporary, images, executable, build, bytecode)
            rename_all([(temporary, path)])
        except BaseException:
            remove_quietly(temporary)
            raise


def _prove(path: Path, images: Images, executable: str, build: Build, bytecode: Mapping[Key, bytes]) -> None:
    """Have the interpreter compare each image with the bytecode that it was made of; raise Unproved."""
    keys = [key for key in bytecode if images.images.get(key) is not None]
    if not keys:
        return
    task = b"".join(CHECKS.pack(*key, len(bytecode[key])) + bytecode[key] for key in keys)
    identity = build.identity() + b"\0"
    try:
        answer = _run(executable, build, ["prove", NATIVE, str(path), identity.hex()], task)
    except VeloError:
        answer = b""
    doubtful = [key for number, key in enumerate(keys) if answer[number : number + 1] != b"1"]
    if doubtful:
        raise Unproved(doubtful)


def _run(executable: str, build: Build, arguments: list[str], data: bytes) -> bytes:
    optimise = ["-" + "O" * build.optimisation] if build.optimisation else []
    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-B", *optimise, WORKER, *arguments],
            input=data,
            env={**os.environ, "VELO_DISABLE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise VeloError(
            f"{executable} could not make images of code: {error}",
            hint="run `velo doctor` in that environment",
        ) from error
    return done.stdout

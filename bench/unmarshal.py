# SPDX-License-Identifier: Apache-2.0
"""Ways to get a start's code objects: `python -m bench.unmarshal --help`.

One start of a program is learned; then processes of its interpreter do nothing but make the code objects of
that start, in its order, in one of these ways: unmarshal each module (as Python does), unmarshal all of them
as one stream (they share names and constants), or take images and unmarshal what has none (as Velo does).
The bytes are in memory before the clock starts, except for those of images, which are mapped, and touched,
while it runs. The collector is off.

The surprise: one stream, which has to be read whole before the first module may run, saves less than a fifth.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import records
from bench.arms import Velo, arms_of, clean_variables
from bench.environment import Environment, build
from bench.figures import lower_quartile, times
from bench.measure import BenchmarkFault, run, settle
from bench.programs import PROGRAMS, write_program
from bench.setting import begin
from velo_import.ingest.imaging import NATIVE, images_path
from velo_import.ingest.startup import Payloads, kept, known_to
from velo_import.store.layout import Store

WAYS = ("each", "stream", "images")
_LEARNING_PASSES = 3  # The second tells what the first one's learner could not see.
_HEAD = struct.Struct("<QQI")

_MAKE_STREAM = """
import marshal, struct, sys
data = open(sys.argv[1], "rb").read()
at, codes = 0, []
while at < len(data):
    size, = struct.unpack_from("<I", data, at + 16)
    codes.append(marshal.loads(data[at + 20 : at + 20 + size]))
    at += 20 + size
open(sys.argv[2], "wb").write(marshal.dumps(tuple(codes)))
"""

_TAKE = """
import gc, marshal, struct, sys
from time import perf_counter_ns
way, pieces, stream, native, images, identity = sys.argv[1:]
data = open(pieces, "rb").read()
at, codes = 0, []
while at < len(data):
    *checks, size = struct.unpack_from("<QQI", data, at)
    codes.append((checks, data[at + 20 : at + 20 + size]))
    at += 20 + size
whole = open(stream, "rb").read()
kind = type((lambda: None).__code__)
from importlib.machinery import ExtensionFileLoader, ModuleSpec
loader = ExtensionFileLoader("velo_import._native.core", native)
core = loader.create_module(ModuleSpec(loader.name, loader, origin=native))
loader.exec_module(core)
loads = marshal.loads
taken = 0
gc.disable()
begin = perf_counter_ns()
if way == "each":
    made = [loads(code) for _, code in codes]
elif way == "stream":
    made = loads(whole)
else:
    take = core.Images(images, 0, bytes.fromhex(identity) + sys.version.encode(), kind).take
    made = []
    for (source, bytecode), code in codes:
        found = take(source, bytecode, "file name")
        taken += found is not None
        made.append(loads(code) if found is None else found)
took = perf_counter_ns() - begin
print(took, len(made), taken)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    setting = begin("unmarshal", _parser(), arguments)
    options, record = setting.options, setting.record
    velo = setting.velo("unmarshal")
    environment = build(setting.work, setting.interpreter, "pyc")
    dice = random.Random(options.seed)
    record["programs"] = {}
    for name in options.programs.split(","):
        velo.forget()
        script = write_program(setting.work / "programs", name)
        task = _task(velo, environment, script, setting.work / "unmarshal")
        record["programs"][name] = measure(environment, task, options.runs, dice)
    print(render(record))
    records.keep(record, options.json)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.unmarshal", description="Ways to get a start's code objects."
    )
    parser.add_argument(
        "--programs", default="boto3,pandas,sympy", help=f"comma list of {', '.join(PROGRAMS)}"
    )
    parser.add_argument("--runs", type=int, default=21, help="timed processes per way (21)")
    parser.add_argument("--seed", type=int, default=1, help="of the order of the ways")
    records.add_common_options(parser)
    return parser


def _task(velo: Velo, environment: Environment, script: Path, folder: Path) -> list[str]:
    """Learn the program, and write down what its start unmarshals; what a process has to be told."""
    arm = arms_of(clean_variables(os.environ), velo)["velo"]
    for _ in range(_LEARNING_PASSES):
        run(arm.command(environment.python, str(script)), arm.variables)
        settle()
    store = Store.open(velo.home)
    keys = [path.name for path in (velo.home / "manifests" / "v1").iterdir() if kept(store, path.name)]
    if len(keys) != 1:
        raise BenchmarkFault(f"one environment should have been learned, not {len(keys)}")
    (key,) = keys
    codes = known_to(store, key).codes
    folder.mkdir(parents=True, exist_ok=True)
    pieces, stream = folder / "pieces", folder / "stream"
    with Payloads(store) as payloads, pieces.open("wb") as file:
        for origin in kept(store, key)[-1].start.origins:
            if (code := codes.get(origin)) is not None and (payload := payloads.of(code)):
                file.write(_HEAD.pack(*code.checks, len(payload)) + payload)
    isolated = [str(environment.python), "-I", "-S", "-B", "-c"]
    subprocess.run([*isolated, _MAKE_STREAM, str(pieces), str(stream)], check=True)
    images = images_path(store, key)
    data = images.read_bytes()
    (length,) = struct.unpack_from("<Q", data, 32)
    identity = data[128 : 128 + length].partition(b"\0")[0] + b"\0"
    return [*isolated, _TAKE, "WAY", str(pieces), str(stream), str(NATIVE), str(images), identity.hex()]


def measure(environment: Environment, task: Sequence[str], runs: int, dice: random.Random) -> dict[str, Any]:
    """Milliseconds by way, in interleaved processes."""
    taking: dict[str, list[float]] = {way: [] for way in WAYS}
    modules: set[int] = set()
    taken = 0
    for _ in range(runs):
        for way in dice.sample(WAYS, len(WAYS)):
            command = [way if word == "WAY" else word for word in task]
            done = subprocess.run(command, capture_output=True, check=True, text=True)
            took, made, images = map(int, done.stdout.split())
            taking[way].append(took / 1e6)
            modules.add(made)
            taken = max(taken, images)
    if len(modules) != 1 or not taken:
        raise BenchmarkFault(f"not the same in all ways: {modules} modules, {taken} images")
    return {
        "modules": modules.pop(),
        "images": taken,
        "milliseconds": {way: round(lower_quartile(values), 3) for way, values in taking.items()},
        "raw": {way: [round(value, 3) for value in values] for way, values in taking.items()},
    }


def render(record: Mapping[str, Any]) -> str:
    lines = [
        "code objects of one start, ms (lower quartile), and how many times as fast as unmarshalling each"
    ]
    for name, found in record["programs"].items():
        took = found["milliseconds"]
        ways = ", ".join(f"{way} {took[way]:.2f} ({times(took['each'] / took[way])})" for way in WAYS)
        lines.append(f"{name} ({found['modules']} modules, {found['images']} with images): {ways}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())

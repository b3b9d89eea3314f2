# SPDX-License-Identifier: Apache-2.0
"""Everybody who makes Python start faster without changing the program, each ready to start one: the peers.

A peer says which interpreter and variables a program gets, what has to be done once for a program, and which
files a cold start reads. Packages are the same locked files for all, compiled by the same interpreter; only
where they lie and who serves them differs. What cannot be had on this machine is `Unavailable`, with the
reason; bench.everybody prints it.

The surprise: peers have their packages in different places, so a program's output is compared after
`places` has been replaced in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import pagecache
from bench.arms import CHECKOUT, Velo, clean_variables, find_velo, read_stats
from bench.environment import Environment, build, find_uv
from bench.interpreters import Interpreter
from bench.measure import BenchmarkFault, run, settle

_LEARNING_PASSES = 2
# As `compileall --invalidation-mode unchecked-hash` leaves them (with -b), from what is compiled already.
_NEVER_CHECK = """
import _imp, importlib.util, pathlib, sys
for path in list(pathlib.Path(sys.argv[1]).rglob("__pycache__/*.pyc")):
    source = path.parent.parent / (path.name.split(".")[0] + ".py")
    target = source.with_suffix(".pyc") if sys.argv[2] else path
    if source.exists():
        check = _imp.source_hash(importlib.util._RAW_MAGIC_NUMBER, source.read_bytes())
        data = path.read_bytes()
        path.unlink()
        target.write_bytes(data[:4] + b"\\1\\0\\0\\0" + check + data[16:])
"""
_MEMORY = Path("/dev/shm")


class Unavailable(Exception):
    """This machine or this Python cannot have that peer; the text says why."""


@dataclass
class Peer:
    """One way to start programs."""

    name: str
    about: str
    python: Path
    places: tuple[Path, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    # What one program needs beforehand, and the variables that are its own afterwards.
    learn: Callable[[str, Path, Mapping[str, str]], Mapping[str, str]] = lambda name, script, base: {}
    # What the peer is known to change in a program's output, and is forgiven: from, to.
    forgiven: tuple[tuple[bytes, bytes], ...] = ()
    files: tuple[Path, ...] = ()
    cool: Callable[[], None] = lambda: None
    own: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def command(self, script: Path) -> list[str]:
        return [str(self.python), *self.options, str(script)]

    def prepare(self, name: str, script: Path, base: Mapping[str, str]) -> None:
        """Everything that happens once: learning, dumping, packing. Not measured."""
        self.own[name] = self.learn(name, script, {**base, **self.variables})

    def environment(self, name: str, base: Mapping[str, str]) -> dict[str, str]:
        return {**base, **self.variables, **self.own.get(name, {})}


class Workshop:
    """Makes peers below one work folder; what it mounts it unmounts."""

    def __init__(self, work: Path, interpreter: Interpreter, velo: str, mounts: contextlib.ExitStack) -> None:
        self.work = work / "peers"
        self.work.mkdir(exist_ok=True)
        self.root = work
        self.interpreter = interpreter
        self.velo = velo
        self.mounts = mounts
        self.compiled = build(work, interpreter, "pyc")

    def peers(self) -> Iterator[tuple[str, Callable[[], Peer]]]:
        """Every name, and what makes it or raises Unavailable."""
        yield "plain", self.plain
        yield "unchecked", self.unchecked
        yield "tmpfs", self.tmpfs
        yield "zip", self.zipped
        yield "squashfs", self.squashfs
        yield "frozen-on", lambda: self.frozen("on")
        yield "frozen-off", lambda: self.frozen("off")
        yield "pycds", self.pycds
        yield "oxidized", self.oxidized
        yield "velo-twin", self.twin
        yield "velo", self.native
        yield "velo-pack", self.packed

    def plain(self) -> Peer:
        return self._peer("plain", "CPython as it is, `.pyc` files checked by time stamp", self.compiled)

    def unchecked(self) -> Peer:
        """No stat of a source is needed to believe a `.pyc`; the finder still asks for each file."""
        environment = self._copy("unchecked")
        self._never_check(environment.site_packages)
        return self._peer("unchecked", "`.pyc` files that are never checked (unchecked-hash)", environment)

    def tmpfs(self) -> Peer:
        """Filled by the programs themselves, standard library included."""
        if not _MEMORY.is_dir():
            raise Unavailable(f"no {_MEMORY}")
        folder = _MEMORY / f"velo-bench-{os.getuid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        self.mounts.callback(shutil.rmtree, folder, ignore_errors=True)
        bare = build(self.root, self.interpreter, "bare")
        about = "all `.pyc` files below PYTHONPYCACHEPREFIX in memory (a cold start finds them there)"
        peer = self._peer("tmpfs", about, bare, {"PYTHONPYCACHEPREFIX": str(folder)})
        peer.learn = lambda name, script, base: self._started(peer, script, base)
        return peer

    def zipped(self) -> Peer:
        """Native modules cannot be in a zip file: packages that have one lie beside it, in a folder."""
        folder = self.work / f"zip-{self.interpreter.tag}"
        archive, rest = folder / "packages.zip", folder / "rest"
        if not archive.exists():
            shutil.rmtree(folder, ignore_errors=True)
            inside = folder / "inside"
            inside.mkdir(parents=True)
            rest.mkdir()
            for path in sorted(self.compiled.site_packages.iterdir()):
                target = inside if _is_pure(path) else rest
                if path.is_dir():
                    shutil.copytree(path, target / path.name)
                else:
                    shutil.copy2(path, target / path.name)
            # Beside its source, and never checked: where and how zipimport likes it best.
            self._never_check(inside, beside=True)
            temporary = folder / "packages.tmp"
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as file:
                for path in sorted(inside.rglob("*")):
                    if path.name != "__pycache__":
                        file.write(path, path.relative_to(inside))
            temporary.rename(archive)
            shutil.rmtree(inside)
        empty = build(self.root, self.interpreter, "empty")
        about = (
            "packages without native modules in an uncompressed zip file with bytecode; others in a folder"
        )
        peer = self._peer("zip", about, empty, {"PYTHONPATH": f"{archive}{os.pathsep}{rest}"})
        peer.places = (archive, rest)
        peer.forgiven = ((b"__init__.pyc", b"__init__.py"),)  # `__file__` of a module with bytecode
        peer.files = (archive, rest)
        return peer

    def squashfs(self) -> Peer:
        """One image of the whole site-packages, mounted read-only through a loop device."""
        maker = shutil.which("mksquashfs")
        if maker is None:
            raise Unavailable("needs mksquashfs (apt-get install squashfs-tools)")
        if os.geteuid() != 0:
            raise Unavailable("only root may mount an image")
        environment = build(self.root, self.interpreter, "mount-squashfs")
        image = self.work / f"packages-{self.interpreter.tag}.squashfs"
        if not image.exists():
            temporary = image.with_suffix(".tmp")
            words = [
                maker,
                str(self.compiled.site_packages),
                str(temporary),
                "-noappend",
                "-quiet",
                "-no-progress",
            ]
            self._call([*words, "-comp", "zstd", "-Xcompression-level", "3"])
            temporary.rename(image)
        place = environment.site_packages

        def mount() -> None:
            self._call(["mount", "-o", "loop,ro", str(image), str(place)])

        def unmount() -> None:
            if os.path.ismount(place):
                self._call(["umount", str(place)])

        def cool() -> None:
            unmount()
            pagecache.evict([image])
            mount()

        unmount()
        try:
            mount()
        except BenchmarkFault as fault:
            raise Unavailable(f"the image cannot be mounted: {fault}") from None
        self.mounts.callback(unmount)
        peer = self._peer(
            "squashfs", "site-packages with `.pyc` files in a mounted squashfs image (zstd)", environment
        )
        peer.variables = {"PYTHONDONTWRITEBYTECODE": "1"}
        peer.cool = cool
        peer.files = ()  # its pages go with the mount
        return peer

    def frozen(self, value: str) -> Peer:
        about = "`-X frozen_modules=on`, which is what an installed Python does anyway"
        if value == "off":
            about = "`-X frozen_modules=off`: what the few frozen modules of the standard library save"
        peer = self._peer(f"frozen-{value}", about, self.compiled)
        peer.options = ("-X", f"frozen_modules={value}")
        return peer

    def pycds(self) -> Peer:
        """One archive for each program, of the modules that it imports; what changes later goes unnoticed."""
        environment = self._copy("pycds")
        self._install(environment, "code-data-share")

        def learn(name: str, script: Path, base: Mapping[str, str]) -> Mapping[str, str]:
            names = self.work / f"{name}.{self.interpreter.tag}.cds-list"
            archive = names.with_suffix(".cds-image")
            names.unlink(missing_ok=True)
            archive.unlink(missing_ok=True)
            self._started(peer, script, {**base, "PYCDSMODE": "TRACE", "PYCDSLIST": str(names)})
            dump = f"import cds.dump; cds.dump.run_dump({str(names)!r}, {str(archive)!r})"
            self._call([str(environment.python), "-c", dump], base)
            if not archive.exists():
                raise BenchmarkFault("no archive was dumped")
            shared = {"PYCDSMODE": "SHARE", "PYCDSARCHIVE": str(archive)}
            proof = "import sys; sys.exit('CDSFinder' not in str(sys.meta_path))"
            self._call([str(environment.python), "-c", proof], {**base, **shared})
            return shared

        about = "code-data-share: code objects mapped into memory, no check of any source"
        peer = self._peer("pycds", about, environment)
        peer.learn = learn
        peer.files = (environment.prefix, self.work)
        return peer

    def oxidized(self) -> Peer:
        """Its wheels end with CPython 3.10, before the first Python that Velo knows."""
        environment = build(self.root, self.interpreter, "mount-oxidized")
        self._install(environment, "oxidized_importer")
        raise Unavailable("oxidized_importer has become installable: bench/peers.py needs a recipe for it")

    def twin(self) -> Peer:
        """A copy of this checkout without its native modules."""
        folder = self.work / "twin"
        shutil.rmtree(folder, ignore_errors=True)
        skipped = shutil.ignore_patterns("*.so", "__pycache__")
        for name in ("velo_import", "sitecustomize"):
            shutil.copytree(CHECKOUT / name, folder / name, ignore=skipped)
        code = (
            f"import sys; sys.path.insert(0, {str(folder)!r}); "
            "from velo_import.__main__ import main; sys.exit(main())"
        )
        command = (sys.executable, "-I", "-c", code)
        return self._accelerated("velo-twin", "Velo without its native module", command, [folder])

    def native(self) -> Peer:
        return self._accelerated("velo", "Velo, after it has learned", None, [])

    def packed(self) -> Peer:
        peer = self._accelerated("velo-pack", "Velo, after `velo pack` of each program", None, [])
        learn, home = peer.learn, Path(peer.variables["VELO_HOME"])
        velo = self._find(home)

        def learn_and_pack(name: str, script: Path, base: Mapping[str, str]) -> Mapping[str, str]:
            learn(name, script, base)
            done = velo.call("pack", "--json", "--", *peer.command(script), variables=_without_velo(base))
            if done.returncode:
                raise BenchmarkFault(f"velo pack failed: {done.stderr.strip()[-300:]}")
            self._prove_served(peer, script, base)
            return {}

        peer.learn = learn_and_pack
        return peer

    def _accelerated(self, name: str, about: str, command: tuple[str, ...] | None, files: list[Path]) -> Peer:
        home = self.root / "homes" / f"{self.interpreter.tag}-everybody-{name}"
        velo = self._find(home) if command is None else Velo(command, home)
        velo.forget()
        variables = velo.injected({})
        roots = files or [CHECKOUT / "velo_import", CHECKOUT / "sitecustomize"]
        peer = self._peer(name, about, self.compiled, variables)
        peer.files = (*peer.files, home, *roots)

        def learn(program: str, script: Path, base: Mapping[str, str]) -> Mapping[str, str]:
            for _ in range(_LEARNING_PASSES):
                self._call(
                    [*velo.command, "run", "--", *peer.command(script)], {**base, "VELO_HOME": str(home)}
                )
                settle()
            self._prove_served(peer, script, base)
            return {}

        peer.learn = learn
        return peer

    def _prove_served(self, peer: Peer, script: Path, base: Mapping[str, str]) -> None:
        """No figure without modules that were served, nor with an error."""
        stats = self.work / "stats.jsonl"
        stats.unlink(missing_ok=True)
        self._started(peer, script, {**base, **peer.variables, "VELO_STATS": str(stats)})
        settle()
        totals = read_stats(stats)
        if not totals["served"] or totals["errors"]:
            raise BenchmarkFault(f"not served: {totals}")

    def _find(self, home: Path) -> Velo:
        velo = find_velo(home, self.velo)
        if velo is None:
            raise Unavailable("there is no velo to measure")
        return velo

    def _peer(
        self, name: str, about: str, environment: Environment, variables: Mapping[str, str] | None = None
    ) -> Peer:
        return Peer(
            name,
            about,
            environment.python,
            (environment.site_packages,),
            variables or {},
            files=(environment.prefix,),
        )

    def _copy(self, name: str) -> Environment:
        """The compiled packages once more, in an environment of their own."""
        environment = build(self.root, self.interpreter, f"mount-{name}")
        if not (environment.prefix / "copied").exists():
            shutil.rmtree(environment.site_packages)
            shutil.copytree(self.compiled.site_packages, environment.site_packages, symlinks=True)
            (environment.prefix / "copied").touch()
        return environment

    def _never_check(self, folder: Path, *, beside: bool = False) -> None:
        """Make the `.pyc` files of this folder unchecked-hash ones, in place or beside their sources."""
        self._call(
            [str(self.interpreter.executable), "-I", "-c", _NEVER_CHECK, str(folder), "beside" * beside]
        )

    def _install(self, environment: Environment, package: str) -> None:
        words = [
            *find_uv(),
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "--python",
            str(environment.python),
        ]
        try:
            self._call([*words, package])
        except BenchmarkFault:
            raise Unavailable(f"{package} has no wheel for CPython {self.interpreter.short}") from None

    def _started(self, peer: Peer, script: Path, variables: Mapping[str, str]) -> Mapping[str, str]:
        done = run(peer.command(script), variables)
        if done.exit_code:
            raise BenchmarkFault(done.stderr.decode(errors="replace")[-300:])
        return {}

    def _call(self, command: list[str], variables: Mapping[str, str] | None = None) -> None:
        environment = clean_variables(os.environ) if variables is None else dict(variables)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkFault(f"{Path(command[0]).name} failed: {done.stderr.strip()[-300:]}")


def _is_pure(path: Path) -> bool:
    """Whether a package, or a single module, can be in a zip file. Metadata stays outside."""
    if path.is_dir():
        return not path.name.endswith((".dist-info", ".libs")) and not any(path.rglob("*.so*"))
    return path.suffix == ".py"


def _without_velo(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not name.startswith(("VELO_", "PYTHON"))}

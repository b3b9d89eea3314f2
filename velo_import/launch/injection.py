# SPDX-License-Identifier: Apache-2.0
"""What a program needs to find Velo: the folder with our `sitecustomize`, what Node loads first, and the
command that learns.

Knows where both are in an installation and in a checkout. Leaves everything in the store but `run/learner`
to the store's own modules, which cost 40 ms to import: `velo run` cannot wait for them.
"""

import os
import sys
import time

# What a store may hold beside VERSION; a folder with anything else in it is not ours to write to.
_MAY_PRECEDE_VERSION = {"run", "cas_store", "packs", "meta.db", "manifests", "indexes", "pool", "tenants"}

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def injection_folder() -> str:
    """The folder that PYTHONPATH gets: `velo_import/_inject` when installed, `sitecustomize/` in a
    checkout.
    """
    installed = os.path.join(_PACKAGE, "_inject")
    if os.path.isfile(os.path.join(installed, "sitecustomize.py")):
        return installed
    return os.path.join(os.path.dirname(_PACKAGE), "sitecustomize")


def preload_file() -> str:
    """What NODE_OPTIONS makes every Node load: `velo_import/_node/index.cjs` when installed, in a checkout
    `node_accel/index.cjs`. Empty where it is missing: a Node that cannot find it would not start.
    """
    beside, name = os.path.split(injection_folder())
    path = os.path.join(beside, "_node" if name == "_inject" else "node_accel", "index.cjs")
    return path if os.path.isfile(path) else ""


def learner_command() -> list[str]:
    """How a detached process learns. `-I`: nothing of the program's environment may change what it does."""
    parent = os.path.dirname(_PACKAGE)
    # -I hides checkouts, user installations and PYTHONPATH, so the command says where Velo is. A checkout
    # goes first (it may differ from an installed Velo), a site-packages folder last (it may shadow the
    # standard library).
    place = "len(sys.path)" if parent.endswith(("site-packages", "dist-packages")) else "0"
    code = (
        "import sys; folder = sys.argv[1]; "
        f"folder in sys.path or sys.path.insert({place}, folder); "
        "from velo_import.__main__ import main; sys.exit(main(sys.argv[2:]))"
    )
    return [sys.executable, "-I", "-c", code, parent, "learn"]


def prepare(home: str) -> bool:
    """Write `run/learner` so that programs can learn. False when that cannot be: they run all the same."""
    _drop_stale_code(home)
    wanted = os.fsencode("\0".join(learner_command()))
    path = os.path.join(home, "run", "learner")
    if not sys.executable:
        return False
    try:
        if not _holds(path, wanted):
            if not _is_ours(home):
                return False
            _write(path, wanted)
    except OSError:
        return False
    try:
        _tell_launcher(home, path)
    except OSError:  # It will go on asking us.
        pass
    return True


def _tell_launcher(home: str, learner: str) -> None:
    """Write `run/launch`, which tells the native `velo` that this store is prepared (_native/velo.c).

    Not in a checkout: there somebody has to look for edited sources at each start, which only we do.
    """
    folder = injection_folder()
    own = native_velo()
    if not own or not folder.endswith("/_inject"):
        return
    fields = ("velo-launch 1", own, _stamp(own), _stamp(learner), folder)
    note = b"".join(os.fsencode(field) + b"\0" for field in fields)
    path = os.path.join(home, "run", "launch")
    if not _holds(path, note):
        _write(path, note)


def native_velo() -> str:
    """The native `velo` that handed over to this process; empty where it was started in another way."""
    return sys.argv[0].removesuffix("-py") if sys.argv[0].endswith("/velo-py") else ""


def _stamp(path: str) -> str:
    status = os.stat(path)
    return f"{status.st_mtime_ns} {status.st_ino} {status.st_size}"


def _holds(path: str, wanted: bytes) -> bool:
    """Whether the file is exactly this, and nobody else's or open to others.

    Whatever stands in its place: a pipe does not make us wait, a device has no end.
    """
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            is_private = status.st_uid == os.geteuid() and not status.st_mode & 0o022
            return is_private and file.read(len(wanted) + 1) == wanted
    except OSError:
        return False


def mark_used(home: str, program: str) -> None:
    """Note that the environment of a program is in use, at most once an hour, for `velo gc --unused-for`.

    A disk that keeps no access times says nothing else. The mark is for a name and not for an environment:
    which one it is only the interpreter knows, and one that has the name of another is kept longer at worst.
    """
    name = used_name(program)
    if name is None or not os.path.isfile(os.path.join(home, "run", "learner")):  # VELO_HOME=~/project
        return
    mark = os.path.join(home, "run", f"{name}.used")
    try:
        if time.time() - os.stat(mark).st_mtime < 3600:
            return
    except OSError:
        pass
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.utime(mark)
    except OSError:
        pass


def used_name(program: str) -> str | None:
    """The middle of the environment's key, for a program in its `bin`; None for what is not there."""
    if "/" not in program:
        folders = os.environ.get("PATH", "").split(":")
        found = (os.path.join(folder, program) for folder in folders if folder)
        program = next((path for path in found if os.path.isfile(path) and os.access(path, os.X_OK)), "")
    name = os.path.basename(os.path.dirname(os.path.dirname(program)))
    kept = "".join(letter for letter in name if letter.isascii() and (letter.isalnum() or letter in "._-"))
    return kept[:40] if program.count("/") >= 2 else None


def _drop_stale_code(home: str) -> None:
    """Remove the hook's compiled code if a source of the hook is younger: a checkout that was edited.

    An installation rewrites all files, which the hook sees by itself; edits in place it does not look for.
    """
    sources = os.path.join(_PACKAGE, "hook")
    compiled = os.path.join(home, "run", "hook")
    try:
        with os.scandir(sources) as entries:
            edited = max(entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".py"))
        with os.scandir(compiled) as entries:
            for entry in entries:
                if entry.stat(follow_symlinks=False).st_mtime_ns <= edited:
                    os.unlink(entry.path)
    except OSError:
        pass


def _is_ours(home: str) -> bool:
    """Whether `home` is a store, or may become one. VELO_HOME=~/project must not sow files there."""
    os.makedirs(os.path.dirname(home), exist_ok=True)
    try:
        os.mkdir(home, 0o700)
    except FileExistsError:
        names = os.listdir(home)
        if "VERSION" not in names and any(
            name not in _MAY_PRECEDE_VERSION and not name.startswith(".tmp-") for name in names
        ):
            return False
    status = os.stat(home)
    # The same rule as the hook's: code is taken only from a folder that nobody else can write to.
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _write(path: str, data: bytes) -> None:
    folder = os.path.dirname(path)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    temporary = os.path.join(folder, f".tmp-{os.getpid()}-{os.path.basename(path)}")
    try:
        with open(temporary, "wb", opener=_private) as file:
            file.write(data)
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

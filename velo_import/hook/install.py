# SPDX-License-Identifier: Apache-2.0
"""Putting the finder in place: which manifests fit this interpreter, and what happens when it exits.

Called once per process by `sitecustomize`. Leaves one object on `sys.meta_path`, one exit function, and
nothing in `sys.modules`.
"""

import sys
from _frozen_importlib_external import (  # type: ignore[attr-defined]
    MAGIC_NUMBER,
    PathFinder,
    _get_supported_file_loaders,
)
from _imp import source_hash
from os import environ, fsencode
from posix import geteuid, register_at_fork, stat
from time import perf_counter_ns

import velo_import.hook.mapping as mapping
from velo_import.hook.ahead import read_ahead
from velo_import.hook.calm import Calm
from velo_import.hook.counts import Counts
from velo_import.hook.finder import VeloFinder
from velo_import.hook.manifest import HASH_KEY, NEVER, ROOT_ONLY, STAT, Manifest, Unusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CHECKS = {"stat": STAT, "root": ROOT_ONLY, "none": NEVER}
EVERY_KIND = "patterns,sources,metadata,images"
OUR_FINDERS = ("VeloFinder", "LoggingFinder", "ShadowFinder")
READABLE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def build_identity(suffixes: "list[str]") -> bytes:
    """The bytes that a manifest of this interpreter must carry (FORMAT.md, section 2)."""
    tag = f"{sys.implementation.cache_tag}-{MAGIC_NUMBER.hex()}"
    return "\n".join([tag, str(sys.flags.optimize), sys.abiflags, *suffixes]).encode()


def manifest_key(identity: bytes, prefix: bytes) -> str:
    """The name of this environment's manifests folder; agrees with `velo_import.format.manifest`."""
    name = "".join(c for c in sys.prefix.rstrip("/").rpartition("/")[2] if c in READABLE)[:40]
    check = source_hash(HASH_KEY, identity + b"\0" + prefix).hex()
    return f"{sys.implementation.cache_tag}-{name}-{check}"


def store_folders(home: str, counts: Counts) -> "list[tuple[str, int]]":
    """Our store, then the one it is layered over (VELO_SHARED) if nobody but its owner may write there; each
    with the account whose files are believed in it.
    """
    folders = [(home, geteuid())]
    shared = environ.get("VELO_SHARED", "")
    if shared.startswith("/"):
        try:
            status = stat(shared)
        except OSError:
            counts.reasons["shared store: missing"] = 1
        else:
            if status.st_mode & 0o022:
                counts.reasons["shared store: others may write"] = 1
            else:
                folders.append((shared, status.st_uid))
    return folders


def open_manifests(
    folders: "list[tuple[str, int]]", key: str, identity: bytes, counts: Counts
) -> "list[Manifest]":
    """The manifests that fit, first to be asked first: the one named by VELO_MANIFEST, then store by store
    what was learned and what was ingested.
    """
    manifests = []
    named = environ.get("VELO_MANIFEST")
    prefix = fsencode(sys.prefix)
    candidates = [(named, *folders[0])] if named else []
    for home, owner in folders:
        folder = f"{home}/manifests/v1/{key}"
        candidates += [(f"{folder}/upper.velo", home, owner), (f"{folder}/base.velo", home, owner)]
    lonely = ""
    for path, home, owner in candidates:
        if home == lonely:
            continue
        try:
            manifest = Manifest(path, f"{home}/packs/v1", identity, owner)
            if path == named or manifest.prefix() == prefix:
                manifests.append(manifest)
                if path != named and manifest.is_alone():
                    lonely = home  # What was ingested would lie below it, and nothing was.
        except FileNotFoundError:
            if path == named:
                counts.reasons["manifest: missing"] = 1
        except (OSError, ValueError, IndexError) as error:
            counts.errors += 1
            counts.reasons[f"manifest: {type(error).__name__}"] = 1
        except Unusable as unusable:
            counts.errors += 1
            counts.reasons[f"manifest: {unusable}"] = 1
    return manifests


def stock_hooks() -> "tuple[Any, Any]":
    """The path hooks that CPython has set up, and None for one that somebody has removed."""
    zip_hook = file_hook = None
    for hook in sys.path_hooks:
        name = getattr(hook, "__qualname__", "")
        if name == "zipimporter" and hook.__module__ == "zipimport":
            zip_hook = hook
        elif name == "FileFinder.path_hook.<locals>.path_hook_for_FileFinder":
            file_hook = hook
    return zip_hook, file_hook


def can_learn(home: str) -> bool:
    """Whether a learner may be started when this program ends."""
    try:
        stat(f"{home}/run/learner")
    except OSError:
        return False
    return environ.get("VELO_READONLY", "0") in ("", "0")


def install(home: str, is_compiled: bool, load: "Callable[..., Any]", started: int) -> None:
    """Install the finder for this process, if its environment is known, and the exit function.

    Args:
        home: the store folder.
        is_compiled: whether this code came from the store; if not, the learner is to put it there.
        load: gives the namespace of a module of the hook by its short name, loaded at first use; or None,
            if it was also told True: that no auditor may hear of that.
        started: when this start of Velo began, by `time.perf_counter_ns`, for VELO_STATS.
    """
    tracer = None
    if "VELO_TRACE" in environ:
        tracing = load("trace")
        tracer = tracing["start"](environ["VELO_TRACE"], mapping)
        if environ["VELO_TRACE"].startswith(tracing["PLAIN"]):
            if tracer is not None:
                tracer.begin(mapping)
            return
    if any(type(finder).__name__ in OUR_FINDERS for finder in sys.meta_path):
        return
    read_ahead(home)
    details = [(suffix, kind) for kind, group in _get_supported_file_loaders() for suffix in group]
    identity = build_identity([suffix for suffix, _ in details])
    key = manifest_key(identity, fsencode(sys.prefix))
    kind = Counts if tracer is None else tracer.counts_like(Counts)
    counts = kind(environ.get("VELO_VERIFY", "0") not in ("", "0"))
    folders = store_folders(home, counts)
    manifests = open_manifests(folders, key, identity, counts)
    if not is_compiled:
        counts.wanted[""] = ""
    if not manifests:
        counts.wanted[""] = ""
        counts.reasons["no manifest"] = 1
    if PathFinder not in sys.meta_path:
        counts.reasons["import system changed"] = 1
    elif manifests or can_learn(home):
        # Without a manifest the finder answers nothing, but notes what it could have answered.
        mode = environ.get("VELO_CHECK", "")
        wanted = environ.get("VELO_REMEMBER") or "all"
        kinds = frozenset((EVERY_KIND if wanted == "all" else wanted).split(","))
        counts.load_loader = lambda: load("loader")["VeloSourceLoader"]
        # Shadow mode would report what was remembered: it changes the code of modules.
        if mode != "shadow" and ("patterns" in kinds or "sources" in kinds):

            def open_memory() -> "Any":
                remembered = load("remembered", True)
                return remembered and remembered["open_memory"](folders, key, identity, kinds, counts)

            counts.open_memory = open_memory
        if mode != "shadow" and "metadata" in kinds:
            table = f"{home}/manifests/v1/{key}/metadata.table"
            counts.accelerate_metadata = lambda module: load("metadata")["accelerate"](
                module, table, identity, counts, mapping, CHECKS.get(mode), load
            )
        if mode != "shadow" and "images" in kinds and mapping.Images is not None:
            counts.image_file = lambda: load("tables")["open_images"](folders, key, identity, counts)
        finder = VeloFinder(manifests, counts, CHECKS.get(mode), stock_hooks(), details)
        log = load("log") if environ.get("VELO_LOG") else None
        if mode == "shadow":
            finder = load("shadow")["ShadowFinder"](finder, log and log["append_line"])
        if log:
            finder = log["LoggingFinder"](finder)
        sys.meta_path.insert(sys.meta_path.index(PathFinder), finder)
    calm = None
    if environ.get("VELO_CALM", "1") not in ("", "0"):
        calm = Calm(mapping.load_extension("gc"))
        counts.settle = calm.settle
    _at_exit(home, key, identity, counts, load, calm)
    if tracer is not None:
        tracer.begin(mapping)
    counts.install_us = (perf_counter_ns() - started) // 1000


def _at_exit(
    home: str,
    key: str,
    identity: bytes,
    counts: Counts,
    load: "Callable[..., Any]",
    calm: "Calm | None",
) -> None:
    """Register the exit function. `calm` is None where the collector is left alone."""
    # Not imported: what is registered belongs to the interpreter, and `sys.modules` stays as it was.
    atexit = mapping.load_extension("atexit")

    # Exit functions run in reverse order: those that were there before us may still open and keep things.
    is_last = not atexit._ncallbacks()

    def farewell() -> None:
        if sys.is_finalizing():
            # A subinterpreter that the program has forgotten: up to 3.12, whoever gives up the lock now, for
            # a system call, never gets it back, and the process ends without its exit code.
            return
        mapping.note_end()
        # A collection in the middle of this would give our lines as the place of what it warns about.
        is_collecting = calm is not None and calm.pause()
        if calm is not None:
            _judge_end(counts, calm, is_last, load)
        _report(home, key, identity, counts, load)
        if calm is not None:
            calm.end(counts.calm, is_collecting)

    atexit.register(farewell)
    register_at_fork(after_in_child=counts.reset)


# These two are functions because up to 3.13 a handler that meets MemoryError makes a number of its own place
# in the function. Up to 256 these numbers are there already; above, without memory, it tries for ever.
def _judge_end(counts: Counts, calm: Calm, is_last: bool, load: "Callable[..., Any]") -> None:
    """See whether anything has to be taken apart."""
    try:
        reason = "an earlier exit function" if not is_last else calm.reason_to_collect()
        if not reason:
            remains = load("remains", True)
            reason = remains["reason_to_tidy"]() if remains else "audited"
        counts.calm = not reason
        if reason:
            counts.reasons[f"exit: {reason}"] = 1
    except Exception as error:
        counts.reasons[f"exit: {type(error).__name__}"] = 1


def _report(home: str, key: str, identity: bytes, counts: Counts, load: "Callable[..., Any]") -> None:
    """Leave what is to be learned, and statistics, if there is anything to say."""
    try:
        counts.note_new(sys.modules)
        counts.note_images()
        if counts.wanted or counts.compared or "VELO_STATS" in environ or "VELO_PACK" in environ:
            load("farewell")["farewell"](home, key, identity, counts, mapping.take_lock)
    except Exception:
        pass

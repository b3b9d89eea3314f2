# SPDX-License-Identifier: Apache-2.0
"""Velo's entry point into a Python program: steps aside, installs the hook, lets the next one speak.

Any Python may meet this file through PYTHONPATH: it must parse and stay silent on all of them, 2.7 too.
"""

import sys

if sys.version_info >= (3, 11):
    # Of our own, for all that is defined here and loaded from here: what a program makes of `__import__` or
    # `open` later is its own affair, and would see us at work.
    __builtins__ = dict(__builtins__)


def _velo_native(library):
    """The native module, left out of sys.modules; None where it was not built, or does not fit."""
    import _frozen_importlib
    import _frozen_importlib_external as external
    import _imp

    name = "velo_import._native.core"
    loader = external.ExtensionFileLoader(name, library)
    try:
        module = _imp.create_dynamic(_frozen_importlib.ModuleSpec(name, loader, origin=library))
        _imp.exec_dynamic(module)
        module.map_file, module.note_read  # noqa: B018 # not there: built of older sources
    except (AttributeError, ImportError, OSError, SystemError):
        return None
    return module


def _velo_codes(folder, home, native):
    """The hook's compiled code in the store, and where in it each module's is; nothing unless it is current.

    FORMAT.md, section 2. Natively the file is mapped, else it is read.
    """
    import _frozen_importlib_external as external
    import _imp
    import marshal
    import os
    import posix

    tag = "%s-%s" % (sys.implementation.cache_tag, external.MAGIC_NUMBER.hex())
    path = "%s/run/hook/%s.code" % (home, tag)
    try:
        if native:
            data, (owner, mode, _, _, _, _) = native.map_file(os.fsencode(path))
        else:
            descriptor = posix.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                status = posix.fstat(descriptor)
                owner, mode = status.st_uid, status.st_mode
                data = posix.read(descriptor, status.st_size)  # empty for a pipe, an error for a folder
            finally:
                posix.close(descriptor)
        if owner not in (0, posix.geteuid()) or mode & 0o022:
            return None, {}
        view = memoryview(data)
        end = 24 + int.from_bytes(view[16:24], "little")
        index = view[24:end]
        is_whole = view[:8] == b"VELOHOOK" and _imp.source_hash(0x56454C4F, index) == view[8:16]
        if is_whole and index[: len(tag) + 1] == tag.encode() + b"\0":
            stamp, places = marshal.loads(index[len(tag) + 1 :])
            # Every installation rewrites this file; `velo` looks at the others (launch/injection.py).
            status = posix.stat(folder + "/__init__.py")
            if (status.st_mtime_ns, status.st_ctime_ns, status.st_ino) == stamp:
                return view[end:], places
    except (OSError, ValueError, EOFError, TypeError):
        pass
    return None, {}


def _velo_part(name, native, codes, places):
    """One piece of the hook's compiled code: a module's, or under "" a dict of those that every start needs.

    None if it is not there, or damaged.
    """
    import _imp
    import marshal

    if name in places:
        start, size, check = places[name]
        if native:
            native.note_read(codes.obj, size)
        code = codes[start : start + size]
        if _imp.source_hash(0x56454C4F, code) == check:
            return marshal.loads(code)
    return None


def _velo_compiled(folder, name):
    """The code of one module of the hook, where the store has none."""
    with open("%s/%s.py" % (folder, name), "rb") as file:
        # CPython cuts frames of this file name out of tracebacks that users see.
        return compile(file.read(), "<frozen importlib._bootstrap_external>", "exec", 0, True, 2)


def _velo_boot(folder, home):
    """Load the hook and install it.

    Does nothing where others may write to the store: what lies there is executed.
    """
    import posix
    from time import perf_counter_ns

    started = perf_counter_ns()
    status = posix.stat(home)
    if status.st_uid not in (0, posix.geteuid()) or status.st_mode & 0o022:
        return
    native = _velo_native(folder[:-4] + "_native/core.abi3.so")
    codes, places = _velo_codes(folder, home, native)
    is_mapped = bool(native and places)

    def load(name):
        # What is mapped stays so, and costs nothing. What was read is read again: these modules are asked for
        # late, if at all, and until then it would take memory.
        kept = (codes, places) if is_mapped else _velo_codes(folder, home, native)
        namespace = {"__name__": "velo_import.hook." + name}
        exec(_velo_part(name, native, *kept) or _velo_compiled(folder, name), namespace)
        return namespace

    # The hook's modules import each other by name; they are in sys.modules only meanwhile.
    names = ["velo_import", "velo_import.hook"]
    before = dict((name, sys.modules.get(name)) for name in names)
    try:
        for name in names:
            sys.modules[name] = type(sys)(name)
        early = _velo_part("", native, codes, places) or {}
        is_compiled = True
        for name in [
            "ahead",
            "counts",
            "mapping",
            "calm",
            "remains",
            "manifest",
            "remembered",
            "loader",
            "finder",
            "install",
        ]:
            full = "velo_import.hook." + name
            names.append(full)
            before[full] = sys.modules.get(full)
            if native and name in ("manifest", "finder"):
                sys.modules[full] = native  # it is both; their code in Python is not even read
                continue
            module = sys.modules[full] = type(sys)(full)
            code = early.get(name) or _velo_part(name, native, codes, places)
            is_compiled = is_compiled and code is not None
            exec(code or _velo_compiled(folder, name), module.__dict__)
            if name == "mapping" and native:
                native = module.use_native(native)
        module.install(home, is_compiled, load, started)
        if not is_mapped:
            codes, places = None, {}
    finally:
        for name in names:
            if before[name] is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = before[name]


def _velo_main(own_file, default_home):
    """Install the hook if this interpreter is one we know and nobody has switched us off."""
    if sys.version_info < (3, 11) or sys.implementation.name != "cpython":
        return
    from os import environ

    if environ.get("VELO_DISABLE", "0") not in ("", "0") or sys.flags.verbose or "t" in sys.abiflags:
        return
    home = environ.get("VELO_HOME") or default_home
    if not home:
        cache = environ.get("XDG_CACHE_HOME") or (environ.get("HOME") and environ["HOME"] + "/.cache")
        home = cache and cache + "/velo"
    if not home or not home.startswith("/"):
        return
    inject = own_file.rpartition("/")[0]
    parent = inject.rpartition("/")[0]
    # Installed, this folder is velo_import/_inject; in a checkout it is velo_import's neighbour.
    folder = parent + ("/hook" if inject.endswith("/_inject") else "/velo_import/hook")
    _velo_boot(folder, home)


if __name__ == "sitecustomize":
    _velo_self = sys.modules.pop(__name__)  # kept: Python 2 clears a module nobody refers to
    _velo_file = __file__
    _velo_folder = _velo_file.rpartition("/")[0]
    sys.path[:] = [entry for entry in sys.path if entry != _velo_folder]
    sys.path_importer_cache.pop(_velo_folder, None)
    try:
        _velo_main(_velo_file, "")
    except Exception:
        pass
    # Raises ImportError where there is no other: site takes that as "none", and no trace of us is left.
    import sitecustomize  # noqa: F401
elif __name__ == "_velo_pth":
    try:
        _velo_main(__file__, VELO_HOME_DEFAULT)  # noqa: F821
    except Exception:
        pass

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
        module.unpack, module.run  # noqa: B018 # not there: built of older sources
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


def _velo_modules(folder, home, native, at_hand):
    """A function that gives the namespace of a module of the hook by its short name, loaded at first use; and
    whether compiled code was there. `load(name, True)` loads nothing, and gives None, where auditors listen.

    The modules import each other by name and are never in sys.modules: their `__import__` finds them here.
    What `_velo_codes` gave is the one item of `at_hand`, for as long as that has one.
    """
    import _imp
    import marshal

    module_type = type(sys)
    package, hook = module_type("velo_import"), module_type("velo_import.hook")
    package.hook = hook
    loaded = {}
    own = dict(__builtins__)

    def part(name):
        """One piece of compiled code: a module's, or under "" a dict of those that every start needs."""
        codes, places = at_hand[0] if at_hand else _velo_codes(folder, home, native)
        if name not in places:
            return None
        start, size, check = places[name]
        if native:
            native.note_read(codes.obj, size)
            return native.unpack(codes, start, size, check)
        code = codes[start : start + size]
        return marshal.loads(code) if _imp.source_hash(0x56454C4F, code) == check else None

    early = part("") or {}

    def load(name, unheard=False):
        if name not in loaded:
            if unheard and (native or loaded["mapping"]).is_audited():
                return None  # Auditors would hear that something is unmarshalled.
            if native and name in ("manifest", "finder", "mapping"):
                module = native  # It is all of these; their code in Python is not even read.
            else:
                module = module_type("velo_import.hook." + name)
                namespace = module.__dict__
                namespace["__builtins__"] = own
                code = early.get(name) or part(name) or _velo_compiled(folder, name)
                if native:
                    native.run(code, namespace)
                else:
                    exec(code, namespace)
                early.pop(name, None)  # Only now: where a program's stack was full it is tried again.
            loaded[name] = module
            setattr(hook, name, module)
        return loaded[name].__dict__

    def find(name, globals=None, locals=None, fromlist=(), level=0):
        if name[:17] != "velo_import.hook.":
            return __import__(name, globals, locals, fromlist, level)
        load(name[17:])
        return loaded[name[17:]] if fromlist else package

    own["__import__"] = find
    return load, bool(early)


def _velo_compiled(folder, name):
    """The code of one module of the hook, where the store has none."""
    with open("%s/%s.py" % (folder, name), "rb") as file:
        # CPython cuts frames of this file name out of tracebacks that users see.
        return compile(file.read(), "<frozen importlib._bootstrap_external>", "exec", 0, True, 2)


def _velo_boot(folder, home):
    """Load the hook and install it.

    Does nothing where others may write to the store: what lies there is executed.
    """
    import _imp
    import posix
    from time import perf_counter_ns

    started = perf_counter_ns()
    status = posix.stat(home)
    if status.st_uid not in (0, posix.geteuid()) or status.st_mode & 0o022:
        return
    native = _velo_native(folder[:-4] + "_native/core.abi3.so")
    codes, places = _velo_codes(folder, home, native)
    at_hand = [(codes, places)]
    # They run in the middle of a program's imports, as the hook's modules do: under importlib's file name.
    for function in (_velo_modules, _velo_codes, _velo_compiled):
        _imp._fix_co_filename(function.__code__, "<frozen importlib._bootstrap_external>")
    load, is_compiled = _velo_modules(folder, home, native, at_hand)
    if not (native and places):
        # Later, another version may have been installed over this one.
        for name in ("loader", "tables", "remembered", "remains", "finalisers"):
            load(name)
    load("install")["install"](home, is_compiled, load, started)
    if not native:
        # What is mapped costs nothing; what was read is read again for what is asked for late, if anything.
        at_hand.clear()


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

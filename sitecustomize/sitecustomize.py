# SPDX-License-Identifier: Apache-2.0
"""Velo's entry point into a Python program: steps aside, installs the hook, lets the next one speak.

Any Python may meet this file through PYTHONPATH: it must parse and stay silent on all of them, 2.7 too.
"""

import sys


def _velo_codes(folder, home):
    """The hook's compiled code from the store: {module: marshalled code}, empty unless whole and current."""
    import _frozen_importlib_external as external
    import _imp
    import marshal
    import os
    import posix

    tag = "%s-%s" % (sys.implementation.cache_tag, external.MAGIC_NUMBER.hex())
    path = "%s/run/hook/%s.code" % (home, tag)
    try:
        descriptor = posix.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = posix.fstat(descriptor)
            data = posix.read(descriptor, status.st_size)  # empty for a pipe, an error for a folder
        finally:
            posix.close(descriptor)
        is_ours = status.st_uid in (0, posix.geteuid()) and not status.st_mode & 0o022
        body = memoryview(data)[16:]
        is_whole = data[:8] == b"VELOHOOK" and _imp.source_hash(0x56454C4F, body) == data[8:16]
        if is_ours and is_whole and bytes(body[: len(tag) + 1]) == tag.encode() + b"\0":
            stamp, codes = marshal.loads(body[len(tag) + 1 :])
            # Every installation rewrites this file; `velo` looks at the others (launch/injection.py).
            status = posix.stat(folder + "/__init__.py")
            if (status.st_mtime_ns, status.st_ctime_ns, status.st_ino) == stamp:
                return codes
    except (OSError, ValueError, EOFError, TypeError):
        pass
    return {}


def _velo_code(folder, name, codes):
    """The code of one module of the hook; from its source where the store has none."""
    import marshal

    if name in codes:
        return marshal.loads(codes[name])
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
    codes = _velo_codes(folder, home)

    def load(name):
        # Asked for at exit, if at all: reading the file again costs less than keeping it in memory.
        namespace = {"__name__": "velo_import.hook." + name}
        exec(_velo_code(folder, name, _velo_codes(folder, home)), namespace)
        return namespace

    # The hook's modules import each other by name; they are in sys.modules only meanwhile.
    names = ["velo_import", "velo_import.hook"]
    before = dict((name, sys.modules.get(name)) for name in names)
    try:
        for name in names:
            sys.modules[name] = type(sys)(name)
        library = folder[:-4] + "_native/core.abi3.so"
        native = None
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
            exec(_velo_code(folder, name, codes), module.__dict__)
            if name == "mapping":
                native = module.use_native(library)
        module.install(home, library, bool(codes), load, started)
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

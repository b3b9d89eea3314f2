# SPDX-License-Identifier: Apache-2.0
"""The floor: what no finder and loader can go below. Injected into the programs of the arm `floor`.

The first start of a script notes what it imported: names, paths, and bytecode in the order of import. Later
starts answer from that note: one file read whole, one dict, nothing asked of the kernel. It is wrong as soon
as anything changes, so nobody could ship it; it says how much of a start finding and reading could save.
"""

import marshal
import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader, PathFinder, SourceFileLoader


class Loader(SourceFileLoader):
    def get_code(self, fullname):
        return marshal.loads(self.view)


class Finder:
    def __init__(self, known, data):
        self.known, self.view = known, memoryview(data)

    def find_spec(self, name, path=None, target=None):
        found = self.known.get(name)
        if found is None:
            return None
        origin, is_package, cached, start, length = found
        if not length:
            return ModuleSpec(name, ExtensionFileLoader(name, origin), origin=origin)
        loader = Loader(name, origin)
        loader.view = self.view[start : start + length]
        spec = ModuleSpec(name, loader, origin=origin)
        spec._set_fileattr = True
        spec._cached = cached
        if is_package:
            spec.submodule_search_locations = [origin.rpartition("/")[0]]
        return spec


def note(path, before):
    """Write what this process imported: the index, then all bytecode."""
    known, parts, start = {}, [], 0
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if name in before or spec is None or spec.name != name or not spec.has_location:
            continue
        body = b""
        if type(spec.loader) is SourceFileLoader:
            body = marshal.dumps(spec.loader.get_code(name))
        elif type(spec.loader) is not ExtensionFileLoader:
            continue
        is_package = spec.submodule_search_locations is not None
        known[name] = (spec.origin, is_package, spec.cached if body else None, start, len(body))
        parts.append(body)
        start += len(body)
    index = marshal.dumps(known)
    with open(path, "wb") as file:
        file.write(len(index).to_bytes(8, "little") + index + b"".join(parts))


def install():
    own = __file__.rpartition("/")[0]
    sys.path[:] = [entry for entry in sys.path if entry != own]
    program = sys.orig_argv[1].split("/")[-2]  # <program>/main.py
    path = f"{os.environ['BENCH_FLOOR']}/floor-{program}.{sys.implementation.cache_tag}"
    try:
        with open(path, "rb", 0) as file:
            data = file.read()
    except FileNotFoundError:
        import atexit

        atexit.register(note, path, set(sys.modules))
        return
    size = int.from_bytes(data[:8], "little")
    finder = Finder(marshal.loads(data[8 : 8 + size]), memoryview(data)[8 + size :])
    sys.meta_path.insert(sys.meta_path.index(PathFinder), finder)


install()

# SPDX-License-Identifier: Apache-2.0
"""The finder in C and its Python twin beside CPython's own: the same answers, hostile manifests included.

The stories of tests/e2e are told with both as well; here are the cases that need a manifest made by hand.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import shutil
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader, FileFinder, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import velo_import.hook.finder as twin_finder
import velo_import.hook.manifest as twin_manifest
from tests.support.native import compiled, run_under_sanitizers
from tests.support.running import CHECKOUT
from velo_import.format import manifest as m
from velo_import.hook import loader, mapping
from velo_import.hook.counts import Counts

DETAILS: list[tuple[str, Any]] = [
    (suffix, kind)
    for kind, group in sys.modules["_frozen_importlib_external"]._get_supported_file_loaders()
    for suffix in group
]
# pytest's own are strangers.
STOCK_HOOKS = [
    hook for hook in sys.path_hooks if "zipimporter" in repr(hook) or "path_hook_for_FileFinder" in repr(hook)
]
SUFFIXES = tuple(suffix for suffix, _ in DETAILS)
SOURCE = SUFFIXES.index(".py")
BUILD = m.Build(
    sys.implementation.cache_tag, importlib.util.MAGIC_NUMBER, sys.flags.optimize, sys.abiflags, SUFFIXES
)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The native module as the hook loads it; the loader uses its functions meanwhile."""
    path = compiled("core", tmp_path_factory.mktemp("native"), "-O2")
    return mapping.load_native("velo_import._native.core", str(path))


@pytest.fixture(params=["native", "twin"])
def body(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each of the two bodies of reader and finder."""
    if request.param == "twin":
        return SimpleNamespace(
            VeloFinder=twin_finder.VeloFinder,
            Manifest=twin_manifest.Manifest,
            Unusable=twin_manifest.Unusable,
        )
    native = request.getfixturevalue("native")
    for name in ("map_file", "is_unchanged", "load_code", "serve", "take_lock"):
        monkeypatch.setattr(mapping, name, getattr(native, name))
    return native


class Environment:
    """A folder on `sys.path` with its manifest and its pack, as ingest would write them."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.folder, self.root = folder, folder / "root"
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.counts = Counts()
        self.counts.load_loader = lambda: loader.VeloSourceLoader
        self.places: dict[Path, tuple[int, int, int]] = {}

    def manifest(self) -> m.Manifest:
        """The tree as it is now."""
        pack, self.places = bytearray(), {}
        for source in sorted(self.root.rglob("*.py")):
            code = marshal.dumps(compile(source.read_text(), "elsewhere", "exec", dont_inherit=True))
            self.places[source] = len(pack), len(code), m.siphash(code)
            pack += code
        path = self.folder / "packs" / "pack"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(pack)
        return self.described()

    def described(self) -> m.Manifest:
        """The tree as it is now, with the pack as it is and what was put into it."""
        path, places = self.folder / "packs" / "pack", self.places
        sources = sorted(places)
        folders = [self.root, *(each for each in sorted(self.root.rglob("*")) if each.is_dir())]
        records = [_file(each) for each in [*folders, *sources]]
        places_of = {Path(record.path): at for at, record in enumerate(records)}
        listed = []
        for folder in folders:
            modules = []
            for name, mask in m.candidates(os.listdir(folder), SUFFIXES).items():
                source = folder / f"{name}.py"
                flags = m.IS_FOLDER if (folder / name).is_dir() else 0
                if source in places:
                    start, length, bytecode = places[source]
                    check = m.siphash(source.read_bytes())
                    known = (SOURCE, places_of[source], 0, start, length, check, bytecode)
                    modules.append(m.ModuleRecord(name, mask, flags, *known))
                else:
                    modules.append(m.ModuleRecord(name, mask, flags))
            listed.append(m.FolderRecord(str(folder), 0, *_stamp(folder), tuple(modules)))
        status = path.stat()
        return m.Manifest(
            BUILD,
            sys.prefix,
            [m.RootRecord(str(self.root), m.TREE, m.STAT, *_stamp(self.root))],
            listed,
            records,
            [m.PackRecord("pack", "demo", status.st_size, *_stamp(path))],
        )

    def write(self, data: bytes) -> str:
        path = self.folder / "manifest.velo"
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        return str(path)

    def finder(self, body: Any, data: bytes | None = None) -> Any:
        path = self.write(m.encode(self.manifest()) if data is None else data)
        opened = body.Manifest(path, str(self.folder / "packs"), BUILD.identity(), os.geteuid())
        hooks = sys.path_hooks[0], sys.path_hooks[1]
        return body.VeloFinder([opened], self.counts, None, hooks, DETAILS)


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _file(path: Path) -> m.FileRecord:
    status = path.stat()
    flags = m.DIRECTORY if path.is_dir() else 0
    return m.FileRecord(str(path), m.NO_DIGEST, status.st_size, *_stamp(path), status.st_mode, flags)


FILES = {
    "plain.py": "VALUE = 1\n",
    "box/__init__.py": "",
    "box/inner.py": "VALUE = 2\n",
    "box/deep/__init__.py": "",
    "box/deep/leaf.py": "",
    "both/__init__.py": "",
    "both.py": "# never seen: the package wins",
    "spaces/part.py": "",
    "n\N{LATIN SMALL LETTER E WITH ACUTE}e.py": "VALUE = 3\n",
}
NAMES = ("plain", "box", "box.inner", "box.deep", "box.deep.leaf", "both", "spaces", "spaces.part")
NAMES += (
    "n\N{LATIN SMALL LETTER E WITH ACUTE}e",
    "absent",
    "box.absent",
    "absent.part",
    "",
    "plain\0",
    "\udc80",
)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """The tree above as the only folder on `sys.path`."""
    made = Environment(tmp_path, FILES)
    monkeypatch.setattr(sys, "path", [str(made.root)])
    monkeypatch.setattr(sys, "path_hooks", STOCK_HOOKS)
    yield made
    for key in [key for key in sys.path_importer_cache if key.startswith(str(tmp_path))]:
        del sys.path_importer_cache[key]


def path_for(environment: Environment, name: str) -> list[str] | None:
    """Where a parent would have its modules looked for."""
    parent = name.rpartition(".")[0]
    return [str(environment.root / parent.replace(".", "/"))] if parent else None


def described(spec: ModuleSpec | None) -> object:
    """Everything that a program can see of a spec."""
    if spec is None:
        return None
    loader = spec.loader
    assert type(spec) is ModuleSpec
    assert spec.cached or spec.origin is None  # the standard finder fills it in when it is asked for
    facts = {name: value for name, value in vars(spec).items() if name != "loader"}
    return list(facts.items()), vars(loader), isinstance(loader, SourceFileLoader)


@pytest.mark.parametrize("name", NAMES)
def test_specs_are_those_of_the_standard_finder(body: Any, environment: Environment, name: str) -> None:
    """What is answered at all is what `PathFinder` answers, to the order of its attributes."""
    finder = environment.finder(body)
    path = path_for(environment, name)

    answer = finder.find_spec(name, path, None)

    expected = PathFinder.find_spec(name, path) if name and "\0" not in name else None
    assert answer is None or described(answer) == described(expected)
    has_file = expected is not None and expected.origin is not None
    assert (answer is not None) == has_file
    assert finder.find_spec(name=name, path=path, target=None) is None or has_file
    assert environment.counts.errors == 0


def test_code_comes_from_the_pack_and_is_counted(body: Any, environment: Environment) -> None:
    """Each module's code is that of its source, under the name of its source."""
    finder = environment.finder(body)
    for served, name in enumerate(("plain", "box.inner", "box.deep"), 1):
        spec = finder.find_spec(name, path_for(environment, name))
        code = spec.loader.get_code(name)
        assert code.co_filename == spec.origin
        assert environment.counts.served == served
    assert finder.find_spec("plain").loader.get_code("plain").co_consts[0] == 1
    with pytest.raises(ImportError):
        finder.find_spec("plain").loader.get_code("another")


def edit_source(root: Path) -> None:
    (root / "plain.py").write_text("VALUE = 'edited'\n")


def add_module(root: Path) -> None:
    (root / "new.py").write_text("")


def remove_module(root: Path) -> None:
    (root / "plain.py").unlink()


def replace_module_by_package(root: Path) -> None:
    (root / "plain").mkdir()
    (root / "plain" / "__init__.py").write_text("")


def remove_initialiser(root: Path) -> None:
    (root / "box" / "__init__.py").unlink()


def add_native_initialiser(root: Path) -> None:
    (root / "box" / f"__init__{SUFFIXES[0]}").write_bytes(b"")


def make_module_a_folder(root: Path) -> None:
    (root / "plain.py").unlink()
    (root / "plain.py").mkdir()


def remove_everything(root: Path) -> None:
    shutil.rmtree(root)


CHANGES = (
    edit_source,
    add_module,
    remove_module,
    replace_module_by_package,
    remove_initialiser,
    add_native_initialiser,
    make_module_a_folder,
    remove_everything,
)


@pytest.mark.parametrize("is_warm", [False, True], ids=["before", "between"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_seen(
    body: Any, environment: Environment, change: Callable[[Path], None], is_warm: bool
) -> None:
    """Folders change, before or between searches: no answer that `PathFinder` would not give."""
    finder = environment.finder(body)
    if is_warm:
        for name in NAMES:
            finder.find_spec(name, path_for(environment, name))
    change(environment.root)

    for name in (*NAMES[:-3], "new"):
        path = path_for(environment, name)
        answer = finder.find_spec(name, path)
        importlib.invalidate_caches()  # the standard finder may trust its own listing within one tick
        expected = PathFinder.find_spec(name, path)
        assert answer is None or described(answer) == described(expected), name
    assert environment.counts.errors == 0


def test_a_changed_import_system_is_left_alone(
    body: Any, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever replaces a method, a hook or `PathFinder` itself is served as without us."""
    finder = environment.finder(body)
    assert finder.find_spec("plain") is not None
    for where, name in (
        (SourceFileLoader, "get_code"),
        (SourceFileLoader, "exec_module"),
        (SourceFileLoader, "source_to_code"),
        (FileFinder, "find_spec"),
        (PathFinder, "find_spec"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, lambda *_, **__: None)
            assert finder.find_spec("plain") is None, name
        assert finder.find_spec("plain") is not None
    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [])
        assert finder.find_spec("plain") is None
    assert environment.counts.reasons["import system changed"] == 6
    assert finder.find_spec("plain") is not None


def refusing(path: str) -> None:
    raise ImportError


def claiming(path: str) -> FileFinder:
    """Takes every folder, with loaders of its own."""
    return FileFinder(path, (SourceFileLoader, [".py"]))


@pytest.mark.parametrize("is_warm", [False, True], ids=["before", "between"])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_hook_that_wants_no_folder_changes_nothing(
    body: Any, environment: Environment, monkeypatch: pytest.MonkeyPatch, where: int, is_warm: bool
) -> None:
    """Others have a path hook for what is theirs; folders are served as before, once the hook was asked."""
    asked = []

    def hook(path: str) -> None:
        asked.append(path)
        raise ImportError

    finder = environment.finder(body)
    if is_warm:
        for name in NAMES:
            finder.find_spec(name, path_for(environment, name))
    hooks = sys.path_hooks[:]
    hooks.insert(where, hook)
    monkeypatch.setattr(sys, "path_hooks", hooks)
    served = 0
    for name in NAMES[:-3]:
        path = path_for(environment, name)
        answer = finder.find_spec(name, path)
        expected = PathFinder.find_spec(name, path)
        assert answer is None or described(answer) == described(expected)
        assert (answer is not None) == (expected is not None and expected.origin is not None)
        if answer is not None:
            served += 1
            assert answer.loader.get_code(name).co_filename == answer.origin
    assert served == 8
    assert environment.counts.errors == 0
    assert len(asked) == len(set(asked)), "each folder is asked for once"
    assert where == 2 or str(environment.root) in asked


def test_a_hook_that_takes_folders_has_them(
    body: Any, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others make of a folder is not ours to answer for, whether it is a finder or a refusal of all."""
    for hooks in ([claiming, *STOCK_HOOKS], [claiming], [refusing], []):
        for key in [key for key in sys.path_importer_cache if key.startswith(str(environment.folder))]:
            del sys.path_importer_cache[key]
        finder = environment.finder(body)
        assert finder.find_spec("plain") is not None
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # of no hooks at all
            patch.setattr(sys, "path_hooks", hooks)
            for name in NAMES[:-3]:
                assert finder.find_spec(name, path_for(environment, name)) is None
    assert environment.counts.errors == 0


def test_strange_paths_are_no_error(body: Any, environment: Environment) -> None:
    """Entries that are no text, missing, repeated or subclasses of text; iterators, and paths that raise."""

    class Text(str):
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("compared")

        __hash__ = str.__hash__

    finder = environment.finder(body)
    root = str(environment.root)
    for path in ([b"bytes", 5, None, root], ["/missing", root, root], iter([root]), (root,)):
        assert finder.find_spec("plain", path) is not None
    assert finder.find_spec("plain", [str(environment.root / "plain.py")]) is None
    assert environment.counts.errors == 0
    finder.find_spec("plain", [Text(root)])
    before = environment.counts.errors
    for wrong in (5, [root + "\0"]):
        assert finder.find_spec("plain", wrong) is None
        before += 1
        assert environment.counts.errors == before


def test_forgetting_asks_again(body: Any, environment: Environment) -> None:
    """`invalidate_caches` in the middle of a program changes no answer."""
    finder = environment.finder(body)
    before = [described(finder.find_spec(name, path_for(environment, name))) for name in NAMES]
    finder.invalidate_caches()
    assert before == [described(finder.find_spec(name, path_for(environment, name))) for name in NAMES]


# -- hostile manifests ---------------------------------------------------------------------------------------

ODD = (0, 1, 2, 7, 8, 9, 24, 48, 80, 255, 1 << 16, 1 << 24, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 8)
ODD += (1 << 63, (1 << 64) - 8, (1 << 64) - 1)


def signed_again(raw: bytearray) -> bytes:
    """The same bytes with right checksums wherever there still is something to sum up."""
    size = len(raw)
    at, length = struct.unpack_from("<QQ", raw, 40 + 16 * m.SECTIONS.index("blocks"))
    end = min(at + length, size)
    while at + 72 <= end:
        (block,) = struct.unpack_from("<Q", raw, at + 8)
        if block < 72 or at + block > end:
            break
        struct.pack_into("<Q", raw, at, m.siphash(bytes(raw[at + 8 : at + block])))
        at += block
    (preamble,) = struct.unpack_from("<Q", raw, 32)
    if 216 <= preamble <= size:
        struct.pack_into("<Q", raw, 24, m.siphash(bytes(raw[32:preamble])))
    return bytes(raw)


def everything(body: Any, path: str, folder: str, names: list[bytes]) -> list[object]:
    """All that a reader can be asked, or that it will not have the file."""
    try:
        reader = body.Manifest(path, folder, BUILD.identity(), 0)
    except body.Unusable as reason:
        return [str(reason)]
    answers: list[object] = [reader.prefix()]
    for ask, keys in ((reader.root, range(3)), (reader.pack_name, range(3)), (reader.block, names)):
        for key in keys:
            try:
                found = ask(key)
            except body.Unusable as reason:
                answers.append(str(reason))
                continue
            if ask == reader.block and found is not None:
                stamp = found.mtime, found.ctime, found.ino, found.root
                found = (*stamp, list(found.table.items()), list(found.records))
            answers.append(found)
    return answers


@pytest.mark.parametrize("seed", range(4))
def test_hostile_manifests_get_one_answer_from_both(native: Any, tmp_path: Path, seed: int) -> None:
    """Wrong offsets, lengths and counts under right checksums: both readers refuse or read the same."""
    environment = Environment(tmp_path, FILES)
    good = m.encode(environment.manifest())
    twin = SimpleNamespace(Manifest=twin_manifest.Manifest, Unusable=twin_manifest.Unusable)
    names = [os.fsencode(record.path) for record in environment.manifest().folders]
    names += [b"", b"/missing", os.fsencode(environment.root / "plain.py")]
    number = 0

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        nonlocal number
        raw = bytearray(good)
        for _ in range(data.draw(st.integers(1, 2))):
            at = 8 * data.draw(st.integers(2, len(raw) // 8 - 1))
            value = data.draw(st.sampled_from(ODD) | st.integers(0, len(raw)))
            struct.pack_into("<Q", raw, at, value)
        number += 1
        path = tmp_path / f"hostile-{number}"
        path.write_bytes(signed_again(raw))
        folder = str(tmp_path / "packs")
        assert everything(native, str(path), folder, names) == everything(twin, str(path), folder, names)
        path.unlink()

    compare()


def test_a_block_of_another_folder_is_not_believed(body: Any, environment: Environment) -> None:
    """Places that lead to sound blocks, which are those of other folders, and the kernel is not asked."""
    raw = bytearray(m.encode(environment.manifest()))
    start, length = struct.unpack_from("<QQ", raw, 40 + 16 * m.SECTIONS.index("folders"))
    places = list(struct.unpack_from(f"<{length // 8}Q", raw, start))
    used = [at for at, place in enumerate(places) if place]
    for one, other in zip(used, used[1:] + used[:1], strict=True):
        struct.pack_into("<Q", raw, start + 8 * one, places[other])
    opened = body.Manifest(
        environment.write(bytes(raw)), str(environment.folder / "packs"), BUILD.identity(), os.geteuid()
    )
    hooks = sys.path_hooks[0], sys.path_hooks[1]
    finder = body.VeloFinder([opened], environment.counts, twin_manifest.NEVER, hooks, DETAILS)

    assert [finder.find_spec(name, path_for(environment, name)) for name in NAMES[:-3]] == [None] * 12
    assert environment.counts.errors > 0


# -- every field ---------------------------------------------------------------------------------------------


def worse(word: int, size: int) -> tuple[int, ...]:
    """What a number becomes: one off, one bit off at either end, far too much, nothing."""
    ones = (1 << 64) - 1
    values = (word + 1, word - 8, word ^ 1, word ^ 1 << 63, word ^ 1 << 8, ones, 0, size)
    return tuple(dict.fromkeys(value & ones for value in values if value & ones != word))


def compiled_source(origin: str) -> Any:
    return compile(Path(origin).read_bytes(), origin, "exec", dont_inherit=True)


def served_wrongly(
    body: Any, environment: Environment, data: bytes, origins: dict[str, str], *, verify: bool
) -> list[str]:
    """The names whose code is not that of their source, or whose file is not one of these."""
    counts = environment.counts = Counts(verify)
    counts.load_loader = lambda: loader.VeloSourceLoader
    try:
        finder = environment.finder(body, data)
    except (body.Unusable, OSError, ValueError, IndexError):
        return []
    wrong = []
    for name in NAMES[:-3]:
        spec = finder.find_spec(name, path_for(environment, name))
        if spec is not None:
            code, stock = spec.loader.get_code(name), compiled_source(spec.origin)
            if (
                code != stock
                or code.co_filename != spec.origin
                or spec.origin != origins.get(name, spec.origin)
            ):
                wrong.append(name)
    ENDED[counts.served > 0] += 1
    return wrong


ENDED = {True: 0, False: 0}  # changed files that were still of use, and those that were not


def origins_of(environment: Environment) -> dict[str, str]:
    """Where Python finds the names."""
    specs = {name: PathFinder.find_spec(name, path_for(environment, name)) for name in NAMES[:-3]}
    return {name: spec.origin for name, spec in specs.items() if spec is not None and spec.origin is not None}


@pytest.mark.parametrize("is_signed", [False, True], ids=["as it is", "right checksums"])
def test_no_field_of_a_manifest_can_make_code_wrong(
    body: Any, environment: Environment, monkeypatch: pytest.MonkeyPatch, is_signed: bool
) -> None:
    """Every number of a manifest changed in eight ways: what is served is what the source says. A manifest
    with right checksums is believed about what lies in a folder; even then, if bytecode is compared with its
    own checksum (VELO_VERIFY), each module's code is that of its file.
    """
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    good = m.encode(environment.manifest())
    origins = origins_of(environment)
    assert served_wrongly(body, environment, good, origins, verify=is_signed) == []
    assert environment.counts.served == len(origins), environment.counts.reasons
    if is_signed:
        origins = {}
    tried = 0
    for at in range(0, len(good), 8):
        (word,) = struct.unpack_from("<Q", good, at)
        for value in worse(word, len(good)):
            raw = bytearray(good)
            struct.pack_into("<Q", raw, at, value)
            data = signed_again(raw) if is_signed else bytes(raw)
            assert served_wrongly(body, environment, data, origins, verify=is_signed) == [], (at, word, value)
            tried += 1
    for size in range(0, len(good), 24):
        assert served_wrongly(body, environment, good[:size], origins, verify=is_signed) == [], size
        tried += 1
    print(f"{tried} files, {ENDED[True]} of use so far, {ENDED[False]} not")
    assert tried > 2000


def test_no_byte_of_a_pack_can_make_code_wrong(
    body: Any, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of a pack changed under a stamp that holds, as a failing disk does it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    environment.manifest()
    pack = environment.folder / "packs" / "pack"
    good = pack.read_bytes()
    origins = origins_of(environment)
    for at in range(len(good)):
        for change in (1, 0x80):
            data = good[:at] + bytes([good[at] ^ change]) + good[at + 1 :]
            pack.write_bytes(data)
            manifest = environment.described()
            assert served_wrongly(body, environment, m.encode(manifest), origins, verify=True) == [], (
                at,
                change,
            )
            assert len(origins) - 1 <= environment.counts.served <= len(origins)


def test_the_finder_under_sanitizers(tmp_path: Path, environment: Environment) -> None:
    """Searches in sound, changed and hostile environments, without a finding of AddressSanitizer or UBSan."""
    import random

    dice = random.Random(7)
    good = m.encode(environment.manifest())
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    for number in range(400):
        raw = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            struct.pack_into(
                "<Q", raw, 8 * dice.randrange(2, len(raw) // 8), dice.choice((*ODD, dice.randrange(len(raw))))
            )
        (hostile / f"{number:03}").write_bytes(signed_again(raw) if number % 4 else bytes(raw))
    (hostile / "400").write_bytes(good[: len(good) // 2])
    (hostile / "401").write_bytes(b"")
    (hostile / "zzz").write_bytes(good)
    script = f"""
import os, sys, gc
sys.path.insert(0, {str(CHECKOUT)!r})
from velo_import.hook import loader, mapping
from velo_import.hook.counts import Counts
import _frozen_importlib_external as external
core = mapping.load_native("velo_import._native.core", sys.argv[1] + "/core.abi3.so")
for name in ("map_file", "map_private", "is_unchanged", "load_code", "serve", "is_audited", "Unusable"):
    setattr(mapping, name, getattr(core, name))
root, names = {str(environment.root)!r}, {[name for name in NAMES if name != chr(0xDC80)]!r} + [chr(0xDC80)]
details = [(s, k) for k, g in external._get_supported_file_loaders() for s in g]
sys.path[:] = [root, "/missing", ""]
served = refused = errors = 0
def paths(name):
    parent = name.rpartition(".")[0]
    whole = [root + "/" + parent.replace(".", "/")]
    return [whole, [5, b"x", "", "/missing", root]] if parent else [None, [root]]
for name in sorted(os.listdir({str(hostile)!r})):
    path = {str(hostile)!r} + "/" + name
    try:
        manifest = core.Manifest(path, {str(tmp_path / "packs")!r}, {BUILD.identity()!r}, os.geteuid())
    except core.Unusable:
        refused += 1
        continue
    for index in (0, 1, 1 << 31, (1 << 64) - 1):
        for ask in (manifest.root, manifest.pack_name, manifest.pack):
            try:
                ask(index)
            except core.Unusable:
                pass
    counts = Counts()
    counts.load_loader = lambda: loader.VeloSourceLoader
    finder = core.VeloFinder([manifest] * 2, counts, None, tuple(sys.path_hooks[:2]), details)
    for round in range(2):
        for wanted in names:
            for place in paths(wanted):
                spec = finder.find_spec(wanted, place)
                if spec is not None and type(spec.loader).__name__ == "VeloSourceLoader":
                    try:
                        spec.loader.get_code(wanted)
                    except (OSError, SyntaxError):
                        pass
                    spec.loader._folder.table, len(spec.loader._folder.records)
        finder.invalidate_caches()
    served += counts.served
    errors += counts.errors
    for wrong in ((), (5,), ("a", None, None, 5)):
        try:
            finder.find_spec(*wrong)
        except TypeError:
            pass
os.mkdir(root + "/new")
os.unlink(root + "/plain.py")
for wanted in names:
    for place in paths(wanted):
        finder.find_spec(wanted, place)
for wrong in ((), (5,), ([5], counts, None, (1, 2), details), ([], counts, None, (1, 2), [(1, 2)]),
              ([], counts, None, (1, 2), details * 9), ([manifest] * 9, counts, None, (1, 2), details)):
    try:
        core.VeloFinder(*wrong)
    except (TypeError, ValueError):
        pass
    else:
        sys.exit(f"VeloFinder took {{wrong}}")
for wrong in ((), (5, 5, 5), (None, None), ("a", "b")):
    try:
        core.serve(*wrong)
    except (TypeError, AttributeError):
        pass
    else:
        sys.exit(f"serve took {{wrong}}")
del manifest, finder, spec
gc.collect()
assert served > 100 and refused > 20 and errors > 20, (served, refused, errors)
print("all paths")
"""
    done = run_under_sanitizers("core", tmp_path, script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "all paths\n"
    assert "runtime error" not in done.stderr


def test_kinds_of_suffixes_are_those_of_the_interpreter() -> None:
    """The names used above exist: extension modules first, sources after them."""
    assert DETAILS[0][1] is ExtensionFileLoader
    assert dict(DETAILS)[".py"] is SourceFileLoader
    assert loader.VeloSourceLoader.__mro__[1] is SourceFileLoader

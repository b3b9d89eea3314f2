# SPDX-License-Identifier: Apache-2.0
"""Learning: what one program imported becomes the upper manifest, and nothing else changes."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tree import Tree
from velo_import.errors import StoreLocked, VeloError
from velo_import.format.manifest import (
    DEFER,
    Manifest,
    ModuleRecord,
    decode,
    encode,
    manifest_key,
    siphash,
)
from velo_import.host.locks import exclusive
from velo_import.ingest import codes, ingest, learning
from velo_import.ingest.codes import LEAST_COMPILED
from velo_import.ingest.interpreter import probe
from velo_import.ingest.learning import learn
from velo_import.ingest.notes import VAIN, build_of, parse_notes
from velo_import.store.layout import Store

MARK = b"eight by"


class Program:
    """Notes of a program, as the hook would have written them."""

    def __init__(self, python: Path, store: Store) -> None:
        self.store = store
        self.python = python
        self.interpreter = probe(str(python))
        self.build = self.interpreter.build()
        self.key = manifest_key(self.build, self.interpreter.prefix)

    def notes(self, modules: dict[str, Path], path: list[Path], **replaced: str) -> bytes:
        said = {
            "key": self.key,
            "executable": self.interpreter.executable,
            "prefix": self.interpreter.prefix,
            "base_prefix": self.interpreter.base_prefix,
            "optimize": "0",
            "identity": self.build.identity().hex(),
            "mark": MARK.hex(),
            **replaced,
        }
        records = ["velo-notes 1", *(f"{name}={value}" for name, value in said.items())]
        records += [f"stdlib={folder}" for folder in self.interpreter.stdlib[:1]]
        records += [f"path={folder}" for folder in path]
        records += [f"module={name}\t{origin}" for name, origin in modules.items()]
        return b"".join(os.fsencode(record) + b"\0" for record in records)

    def learn(self, modules: dict[str, Path], path: list[Path]):
        return learn(self.notes(modules, path), self.store)

    @property
    def vain(self) -> Path:
        return self.store.run / f"{self.key}.vain"

    @property
    def lock(self) -> Path:
        return self.store.run / f"{self.key}.lock"

    @property
    def upper(self) -> Path:
        return self.store.manifest_folder(self.key) / "upper.velo"

    def manifest(self) -> Manifest:
        return decode(self.upper.read_bytes())

    def module(self, path: Path) -> ModuleRecord:
        folder = next(folder for folder in self.manifest().folders if folder.path == str(path.parent))
        return next(module for module in folder.modules if module.tail == path.name.partition(".")[0])

    def folders(self) -> set[str]:
        return {folder.path for folder in self.manifest().folders}

    def code(self, path: Path) -> bytes:
        record, manifest = self.module(path), self.manifest()
        data = (self.store.packs / manifest.packs[record.pack].name).read_bytes()
        return data[record.offset : record.offset + record.length]


@pytest.fixture
def program(tmp_path: Path, python: Path) -> Program:
    return Program(python, Store.open(tmp_path / "store", create=True))


@pytest.fixture
def project(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "app")


def test_what_was_imported_is_compiled_and_what_was_not_is_only_listed(program, project):
    project.write({"app.py": "x = 1\n", "unused.py": "y = 2\n", "pkg/__init__.py": "", "pkg/a.py": "z = 3\n"})
    modules = {"app": project / "app.py", "pkg": project / "pkg/__init__.py", "pkg.a": project / "pkg/a.py"}

    summary = program.learn(modules, [project.folder])

    assert summary.published and summary.compiled == 3
    assert program.folders() == {str(project.folder), str(project / "pkg")}
    assert program.module(project / "pkg/a.py").pack >= 0
    unused = program.module(project / "unused.py")
    assert unused.pack == -1 and not unused.flags & DEFER


def test_a_second_program_adds_to_what_the_first_has_taught(program, project):
    project.write({"one/__init__.py": "", "two/__init__.py": ""})
    program.learn({"one": project / "one/__init__.py"}, [project.folder])

    program.learn({"two": project / "two/__init__.py"}, [project.folder])

    assert program.module(project / "one/__init__.py").pack >= 0
    assert program.module(project / "two/__init__.py").pack >= 0


def test_learning_again_publishes_nothing_and_says_so(program, project):
    """The hook waits twice as long after each attempt in vain, so that it does not try for ever."""
    project.write({"app.py": "x = 1\n"})
    modules = {"app": project / "app.py"}
    assert program.learn(modules, [project.folder]).published
    assert not program.vain.exists()
    before = os.stat(program.upper)

    assert not program.learn(modules, [project.folder]).published

    assert os.stat(program.upper) == before
    mark, _, attempts = VAIN.unpack(program.vain.read_bytes())
    assert (mark, attempts) == (MARK, 1)


def test_the_lock_that_the_hook_took_is_used(program, project):
    project.write({"app.py": "x = 1\n"})
    notes = program.notes({"app": project / "app.py"}, [project.folder])
    lock = os.open(program.lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    script = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3)\n"
        "from pathlib import Path\n"
        "from velo_import.ingest import learn\n"
        "from velo_import.store.layout import Store\n"
        "for turn in range(3):\n"
        "    learn(sys.argv[3].encode() and open(sys.argv[3], 'rb').read(), Store.open(Path(sys.argv[2])))\n"
        "    print(sum(p.stat().st_size for p in Path(sys.argv[2]).glob('run/*.vain')))\n"
    )
    (project.folder.parent / "notes").write_bytes(notes)
    command = [
        sys.executable,
        "-c",
        script,
        str(lock),
        str(program.store.home),
        str(project.folder.parent / "notes"),
    ]
    out = subprocess.run(
        command, pass_fds=[lock], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    ).stdout
    os.close(lock)

    assert out.split() == ["0", "16", "16"]


def test_while_another_learns_this_one_steps_back(program, project):
    with exclusive(program.lock), pytest.raises(StoreLocked):
        program.learn({}, [project.folder])


def test_a_learner_that_fails_makes_the_hook_wait(program, project, monkeypatch):
    project.write({"app.py": "x = 1\n"})
    monkeypatch.setattr("velo_import.ingest.learning.provide_codes", lambda *given, **more: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        program.learn({"app": project / "app.py"}, [project.folder])

    assert VAIN.unpack(program.vain.read_bytes())[0] == MARK


def test_notes_left_while_another_learned_are_taken_up(program, project):
    """Programs that end while the learner works put their notes beside it; damaged ones are thrown away."""
    project.write({"one.py": "x = 1\n", "two.py": "y = 1\n"})
    left = program.store.run / "notes"
    left.mkdir()
    (left / f"{program.key}.77").write_bytes(program.notes({"two": project / "two.py"}, [project.folder]))
    (left / f"{program.key}.78").write_bytes(b"rubbish")
    (left / "other-key.79").write_bytes(b"of another environment")

    program.learn({"one": project / "one.py"}, [project.folder])

    assert program.module(project / "one.py").pack >= 0
    assert program.module(project / "two.py").pack >= 0
    assert [path.name for path in left.iterdir()] == ["other-key.79"]


def test_notes_left_after_the_last_look_are_taken_up_as_well(program, project, monkeypatch):
    """A program that found the lock held just before it was given back has nobody else to learn for it."""
    project.write({"one.py": "x = 1\n", "two.py": "y = 1\n"})
    left = program.store.run / "notes"
    look = learning.left_notes
    looks = []

    def left_notes(store, key):
        looks.append(key)
        if len(looks) == 2:  # The last look under the lock: the note comes right after it.
            left.mkdir()
            two = program.notes({"two": project / "two.py"}, [project.folder])
            (left / f"{program.key}.77").write_bytes(two)
            return iter(())
        return look(store, key)

    monkeypatch.setattr(learning, "left_notes", left_notes)
    program.learn({"one": project / "one.py"}, [project.folder])

    assert program.module(project / "one.py").pack >= 0
    assert program.module(project / "two.py").pack >= 0
    assert list(left.iterdir()) == []


def test_an_edited_module_is_compiled_again(program, project):
    project.write({"app.py": "x = 'old'\n", "other.py": "y = 1\n"})
    modules = {"app": project / "app.py", "other": project / "other.py"}
    program.learn(modules, [project.folder])
    project.write({"app.py": "x = 'newer'\n"})

    summary = program.learn(modules, [project.folder])

    assert summary.compiled == 1
    assert b"newer" in program.code(project / "app.py")
    assert program.module(project / "other.py").pack >= 0


def test_folders_that_have_gone_are_dropped(program, project):
    project.write({"one/__init__.py": "", "two/__init__.py": ""})
    program.learn({"one": project / "one/__init__.py"}, [project.folder])
    shutil.rmtree(project / "one")

    program.learn({"two": project / "two/__init__.py"}, [project.folder])

    assert program.folders() == {str(project.folder), str(project / "two")}


def test_a_folder_of_another_program_that_has_changed_is_listed_again(program, project):
    project.write({"one/a.py": "a = 1\n", "two/b.py": "b = 1\n"})
    program.learn({"a": project / "one/a.py"}, [project / "one"])
    project.write({"one/new.py": "n = 1\n"})

    program.learn({"b": project / "two/b.py"}, [project / "two"])

    assert program.module(project / "one/a.py").pack >= 0
    assert program.module(project / "one/new.py").pack == -1


def test_what_the_base_says_as_well_leaves_the_upper_manifest(program, project, python):
    project.write({"app.py": "x = 1\n"})
    modules = {"app": project / "app.py"}
    program.learn(modules, [project.folder])
    assert program.upper.exists()

    ingest(project.folder, python=str(python), store=program.store)
    assert not program.upper.exists()
    summary = program.learn(modules, [project.folder])

    assert not summary.published and not program.upper.exists()


def test_only_folders_that_differ_from_the_base_are_in_the_upper_manifest(program, project, python):
    project.write({"one/__init__.py": "", "two/__init__.py": "x = 1\n"})
    modules = {"one": project / "one/__init__.py", "two": project / "two/__init__.py"}
    ingest(project.folder, python=str(python), store=program.store)
    project.write({"two/__init__.py": "x = 22\n"})

    program.learn(modules, [project.folder])

    assert program.folders() == {str(project / "two")}


def test_ingest_uses_what_was_learned(program, project, python):
    project.write({"app.py": "x = 1\n"})
    program.learn({"app": project / "app.py"}, [project.folder])

    summary = ingest(project.folder, python=str(python), store=program.store)

    assert summary.modules > 0
    packs = {pack.label for pack in decode(Path(summary.manifest).read_bytes()).packs}
    assert any(label.startswith("tree:") for label in packs)


def test_ingesting_another_folder_takes_nothing_from_what_was_learned(program, project, python, tmp_path):
    project.write({"app.py": "x = 1\n"})
    ingest(project.folder, python=str(python), store=program.store)
    project.write({"app.py": "x = 22\n"})
    program.learn({"app": project / "app.py"}, [project.folder])
    other = Tree(tmp_path / "other").write({"m.py": "y = 1\n"})

    ingest(other.folder, python=str(python), store=program.store)

    assert program.folders() == {str(project.folder)}
    assert b"\x16" in program.code(project / "app.py")


def test_namespace_packages_and_folders_in_the_way_are_known(program, project, tmp_path):
    """Folders without an `__init__` leave no note, but a search has to know what they are."""
    project.write({"space/inner/mod.py": "", "data/file.txt": ""})
    other = Tree(tmp_path / "site").write({"data/__init__.py": ""})
    modules = {"space.inner.mod": project / "space/inner/mod.py", "data": other / "data/__init__.py"}

    program.learn(modules, [project.folder, other.folder])

    assert {str(project / "space"), str(project / "space/inner"), str(project / "data")} <= program.folders()


def test_a_package_behind_a_link_is_known_under_the_name_it_is_imported_by(program, project, tmp_path):
    real = Tree(tmp_path / "elsewhere").write({"pkg/__init__.py": "", "pkg/a.py": "x = 1\n"})
    (project.folder / "pkg").symlink_to(real / "pkg")
    modules = {"pkg": project / "pkg/__init__.py", "pkg.a": project / "pkg/a.py"}

    program.learn(modules, [project.folder])

    assert program.module(project / "pkg/a.py").pack >= 0


def test_a_module_from_outside_of_the_search_path_is_learned_too(program, project, tmp_path):
    plugins = Tree(tmp_path / "plugins").write({"extra.py": "x = 1\n"})
    project.write({"app.py": ""})

    program.learn({"app": project / "app.py", "app.extra": plugins / "extra.py"}, [project.folder])

    assert program.module(plugins / "extra.py").pack >= 0


def test_what_can_never_be_served_is_marked(program, project):
    """Otherwise the hook would ask for it, and start a learner, after every run."""
    project.write({"bad.py": "def\n"})

    summary = program.learn({"bad": project / "bad.py"}, [project.folder])

    assert summary.deferred == 1 and program.module(project / "bad.py").flags & DEFER
    assert not program.learn({"bad": project / "bad.py"}, [project.folder]).published


def test_many_lessons_do_not_make_many_packs(program, project):
    project.write({f"m{number}.py": f"x = {number}\n" for number in range(8)})

    for number in range(8):
        program.learn({f"m{number}": project / f"m{number}.py"}, [project.folder])

    assert len(program.manifest().packs) <= codes.MOST_PACKS
    assert all(program.code(project / f"m{number}.py") for number in range(8))


def test_zip_files_and_missing_folders_on_the_path_are_passed_over(program, project):
    project.write({"app.py": "x = 1\n"})
    archive = project.archive("lib.zip", {"inside.py": ""})
    modules = {"app": project / "app.py", "inside": archive / "inside.py", "gone": project / "gone/m.py"}

    summary = program.learn(modules, [archive, project / "missing", project.folder])

    assert summary.published and program.module(project / "app.py").pack >= 0


def test_names_that_are_not_utf8_are_learned(program, project):
    folder = project.folder / os.fsdecode(b"odd\xff")
    Tree(folder).write({"app.py": "x = 1\n"})

    program.learn({"app": folder / "app.py"}, [folder])

    assert program.code(folder / "app.py")


def test_learning_that_runs_out_of_time_keeps_what_it_has(program, project):
    """And it never has nothing: otherwise a machine that is always busy would learn nothing for ever."""
    count = LEAST_COMPILED + 5
    project.write({f"m{number}.py": f"x = {number}\n" for number in range(count)})
    modules = {f"m{number}": project / f"m{number}.py" for number in range(count)}

    summary = learn(program.notes(modules, [project.folder]), program.store, patience=-1.0)

    assert summary.published and summary.compiled == LEAST_COMPILED
    assert program.learn(modules, [project.folder]).compiled == 5


def test_files_that_no_import_asks_for_are_not_looked_at(program, project, monkeypatch):
    project.write({"app.py": "x = 1\n", **{f"data{number}.csv": "" for number in range(50)}})

    program.learn({"app": project / "app.py"}, [project.folder])

    assert not [record for record in program.manifest().files if record.path.endswith(".csv")]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda notes: b"",
        lambda notes: notes.replace(b"velo-notes 1", b"velo-notes 9"),
        lambda notes: notes.replace(b"key=", b"kex="),
        lambda notes: notes.replace(b"identity=", b"identity=zz"),
    ],
)
def test_damaged_notes_are_refused(program, project, spoil: Callable[[bytes], bytes]):
    with pytest.raises(VeloError, match="notes") as refusal:
        learn(spoil(program.notes({}, [project.folder])), program.store)

    assert refusal.value.hint


def test_a_note_that_makes_no_sense_does_not_spoil_the_others(program, project):
    project.write({"app.py": "x = 1\n"})
    notes = program.notes({"app": project / "app.py"}, [project.folder])

    summary = learn(notes + b"module=nothing\0module=zip\t/no/such/lib.zip/m.py\0", program.store)

    assert summary.compiled == 1 and summary.unreadable == []


def test_damaged_bytecode_is_compiled_again(program, project):
    """A bit that has flipped on the disk leaves the stamp of the pack as it was."""
    project.write({"app.py": "x = 'intact'\n"})
    modules = {"app": project / "app.py"}
    program.learn(modules, [project.folder])
    record, manifest = program.module(project / "app.py"), program.manifest()
    pack = program.store.packs / manifest.packs[record.pack].name
    before = os.stat(pack)
    pack.chmod(0o600)
    with open(pack, "r+b") as file:
        file.seek(record.offset + record.length // 2)
        file.write(b"\xff\xff")
    pack.chmod(0o444)
    os.utime(pack, ns=(before.st_atime_ns, before.st_mtime_ns))
    _restamp(program, pack)

    assert program.learn(modules, [project.folder]).compiled == 1
    record = program.module(project / "app.py")
    assert record.bytecode_check == siphash(program.code(project / "app.py"))


def _restamp(program: Program, pack: Path) -> None:
    """Write the pack's new change time into the manifest: this stands for a disk that lied."""
    manifest = program.manifest()
    status = os.stat(pack)
    packs = [record._replace(ctime_ns=status.st_ctime_ns) for record in manifest.packs]
    program.upper.unlink()
    program.upper.write_bytes(encode(manifest._replace(packs=packs)))


def test_notes_of_another_environment_are_refused(program, project):
    with pytest.raises(VeloError, match="another environment"):
        learn(program.notes({}, [project.folder], prefix="/elsewhere"), program.store)

    assert not program.upper.exists()


def test_notes_say_which_build_they_are_of(program):
    notes = parse_notes(program.notes({}, []))

    assert notes.build == build_of(program.build.identity()) == program.build


@pytest.mark.slow
def test_four_hundred_modules_are_learned_in_three_seconds_of_cpu(program, project):
    body = "".join(f"def f{number}(x):\n    return [x, {number}]\n" for number in range(150))
    project.write({f"m{number}.py": f"N = {number}\n{body}" for number in range(400)})
    modules = {f"m{number}": project / f"m{number}.py" for number in range(400)}
    began = os.times()

    program.learn(modules, [project.folder])

    used = os.times()
    assert sum(used[:4]) - sum(began[:4]) <= 3.0

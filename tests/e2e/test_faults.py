# SPDX-License-Identifier: Apache-2.0
"""Nothing of ours is ever an error of theirs: with every part of the store broken the program runs as without
Velo.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.running import Velo
from tests.support.tree import Tree

APP = {
    "app.py": "import part, box.deep, json\n"
    "print(part.VALUE, box.deep.VALUE, json.dumps([1]))\npart.fail()\n",
    "part.py": "VALUE = 1\ndef fail():\n    raise ValueError('on purpose')\n",
    "box/__init__.py": "",
    "box/deep.py": "VALUE = 2\n",
}
INERT: dict[str, str | None] = {"VELO_READONLY": "1"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount or to change owners")


def files(velo: Velo, pattern: str) -> list[Path]:
    found = [path for path in sorted(velo.home.rglob(pattern)) if path.is_file()]
    assert found, f"no {pattern} in the store"
    return found


def overwrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Damage a file in place, sizes and times set back: what a bad disk does, and no stamp notices."""
    before = path.stat()
    data = change(path.read_bytes())
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.truncate(len(data))
        file.write(data)
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(at: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        where = min(len(data) - 1, int(at * len(data)))
        return data[:where] + bytes([data[where] ^ 0x10]) + data[where + 1 :]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "header only": lambda data: data[:64],
    "half": lambda data: data[: len(data) // 2],
    "last byte missing": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "other magic": lambda data: b"NOTAVELO" + data[8:],
    "other version": lambda data: data[:8] + b"\x63" + data[9:],
    "text": lambda data: b"hello\n" * 1000,
    "doubled": lambda data: data + data,
    "tail of ones": lambda data: data[: len(data) // 2] + b"\xff" * (len(data) - len(data) // 2),
    "flipped first": flip(0.0),
    "flipped header": flip(0.002),
    "flipped middle": flip(0.5),
    "flipped last": flip(1.0),
}


@pytest.fixture
def learned(tree: Tree, velo: Velo) -> Velo:
    """A project whose modules are served."""
    tree.write(APP)
    velo.both("app.py", served=3)
    return velo


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["*.velo", "*.pack", "*.code"])
def test_damaged_file(learned: Velo, kind: str, damage: str) -> None:
    """Every file that the hook reads, damaged in every way: the program does not notice."""
    for path in files(learned, kind):
        overwrite(path, DAMAGES[damage])

    result = learned.run("app.py", env=INERT)

    assert result.answer == learned.plain("app.py").answer


def test_damage_heals(learned: Velo) -> None:
    """After the damage the next runs learn again, and are served again."""
    for kind in ("*.velo", "*.pack"):
        for path in files(learned, kind):
            overwrite(path, lambda data: data[: len(data) // 2])
        plain = learned.plain("app.py")
        assert learned.learn("app.py").answer == plain.answer
        assert learned.learn("app.py").answer == plain.answer
        assert learned.run("app.py").served >= 3, kind


@pytest.mark.parametrize("kind", ["*.velo", "*.pack", "*.code"])
def test_random_flips(learned: Velo, kind: str) -> None:
    """Forty random single-bit errors in each kind of file, one at a time, times set back."""
    generator = random.Random(20)
    plain = learned.plain("app.py").answer
    sound = {path: path.read_bytes() for path in files(learned, kind)}
    for _ in range(40):
        path = generator.choice(sorted(sound))
        data = bytearray(sound[path])
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        overwrite(path, lambda _, data=data: bytes(data))

        assert learned.run("app.py", env=INERT).answer == plain

        overwrite(path, lambda _, path=path: sound[path])


@pytest.mark.parametrize("kind", ["*.velo", "*.pack", "*.code", "*.lock", "learner", "VERSION", "data.mdb"])
def test_missing_file(learned: Velo, kind: str) -> None:
    """Any file of the store deleted: the program runs, now and next time."""
    for path in files(learned, kind):
        path.unlink()
    plain = learned.plain("app.py")

    for _ in range(2):
        assert learned.learn("app.py").answer == plain.answer


@pytest.mark.parametrize("name", ["manifests", "packs", "run", "meta.db", "cas_store", ""])
def test_missing_folder(learned: Velo, name: str) -> None:
    """Any folder of the store deleted, or all of it."""
    shutil.rmtree(learned.home / name)
    plain = learned.plain("app.py")

    for _ in range(2):
        assert learned.learn("app.py").answer == plain.answer


@pytest.mark.parametrize("kind", ["*.velo", "*.pack", "*.code", "learner", "*.lock"])
def test_folder_in_a_files_place(learned: Velo, kind: str) -> None:
    """A folder, a link to nowhere, a link to itself, a pipe and a device where a file should be."""
    # Nothing is opened for learning otherwise; there the learner's file and its lock are in the way as well.
    env = {} if kind in ("learner", "*.lock") else INERT
    (learned.cwd / "part.py").touch()
    plain = learned.plain("app.py")
    for path in files(learned, kind):
        for make in (
            lambda p: p.mkdir(),
            lambda p: p.symlink_to("nowhere"),
            lambda p: p.symlink_to(p),
            lambda p: os.mkfifo(p),
            lambda p: p.symlink_to("/dev/zero"),
        ):
            path.unlink()
            make(path)
            assert learned.run("app.py", env=env, timeout=10).answer == plain.answer
            path.rmdir() if path.is_dir() and not path.is_symlink() else None
            path.touch() if not path.is_symlink() and not path.exists() else None


def test_manifest_of_another_interpreter(learned: Velo) -> None:
    """A manifest with another build's name inside is not used."""
    for path in files(learned, "*.velo"):
        overwrite(path, lambda data: data.replace(b"cpython-3", b"cpython-9"))

    assert learned.run("app.py", env=INERT).answer == learned.plain("app.py").answer


def test_named_manifest_that_is_none(tree: Tree, learned: Velo) -> None:
    """VELO_MANIFEST naming a missing file, a folder, text, or nothing: silence."""
    tree.write({"text.velo": "not a manifest"})
    plain = learned.plain("app.py")
    for name in ("missing.velo", "box", "text.velo", "", "/dev/null"):
        assert learned.run("app.py", env={**INERT, "VELO_MANIFEST": name}).answer == plain.answer


def test_nonsense_in_variables(learned: Velo) -> None:
    """Nonsense in every variable of ours changes nothing for the program."""
    plain = learned.plain("app.py")
    for name in ("VELO_CHECK", "VELO_VERIFY", "VELO_READONLY", "VELO_TRACE", "VELO_STATS", "VELO_MANIFEST"):
        for value in ("nonsense", "/no/such/folder/file", "", "\udcff", "x" * 10_000):
            result = learned.run("app.py", env={**INERT, name: value})
            assert result.answer == plain.answer, (name, value[:30])


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_store_that_others_may_write(learned: Velo, mode: int) -> None:
    """A store that others could have written to is not trusted: nothing of it is executed."""
    learned.home.chmod(mode)
    plain = learned.plain("app.py")
    environment = learned.plain_environment(**injection(learned))

    done = subprocess.run(
        [learned.python, "app.py"], cwd=learned.cwd, env=environment, capture_output=True, text=True
    )

    assert (done.stdout, done.stderr, done.returncode) == plain.answer
    statistics = learned.folder / "direct.jsonl"
    assert not statistics.exists() or '"served": 0' in statistics.read_text()


def injection(velo: Velo) -> dict[str, str]:
    """The variables that `velo run` sets, for starting a Python without it (it would mend the store)."""
    told = velo.run("-c", "import json, os; print(json.dumps(dict(os.environ)))", env=INERT).json
    return {
        "PYTHONPATH": told["PYTHONPATH"],
        "VELO_HOME": str(velo.home),
        "VELO_STATS": str(velo.folder / "direct.jsonl"),
        "VELO_READONLY": "1",
    }


@as_root
@pytest.mark.parametrize("part", ["", "manifests", "packs"])
def test_store_of_another_user(learned: Velo, part: str) -> None:
    """Files that belong to another user are not executed, whoever that is."""
    # What is in packs would be taken from images, which are still ours.
    kinds = "patterns,sources,metadata" if part == "packs" else "all"
    environment = learned.plain_environment(**{**injection(learned), "VELO_REMEMBER": kinds})
    paths = [learned.home] if not part else [p for p in (learned.home / part).rglob("*") if p.is_file()]
    for path in paths:
        os.chown(path, 12345, -1)

    done = subprocess.run(
        [learned.python, "app.py"], cwd=learned.cwd, env=environment, capture_output=True, text=True
    )

    assert (done.stdout, done.stderr, done.returncode) == learned.plain("app.py").answer
    statistics = learned.folder / "direct.jsonl"
    assert not statistics.exists() or '"served": 0' in statistics.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k,mode=700", "none", place], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@as_root
@pytest.mark.parametrize("room", [0, 8192, 65536])
def test_full_disk(tree: Tree, velo: Velo, small_disk: Path, room: int) -> None:
    """A store on a disk that is full, or fills up while learning."""
    tree.write(APP | {f"more{number}.py": f"VALUE = {'x' * 4000!r}\n" for number in range(30)})
    app = "".join(f"import more{number}\n" for number in range(30)) + APP["app.py"]
    tree.write({"app.py": app})
    velo.home = small_disk / "velo"
    filler = small_disk / "filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            while file.write(b"x" * 4096) == 4096:
                pass
    except OSError:
        pass
    os.truncate(filler, max(0, filler.stat().st_size - room))
    plain = velo.plain("app.py")

    for _ in range(3):
        assert velo.learn("app.py").answer == plain.answer

    filler.unlink()
    left = [str(path) for path in velo.home.rglob(".tmp*")] if velo.home.exists() else []
    assert not left, "unfinished files were left behind"


def make_readonly(disk: Path) -> None:
    """Remount it. A learner that has just given up its lock still has files open for a moment."""
    for _ in range(100):
        if subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    pytest.fail(f"{disk} stays busy")


@as_root
def test_readonly_disk(tree: Tree, velo: Velo, small_disk: Path) -> None:
    """A learned store on a disk that became read-only: it is used, and nobody complains that it cannot be
    written.
    """
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    velo.home = small_disk / "velo"
    tree.write(APP | {"new.py": "import part, unknown\n", "unknown.py": ""})
    velo.both("app.py", served=3)
    make_readonly(small_disk)

    known, unknown = velo.learn("app.py"), velo.learn("new.py")

    assert known.answer == velo.plain("app.py").answer and known.served >= 3
    assert unknown.answer == velo.plain("new.py").answer


@as_root
def test_readonly_disk_without_a_store(tree: Tree, velo: Velo, small_disk: Path) -> None:
    """VELO_HOME on a read-only disk with nothing there yet: a plain run."""
    velo.home = small_disk / "velo"
    make_readonly(small_disk)
    tree.write(APP)

    assert velo.learn("app.py").answer == velo.plain("app.py").answer


@pytest.mark.parametrize("home", ["/dev/null/velo", "/proc/velo", "relative/place", "", "text.txt"])
def test_impossible_store(tree: Tree, velo: Velo, home: str) -> None:
    """VELO_HOME where no store can be."""
    tree.write(APP | {"text.txt": "a file"})
    env: dict[str, str | None] = {"VELO_HOME": str(tree / home) if home == "text.txt" else home}

    assert velo.learn("app.py", env=env).answer == velo.plain("app.py").answer


def test_home_with_unusual_names(tree: Tree, velo: Velo) -> None:
    """Blanks, quotes, line ends, colons, other alphabets and bytes that are no text in the store's path."""
    tree.write(APP)
    for name in (
        "with blank",
        "quote'\"",
        "line\nend",
        "co:lon",
        "größe",
        "raw\udcff",
        "-dash",
        "%s{x}$HOME",
    ):
        velo.home = velo.folder / name / "velo"
        velo.both("app.py", served=3)


def test_unreadable_source_folder(tree: Tree, velo: Velo) -> None:
    """A folder on the path that may not be listed, and a file that may not be read."""
    tree.write(APP | {"closed/inner.py": "", "shut.py": ""})
    tree.write(
        {
            "app.py": "try:\n    import shut, inner\n"
            "except (OSError, ImportError) as error:\n    print(error)\n"
        }
    )
    (tree / "closed").chmod(0)
    (tree / "shut.py").chmod(0)
    try:
        velo.both("app.py", env={"PYTHONPATH": str(tree / "closed")}, served=0)
    finally:
        (tree / "closed").chmod(0o700)


def test_closed_standard_streams(tree: Tree, velo: Velo) -> None:
    """A program started with its standard streams closed ends well, and the learner spoils no file."""
    tree.write(APP | {"app.py": "import part\nopen('result', 'w').write('done')\n"})
    for _ in range(2):
        result = velo.learn(command=["sh", "-c", 'exec "$0" app.py <&- >&- 2>&-', velo.python])
        assert result.code == 0
        assert (tree / "result").read_text() == "done"


def test_statistics_that_cannot_be_written(tree: Tree, velo: Velo) -> None:
    """VELO_STATS naming an impossible file is passed over in silence."""
    tree.write(APP)

    result = velo.run("app.py", env={"VELO_STATS": "/no/such/folder/stats"})

    assert result.answer == velo.plain("app.py").answer


def test_limits_on_files_and_memory(tree: Tree, velo: Velo) -> None:
    """Few descriptors, small files, little memory: what the program could do before it still can."""
    tree.write(APP)
    velo.learn("app.py")
    plain = velo.plain("app.py").answer
    for limit in ("ulimit -n 16", "ulimit -f 0", "ulimit -v 400000"):
        result = velo.learn(command=["bash", "-c", f'{limit}; exec "$0" app.py', velo.python])
        assert result.answer == plain, limit

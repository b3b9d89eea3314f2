# SPDX-License-Identifier: Apache-2.0
"""The tree that is changed: folders that stand on `sys.path`, modules of every shape in them, and the ways in
which editors, installers, version control and clocks change files.

Knows files only. The surprise: native modules are never written in place, as no installer does that to a file
that running programs have mapped; everything else is, too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

FOLDERS = ("project", "second", "via", "site")  # `via` is a link to a folder
SOURCES = (
    *("alone.py", "both.py", "both/__init__.py", "box/__init__.py", "box/one.py", "box/deep/__init__.py"),
    *("box/deep/two.py", "space/part.py", "space/inner/leaf.py", "linked.py", "xxlimited.py", "colorsys.py"),
)
NAMES = (
    *("alone", "both", "box", "box.one", "box.deep", "box.deep.two", "space", "space.part", "space.inner"),
    *("space.inner.leaf", "linked", "linkbox", "linkbox.one", "xxlimited", "colorsys", "outside", "missing"),
)
NATIVE = ("xxlimited", "alone")  # names that a native module may take
LONG_AGO, FAR_AHEAD = 946_684_800, 2_145_916_800  # 2000 and 2038
BRANCHES = ("main", "topic")


def text_of(number: int, padding: int = 0) -> bytes:
    """Sources of one size for numbers of seven digits and fewer, unless they are padded."""
    return b"VALUE = %d\ndef where():\n    return VALUE\n%s" % (1_000_000 + number, b"#" * padding)


BROKEN: dict[str, bytes] = {
    "syntax": b"VALUE = = 1\n",
    "encoding": b"VALUE = '\xff'\n",
    "nothing": b"",
    "raises": b"VALUE = 1\nVALUE = {}['on purpose']\n",
}


class World:
    """One tree below `folder`. `site` is the environment's own folder of packages, `native` a native module
    of the interpreter and `suffix` what such files are called.
    """

    def __init__(self, folder: Path, site: Path, native: Path, suffix: str) -> None:
        self.folder = folder
        self.native = native
        self.suffix = suffix
        self.places = {
            "project": folder / "project",
            "second": folder / "second",
            "via": folder / "via",
            "site": site,
        }
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        for name in ("project", "second", "real-a", "real-b", "cache", "outside-a", "outside-b"):
            (folder / name).mkdir()
        (folder / "via").symlink_to("real-a")
        for at, name in enumerate(("outside-a", "outside-b")):
            (folder / name / "outside.py").write_bytes(text_of(at))
            (folder / name / "one.py").write_bytes(text_of(10 + at))
            (folder / name / "__init__.py").write_bytes(text_of(20 + at))
        for at, source in enumerate(SOURCES):
            for place in ("project",) if at % 3 else ("second", "via", "site"):
                self._put(self.places[place] / source, text_of(at))
        (self.places["project"] / "linkbox").symlink_to("../outside-a")

    def _make_room(self, path: Path) -> None:
        """The folder of a file that comes, also where only a link to it is there."""
        os.makedirs(os.path.realpath(path.parent), exist_ok=True)

    def _put(self, path: Path, data: bytes) -> None:
        """Write in place, whatever stood in the way of a file there."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_symlink() and not path.exists():
            path.unlink()
        self._make_room(path)
        if path.is_dir():
            path.unlink()
        path.write_bytes(data)

    def _arrive(self, new: Path, path: Path) -> None:
        """Move a finished file into place, as installers do."""
        self._make_room(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(new, path)

    # -- files -------------------------------------------------------------------------------------

    def edit(self, path: Path, number: int, padding: int = 0) -> None:
        """An editor that writes in place."""
        self._put(path, text_of(number, padding))

    def edit_unnoticed(self, path: Path, number: int) -> None:
        """In place, the modification time set back: only ctime can tell, if the size is the same."""
        before = path.stat() if path.is_file() else None
        self._put(path, text_of(number))
        if before is not None:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def edit_within_the_second(self, path: Path, number: int) -> None:
        """As if it had been written some nanoseconds after the last time."""
        before = path.stat() if path.is_file() else None
        self._put(path, text_of(number))
        if before is not None:
            second, rest = divmod(before.st_mtime_ns, 1_000_000_000)
            time = second * 1_000_000_000 + (rest + 1) % 1_000_000_000
            os.utime(path, ns=(time, time))

    def replace(self, path: Path, number: int, *, keeps_time: bool) -> None:
        """Another file moved into place, as editors that are careful do, and `cp -p`."""
        before = path.stat() if path.is_file() else None
        new = self.folder / "new"
        new.write_bytes(text_of(number))
        if before is not None and keeps_time:
            os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
        self._arrive(new, path)

    def link_in(self, path: Path, number: int) -> None:
        """A hard link into a cache, as uv installs; many environments share the inode."""
        cached = self.folder / "cache" / f"{number}.py"
        if not cached.exists():
            cached.write_bytes(text_of(number))
            os.utime(cached, (LONG_AGO, LONG_AGO))
        new = self.folder / "new"
        os.link(cached, new)
        if path.exists() and os.path.samefile(new, path):
            new.unlink()  # rename would leave both
        else:
            self._arrive(new, path)

    def set_times(self, path: Path, seconds: int) -> None:
        """A clock that was wrong, an archive, `touch`."""
        if path.exists():
            os.utime(path, (seconds, seconds) if seconds else None)

    def delete(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def spoil(self, path: Path, how: str) -> None:
        """What is there instead of a module."""
        if how == "folder":
            self.delete(path)
            self._make_room(path)
            path.mkdir()
        elif how == "dangling link":
            self.delete(path)
            self._make_room(path)
            path.symlink_to("nowhere")
        else:
            self._put(path, BROKEN[how])

    # -- folders -----------------------------------------------------------------------------------

    def in_the_same_moment(self, folder: Path, change: Callable[[], None]) -> None:
        """A change after which the folder has the time it had before."""
        before = folder.stat() if folder.is_dir() else None
        change()
        if before is not None and folder.is_dir():
            os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))

    def upgrade(self, place: str, number: int, *, links: bool) -> None:
        """A package replaced: the old one renamed away, the new one written, the old one removed."""
        package, old = self.places[place] / "box", self.places[place] / "~ox"
        self.delete(old)
        if package.exists():
            package.rename(old)
        for at, source in enumerate(each for each in SOURCES if each.startswith("box/")):
            if (number + at) % 4:  # versions do not have the same modules
                if links:
                    self.link_in(self.places[place] / source, number + at)
                else:
                    self.edit(self.places[place] / source, number + at)
        self.delete(old)

    def commit(self, place: str, branch: str) -> None:
        """Remember the sources as they are."""
        folder = self.places[place]
        self.branches[place, branch] = {
            source: (folder / source).read_bytes() for source in SOURCES if (folder / source).is_file()
        }

    def check_out(self, place: str, branch: str) -> None:
        """What differs is removed and written anew, all with the time of the moment; what is gone is gone."""
        wanted = self.branches.get((place, branch))
        if wanted is None:
            return
        for source in SOURCES:
            path = self.places[place] / source
            if source not in wanted:
                if path.is_file():
                    self.delete(path)
                    if path.parent != self.places[place] and not os.listdir(path.parent):
                        path.parent.rmdir()
            elif not path.is_file() or path.read_bytes() != wanted[source]:
                self.delete(path)
                self._put(path, wanted[source])

    def rename_aside(self, path: Path) -> None:
        """Away, or back again."""
        aside = path.with_name(f"{path.name}-aside")
        if path.exists() and not aside.exists():
            path.rename(aside)
        elif aside.exists():
            self.delete(path)
            aside.rename(path)

    def swap_projects(self) -> None:
        """Two folders on the path change their names."""
        one, two, between = self.folder / "project", self.folder / "second", self.folder / "between"
        if one.exists() and two.exists():
            one.rename(between)
            two.rename(one)
            between.rename(two)

    # -- links and paths ---------------------------------------------------------------------------

    def retarget(self, link: Path, target: str) -> None:
        """A link that leads elsewhere, in one step."""
        new = self.folder / "new-link"
        new.symlink_to(target)
        self._arrive(new, link)

    def write_path_file(self, target: str) -> None:
        """A `.pth` file, as editable installs have it."""
        (self.places["site"] / "extra.pth").write_text(f"{self.folder / target}\n" if target else "")

    def native_in(self, place: str, name: str) -> None:
        new = self.folder / "new"
        shutil.copyfile(self.native, new)
        self._arrive(new, self.places[place] / f"{name}{self.suffix}")

    def native_out(self, place: str, name: str) -> None:
        self.delete(self.places[place] / f"{name}{self.suffix}")

    def forget_bytecode(self) -> None:
        for folder in {path.resolve() for path in self.places.values()}:
            for each in sorted(folder.rglob("__pycache__")):
                shutil.rmtree(each)

    def install_something(self) -> None:
        """An installer was here: every folder of the path has another listing than before."""
        for path in self.places.values():
            marker = path / "something.dist-info"
            if marker.is_dir():
                marker.rmdir()
            elif path.is_dir():
                marker.mkdir()

# SPDX-License-Identifier: Apache-2.0
"""What is installed: `importlib.metadata` says with Velo what it says without, at once after every change."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.running import VELO, Result, Velo
from tests.support.tree import Tree

pytestmark = pytest.mark.usefixtures("can_tell_auditors")

# Asks everything that can be asked, in every way, and prints one line for each answer or error.
PROBE = """
import importlib, os, pickle, re, sys, warnings
warnings.simplefilter("always")
# Sets have an order that can be compared where the seed is fixed.
as_found = sorted if sys.flags.hash_randomization else list
metadata = importlib.import_module(os.environ.get("PROBED", "importlib.metadata"))

def said(question, ask):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            answer = re.sub("0x[0-9a-f]+", "0x", repr(ask()))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
    print(question, answer, [str(each.message) for each in warned])

def shown(point):
    return (*vars(point).items(), str(point.dist._path)) if hasattr(point, "dist") else tuple(point)

def all_of(**params):
    found = metadata.entry_points(**params)
    if isinstance(found, dict):
        return type(found), [(group, list(map(shown, points))) for group, points in dict.items(found)]
    return type(found), [shown(each)[:3] + shown(each)[4:] for each in found]

said("points", all_of)
said("one group", lambda: all_of(group="one"))
said("no group", lambda: all_of(group="nobody"))
said("odd group", lambda: all_of(group=None))
said("one name", lambda: all_of(name="run"))
said("both", lambda: all_of(group="two", name="run"))
said("module", lambda: all_of(group="one", module="pack.part"))
said("again", all_of)
found = list(metadata.distributions())
for dist in found:
    place = str(dist._path)
    said(place, lambda: (type(dist), type(dist._path), vars(dist)))
    for name in ("_normalized_name", "name", "version", "entry_points", "requires", "files"):
        said(f"{place} {name}", lambda: getattr(dist, name))
    said(f"{place} metadata", lambda: (type(dist.metadata), dist.metadata.items(), vars(dist.metadata)))
    said(f"{place} as text", lambda: (str(dist.metadata), dist.metadata.get_payload(), dist.metadata.json))
    said(f"{place} absent", lambda: dist.metadata["Absent"])
    said(f"{place} one's own", lambda: dist.metadata.add_header("X", "y") or (dist.metadata.get("X")))
    said(f"{place} all files", lambda: [
        (each, each.parts, each.dist is dist, each.hash and vars(each.hash), each.size, list(vars(each)))
        for each in dist.files
    ])
    said(f"{place} declared", lambda: metadata._top_level_declared(dist))
    said(f"{place} inferred", lambda: as_found(metadata._top_level_inferred(dist)))
    said(f"{place} texts", lambda: list(map(dist.read_text, ("METADATA", "entry_points.txt", "RECORD"))))
    said(f"{place} located", lambda: (type(dist.locate_file("x")), dist.locate_file("x")))
    said(f"{place} points", lambda: [point.dist is dist for point in dist.entry_points])
names = "demo Demo de.mo old other-pack Other.Pack absent broken two--names".split()
for name in (*names, "", None):
    for ask in ("version", "metadata", "files", "requires", "distribution"):
        said(f"{ask} {name}", lambda: (answer := getattr(metadata, ask)(name)) and type(answer))
    said(f"version {name}", lambda: metadata.version(name))
said("packages", lambda: as_found(metadata.packages_distributions().items()))
paths = [str(entry) for entry in sys.path]
found_in = metadata.distributions
for path in ([], paths[-1:], [*paths, *paths], [paths[-1] + "/"], [""], ["nowhere"], [b"bytes"], [None]):
    said(f"path {path}", lambda: [str(each._path) for each in found_in(path=path)])
    said(f"path {path} name", lambda: [each.version for each in found_in(path=path, name="demo")])
context = metadata.DistributionFinder.Context(name="demo", path=paths)
said("context", lambda: [str(each._path) for each in metadata.Distribution.discover(context=context)])
said("context and more", lambda: list(metadata.Distribution.discover(context=context, name="x")))
said("pickled", lambda: pickle.loads(pickle.dumps(metadata.entry_points)) is metadata.entry_points)
if hasattr(metadata.Distribution, "at"):
    said("at", lambda: [metadata.Distribution.at(str(each._path)).version for each in found])
print(list(vars(metadata)))
print(list(sys.modules))
print([(name, list(vars(each))) for name, each in list(vars(metadata).items()) if isinstance(each, type)])
"""

SEEDED = {"PYTHONHASHSEED": "0"}
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\nSummary: about it\n\nThe long text.\n"
# Hashes, sizes, quotes, what is not there, and other places.
RECORD = (
    "missing/first.py,,\n{0}/METADATA,sha256=abc=,12\n{1}/__init__.py,sha256=,0\n"
    'missing/thing.py,,\n{1}/data/x.txt,md5,\n../../../bin/{1},,\n"{1}/a,""b.py",x=y=z,1_0\n'
    "{1}.py,,\n{1}_gone.py,,\n/etc/passwd,,\n__pycache__/{1}.cpython-312.pyc,,\n{1}//./__init__.py,,\n{0}/RECORD,,\n"
)
POINTS = "[one]\nrun = pack.part:main\nother=pack:other [extra]\n\n# none\n[two]\nrun = pack.part:second\n"


def info(name: str, version: str, points: str | None = POINTS, **more: str | bytes) -> dict[str, str | bytes]:
    """The files of one installed distribution."""
    folder = f"{name}-{version}.dist-info"
    files: dict[str, str | bytes] = {
        f"{folder}/METADATA": METADATA.format(name, version),
        f"{folder}/RECORD": RECORD.format(folder, name),
        f"{name}/__init__.py": "",
        f'{name}/a,"b.py': "",
        f"{name}.py": "",
    }
    if points is not None:
        files[f"{folder}/entry_points.txt"] = points
    return {**files, **{f"{folder}/{each}": content for each, content in more.items()}}


PLAIN = {
    **info("demo", "1.0"),
    **info("other_pack", "2.0", None),
    **info("third", "0.1", "[one]\nthird = third\n", **{"top_level.txt": "third\n_third\n"}),
    **info("two__names", "3", "[console_scripts]\ntwo = two:main\n"),
}


def zipped(files: Mapping[str, str]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


# What else people have lying about in site-packages, each beside the plain ones.
ODD: dict[str, dict[str, str | bytes]] = {
    "nothing else": {},
    "egg-info folder": {
        "old-1.0.egg-info/PKG-INFO": METADATA.format("old", "1.0"),
        "old-1.0.egg-info/entry_points.txt": POINTS,
        "old-1.0.egg-info/SOURCES.txt": "old/__init__.py\n",
        "old-1.0.egg-info/requires.txt": "demo\n[more]\nthird>1\n",
        "old-1.0.egg-info/top_level.txt": "old\n",
    },
    "egg-info file": {"old-1.0-py3.egg-info": METADATA.format("old", "1.0")},
    "egg-link": {"old.egg-link": "/nowhere\n.", "easy-install.pth": "/nowhere\n"},
    "zipped egg": {
        "old.egg": zipped(
            {"EGG-INFO/PKG-INFO": METADATA.format("old", "1.0"), "EGG-INFO/entry_points.txt": POINTS}
        ),
        "old.pth": "old.egg\n",
    },
    "zipped dist-info": {
        "old.zip": zipped({f"old-1.dist-info/{name}": text for name, text in [("METADATA", METADATA)]}),
        "old.pth": "old.zip\n",
    },
    "egg folder": {
        "old-1.0.egg/EGG-INFO/PKG-INFO": METADATA.format("old", "1.0"),
        "old-1.0.egg/EGG-INFO/entry_points.txt": POINTS,
        "old.pth": "old-1.0.egg\n",
    },
    "twice": {**info("demo", "2.0", "[one]\nnewer = demo\n"), **info("Demo", "0.9", None)},
    "another without METADATA": {
        "other_pack-1.0.dist-info/entry_points.txt": POINTS,
        "two__names-1.dist-info/entry_points.txt": POINTS,
        "third-0.dist-info/RECORD": "",
    },
    "legacy names": {**info("Other.Pack", "2.1"), **info("OTHER-pack.more", "2.2")},
    "no METADATA": {"broken-1.0.dist-info/RECORD": "", "broken-1.0.dist-info/entry_points.txt": POINTS},
    "nothing in it": {"broken-1.0.dist-info/x": ""},
    "empty METADATA": {**info("broken", "1.0"), "broken-1.0.dist-info/METADATA": ""},
    "PKG-INFO behind an empty METADATA": {
        "broken-1.0.dist-info/METADATA": "",
        "broken-1.0.dist-info/PKG-INFO": METADATA.format("broken", "9"),
    },
    "no name": {"broken-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nVersion: 1.0\n\ntext"},
    "no version": {"broken-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: broken\n\ntext"},
    "folded fields": {"broken-1.0.dist-info/METADATA": "Name: bro\n ken\nVersion: 1\n\t.0\nVersion: 2\n\n"},
    "undecodable METADATA": {"broken-1.0.dist-info/METADATA": b"Name: broken\nVersion: \xff\n"},
    "undecodable entry points": {
        **info("broken", "1.0"),
        "broken-1.0.dist-info/entry_points.txt": b"[one]\n\xff=a",
    },
    "nonsense in entry points": {
        **info("broken", "1.0", "run = early\n[one]\nno equals sign\n[[x]]\na=b=c\n=\n[]\nq = \0\n")
    },
    "names that are not ASCII": {**info("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "1.0")},
    "upper case": {"BROKEN-1.0.DIST-INFO/METADATA": METADATA.format("broken", "1.0")},
    "no version in the folder's name": {"broken.dist-info/METADATA": METADATA.format("broken", "1.0")},
    "no name in the folder's name": {".dist-info/METADATA": METADATA.format("broken", "1.0")},
    "left by pip": {**info("~emo", "1.0")},
    "top_level.txt": {
        **info("broken", "1.0", **{"top_level.txt": "broken\n_more  third\nbroken\n"}),
        **info("other", "1.0", **{"top_level.txt": " \n"}),
    },
    "no RECORD": {"broken-1.0.dist-info/METADATA": METADATA.format("broken", "1.0")},
    "empty RECORD": {**info("broken", "1.0"), "broken-1.0.dist-info/RECORD": ""},
    "blank line in RECORD": {**info("broken", "1.0"), "broken-1.0.dist-info/RECORD": "a.py,,\n\nb.py,,\n"},
    "too much in RECORD": {**info("broken", "1.0"), "broken-1.0.dist-info/RECORD": "a.py,,,\n"},
    "no number in RECORD": {**info("broken", "1.0"), "broken-1.0.dist-info/RECORD": "broken.py,,many\n"},
    "nothing in RECORD": {**info("broken", "1.0"), "broken-1.0.dist-info/RECORD": ",,\n.,,\nbroken,,\n"},
    "undecodable RECORD": {**info("broken", "1.0"), "broken-1.0.dist-info/RECORD": b"\xff.py,,\n"},
    "NUL in RECORD": {**info("broken", "1.0"), "broken-1.0.dist-info/RECORD": "a\0b.py,,\n"},
    "quotes left open in RECORD": {**info("broken", "1.0"), "broken-1.0.dist-info/RECORD": 'a.py,"x\n,y\n'},
    "message of many parts": {
        "broken-1.0.dist-info/METADATA": "Name: broken\nVersion: 1\nContent-Type: multipart/x; boundary=x\n"
        "\n--x\n\none\n--x--\n"
    },
    "no colon in METADATA": {"broken-1.0.dist-info/METADATA": "Name: broken\nnonsense\nVersion: 1\n\ntext\n"},
    "long licence": {
        "broken-1.0.dist-info/METADATA": "Name: broken\nVersion: 1\nLicense: a\n        b\n          c\n"
        "Description: in the head\n        |more\nname: again\nKeywords: a b\n\nBody \N{SNOWMAN}\r\nend"
    },
    "file in the folder's place": {"broken-1.0.dist-info": "no folder"},
    "folders in the places of more files": {
        "broken-1.0.dist-info/METADATA": METADATA.format("broken", "1.0"),
        "broken-1.0.dist-info/RECORD/x": "",
        "broken-1.0.dist-info/top_level.txt/x": "",
    },
    "folders in the files' places": {
        "broken-1.0.dist-info/METADATA/x": "",
        "broken-1.0.dist-info/entry_points.txt/x": "",
    },
}


# A folder with one of these is read by Python as ever; others on the search path are not.
LEFT_TO_PYTHON = (
    "undecodable entry points",
    "upper case",
    "no name in the folder's name",
    "nonsense in entry points",
)


def prepare(site_packages: Tree, tree: Tree, more: Mapping[str, str | bytes] = {}) -> None:
    site_packages.write({**PLAIN, **more})
    tree.write({"probe.py": PROBE})


def answered(result: Result) -> int:
    return sum(each["metadata"] for each in result.stats)


def everything_odd() -> dict[str, str | bytes]:
    """All that is odd, in one folder, without what keeps Python from reading it."""
    files: dict[str, str | bytes] = {}
    for at, (odd, more) in enumerate(ODD.items()):
        if odd not in LEFT_TO_PYTHON and not odd.endswith("in the files' places"):
            files |= {name.replace("broken", f"broken{at}"): content for name, content in more.items()}
    return files


@pytest.mark.core
def test_all_of_it_at_once(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """A folder full of oddities is answered like any other: each of them as Python reads it."""
    prepare(site_packages, tree, everything_odd())

    assert answered(velo.both("probe.py", env=SEEDED).second) > 20


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD)
def test_same_as_plain_python(site_packages: Tree, tree: Tree, velo: Velo, odd: str) -> None:
    """Whatever lies in site-packages: every answer, warning and error is Python's own, and from the index
    wherever it can be.
    """
    prepare(site_packages, tree, ODD[odd])

    runs = velo.both("probe.py", env=SEEDED)

    assert answered(runs.first) == 0
    assert answered(runs.second) > (4 if odd in LEFT_TO_PYTHON else 20), runs.second.stats


CHANGES: dict[str, Callable[[Tree], object]] = {
    "installed": lambda site: site.write(info("fresh", "1.0")),
    "uninstalled": lambda site: site.write({"demo-1.0.dist-info": None, "demo": None}),
    "upgraded": lambda site: site.write({"demo-1.0.dist-info": None, **info("demo", "1.1")}),
    "version edited": lambda site: site.write(
        {"demo-1.0.dist-info/METADATA": METADATA.format("demo", "1.9")}
    ),
    "version edited unnoticed": lambda site: site.write_unnoticed(
        "demo-1.0.dist-info/METADATA", METADATA.format("demo", "9.9")
    ),
    "entry points edited unnoticed": lambda site: site.write_unnoticed(
        "demo-1.0.dist-info/entry_points.txt", POINTS.replace("run", "nur")
    ),
    "entry points added": lambda site: site.write({"other_pack-2.0.dist-info/entry_points.txt": POINTS}),
    "entry points removed": lambda site: site.write({"demo-1.0.dist-info/entry_points.txt": None}),
    "metadata removed": lambda site: site.write({"demo-1.0.dist-info/METADATA": None}),
    "renamed": lambda site: os.rename(site / "demo-1.0.dist-info", site / "omed-1.0.dist-info"),
    "description edited unnoticed": lambda site: site.write_unnoticed(
        "demo-1.0.dist-info/METADATA", METADATA.format("demo", "1.0").replace("long", "LONG")
    ),
    "rows edited unnoticed": lambda site: site.write_unnoticed(
        "demo-1.0.dist-info/RECORD", RECORD.format("demo-1.0.dist-info", "demo").replace("abc", "cba")
    ),
    "rows removed": lambda site: site.write({"demo-1.0.dist-info/RECORD": None}),
    "listed file removed": lambda site: site.write({"demo/__init__.py": None}),
    "listed module removed": lambda site: site.write({"demo.py": None}),
    "listed folder removed": lambda site: site.write({"demo": None}),
    "listed file appears": lambda site: site.write({"missing/thing.py": ""}),
    "listed module appears": lambda site: site.write({"demo_gone.py": ""}),
    "listed file becomes a broken link": lambda site: (
        (site / "demo.py").unlink(),
        (site / "demo.py").symlink_to("x"),
    ),
    "names added": lambda site: site.write({"demo-1.0.dist-info/top_level.txt": "one two"}),
    "names edited unnoticed": lambda site: site.write_unnoticed(
        "third-0.1.dist-info/top_level.txt", "3hird\n_third\n"
    ),
    "names removed": lambda site: site.write({"third-0.1.dist-info/top_level.txt": None}),
    "something else": lambda site: site.write({"module.py": ""}),
    "in front of it": lambda site: site.write({"../../../../project/demo-7.dist-info/METADATA": METADATA}),
}


IN_THIS_ORDER = (
    "something else",
    "version edited unnoticed",
    "entry points edited unnoticed",
    "rows edited unnoticed",
    "names edited unnoticed",
    "listed module removed",
    "entry points added",
    "installed",
    "in front of it",
    "metadata removed",
    "uninstalled",
)


def test_one_change_after_another(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """Everything that installers and people do, one after the other, is seen by the very next program."""
    prepare(site_packages, tree)
    tree.write(
        {
            "asks.py": """
                import importlib.metadata as metadata
                def version(each):
                    try:
                        return each.version
                    except Exception as error:
                        return str(error)
                def packages():
                    try:
                        return sorted(metadata.packages_distributions().items())
                    except Exception as error:  # 3.15 has none for a distribution without metadata.
                        return type(error), str(error)
                for each in metadata.distributions():
                    print(each._path, version(each), each.entry_points, each.files)
                    print(each.metadata.items() if each.read_text("METADATA") else "")
                print(packages())
                print(metadata.entry_points(), metadata.entry_points(group="one"))
                """
        }
    )
    velo.both("asks.py")

    for change in IN_THIS_ORDER:
        CHANGES[change](site_packages)
        result = velo.learn("asks.py")
        assert result.answer == velo.plain("asks.py").answer, change
        assert result.errors == 0
    assert answered(velo.run("asks.py")) > 5


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen_at_once(site_packages: Tree, tree: Tree, velo: Velo, change: str) -> None:
    """After any change the very next program sees it, and later ones have it from the index again."""
    prepare(site_packages, tree)
    assert answered(velo.both("probe.py").second)

    CHANGES[change](site_packages)

    plain = velo.plain("probe.py")
    changed = velo.run("probe.py", env={"VELO_READONLY": "1"})
    assert changed.answer == plain.answer
    assert changed.errors == 0
    runs = velo.both("probe.py")
    assert answered(runs.second) > 10


@pytest.mark.parametrize("change", CHANGES)
def test_changes_while_the_program_runs(site_packages: Tree, tree: Tree, velo: Velo, change: str) -> None:
    """Caches dropped as the documentation says, a program that runs sees the change as well."""
    prepare(site_packages, tree)
    velo.both("probe.py")
    tree.write(
        {
            "waits.py": """
                import importlib, importlib.metadata as metadata, sys
                def ask():
                    importlib.invalidate_caches()
                    metadata.MetadataPathFinder().invalidate_caches() if sys.version_info < (3, 12) else 0
                    points = [str(each) for each in metadata.entry_points(group="one")]
                    found = [(str(each._path), each.read_text("METADATA") and each.version) for each in
                             metadata.distributions()]
                    said = [(each.files, each.read_text("METADATA") and each.metadata.items()) for each in
                            metadata.distributions()]
                    try:
                        brought = sorted(metadata.packages_distributions().items())
                    except Exception as error:
                        brought = str(error)
                    print(points, found, said, brought, flush=True)
                ask()
                sys.stdin.readline()
                ask()
                """
        }
    )
    answers = []
    keep = site_packages.folder.parent / "kept"
    shutil.copytree(site_packages.folder, keep, symlinks=True)
    for command, environment in (
        ([*VELO, "run", "--", velo.python, "waits.py"], velo.velo_environment(VELO_READONLY="1")),
        ([velo.python, "waits.py"], velo.plain_environment()),
    ):
        with subprocess.Popen(
            [str(each) for each in command],
            cwd=velo.cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stdin and running.stdout
            first = running.stdout.readline()
            CHANGES[change](site_packages)
            rest, _ = running.communicate("\n", timeout=60)
        answers.append((first, rest))
        for path in site_packages.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(keep, site_packages.folder, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(velo.cwd / "demo-7.dist-info", ignore_errors=True)

    # Copies come in another order.
    assert [[sorted(each)] for each in answers[0]] == [[sorted(each)] for each in answers[1]]


PATCHES = [
    "metadata.distributions = lambda **_: []",
    "metadata.Distribution.discover = classmethod(lambda cls, **_: iter(()))",
    "metadata.PathDistribution.read_text = lambda s, name: '[x]\\ny = z' if 'en' in name else 'Version: 5'",
    "metadata.Distribution.entry_points = ()",
    "metadata.PathDistribution.version = 'mine'",
    "metadata.EntryPoint.__init__ = lambda s, name, value, group: vars(s).update(name=1, value=2, group=3)",
    "metadata.FastPath.children = lambda self: []",
    "metadata.FastPath.joinpath = lambda s, child: __import__('pathlib').PurePosixPath('/x', child)",
    "metadata.Prepared.normalize = staticmethod(lambda name: 'all the same')",
    "metadata.MetadataPathFinder._search_paths = classmethod(lambda cls, name, paths: [])",
    "metadata.Lookup = type('Lookup', (), dict(__init__=lambda s, p: None, search=lambda s, n: []))",
    "sys.meta_path.append(type('Finder', (), dict(find_spec=lambda *_: None, find_distributions=lambda *_: ["
    "metadata.PathDistribution(__import__('pathlib').Path('/x/extra-1.dist-info'))]))())",
    "sys.meta_path.append(metadata.MetadataPathFinder())",
    "importlib.reload(metadata)",
    "sys.path.append(sys.path[0])",
    "sys.path.insert(0, b'bytes')",
    "sys.path[:] = []",
    "metadata._unique = lambda found: found",
    "metadata.Distribution.files = metadata.Distribution.metadata = property(lambda self: {'Name': 'mine'})",
    "metadata.PathDistribution.locate_file = lambda self, path: __import__('pathlib').Path('/etc/passwd')",
    "metadata.PackagePath.locate = lambda self: __import__('pathlib').Path('/nowhere')",
    "metadata.FileHash.__init__ = lambda self, spec: setattr(self, 'mode', spec)",
    "metadata.Distribution._read_files_distinfo = lambda self: ['a.py,,', 'b.py,,']",
    "metadata._top_level_declared = lambda dist: ['declared']",
    "metadata._top_level_inferred = lambda dist: ['inferred']",
    "metadata.EntryPoints.select = lambda self, **params: list(params)",
]


def test_patched_by_others(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """Tests and plugins that replace parts of `importlib.metadata` get what they would get without Velo."""
    prepare(site_packages, tree)
    tree.write(
        {
            "patched.py": """
                import importlib, importlib.metadata as metadata, sys
                exec(sys.argv[1])
                def said(ask):
                    try:
                        print(ask())
                    except Exception as error:
                        print(type(error), error)
                said(lambda: metadata.entry_points(group="one"))
                said(lambda: metadata.version("demo"))
                said(lambda: [(str(each._path), each.version, each.entry_points) for each in
                              metadata.distributions()])
                def shown(file):
                    return str(file), vars(file.hash) if file.hash else None, file.size, str(file.locate())
                said(lambda: [(each.metadata["Name"], each.files and list(map(shown, each.files)))
                              for each in metadata.distributions()])
                said(lambda: sorted(metadata.packages_distributions().items()))
                """
        }
    )
    velo.both("probe.py")
    velo.learn("patched.py", "")

    for patch in ["", *PATCHES]:
        result = velo.run("patched.py", patch, env={"VELO_READONLY": "1"})
        assert result.answer == velo.plain("patched.py", patch).answer, patch
        assert result.errors == 0, result.stats
        assert (answered(result) > 0) == (patch in ("", "sys.path.append(sys.path[0])")) or answered(
            result
        ), patch


@pytest.mark.core
@pytest.mark.parametrize(
    "question",
    [
        "m.version('demo')",
        "m.metadata('demo')['Summary']",
        "m.entry_points()",
        "m.files('demo')",
        "m.requires('demo')",
        "m.packages_distributions()",
    ],
)
def test_the_same_modules_are_loaded(site_packages: Tree, tree: Tree, velo: Velo, question: str) -> None:
    """Parsing loads `email.parser`, which programs use from then on; it is there though nothing is parsed."""
    prepare(site_packages, tree, ODD["egg-info folder"])
    velo.both("probe.py")
    program = f"import importlib.metadata as m, sys, email; {question}; print(list(sys.modules), dir(email))"

    known = velo.run("-c", program)

    assert known.stdout == velo.plain("-c", program).stdout
    assert answered(known) > 0


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "another's"])
def test_damaged_contents(site_packages: Tree, tree: Tree, velo: Velo, damage: str) -> None:
    """Where only what the files say is damaged, the rest is answered, all is as ever, and it heals."""
    prepare(site_packages, tree)
    velo.both("probe.py")
    plain = velo.plain("probe.py")
    (table,) = (velo.home / "manifests").rglob("contents.table")
    good = table.read_bytes()
    table.unlink()
    if damage != "gone":
        middle = len(good) // 2
        flipped = good[:middle] + bytes(16) + good[middle + 16 :]
        table.write_bytes({"cut": good[:-8], "flipped": flipped, "another's": good}[damage])
        table.chmod(0o666 if damage == "another's" else 0o600)

    result = velo.run("probe.py", env={"VELO_READONLY": "1"})

    assert result.answer == plain.answer
    assert answered(result) > 10
    reasons = {name for name in result.reasons if name.startswith("metadata: contents: ")}
    assert len(reasons) == (damage != "gone"), result.reasons
    velo.learn("probe.py")
    assert answered(velo.both("probe.py").second) > answered(result)


def test_subclasses_are_asked_themselves(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """A class of somebody's own decides what its metadata is."""
    prepare(site_packages, tree)
    tree.write(
        {
            "own.py": """
                import importlib.metadata as metadata, zipfile, pathlib
                class Own(metadata.PathDistribution):
                    def read_text(self, name):
                        return "Version: 77\\nName: own\\n" if name == "METADATA" else "[g]\\nn = v"
                dist = metadata.distribution("demo")
                own = Own(dist._path)
                class Place(type(pathlib.Path())):
                    pass
                print(own.version, own.name, own.entry_points, dist.version)
                other = metadata.PathDistribution(Place(dist._path))
                print(other.version, type(other._path))
                """
        }
    )

    assert answered(velo.both("own.py").second)


@pytest.mark.core
def test_auditors_see_every_file(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """Who audits sees the same files opened."""
    prepare(site_packages, tree)
    tree.write(
        {
            "audited.py": """
                import importlib.metadata as metadata, sys
                seen = []
                def heard(event, args):
                    if event == "open":
                        seen.append((event, args))
                sys.addaudithook(heard)
                metadata.entry_points(), metadata.version("demo")
                print([each for each in seen if "-info" in str(each)])
                """
        }
    )
    velo.both("probe.py")

    velo.both("audited.py")


@pytest.mark.core
def test_sources_and_errors(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """`inspect` shows Python's own text, and an error of a missing package is traced as without Velo."""
    prepare(site_packages, tree)
    tree.write(
        {
            "shown.py": """
                import importlib.metadata as metadata, inspect
                shown = [metadata.entry_points, metadata.Lookup, metadata.Lookup.__init__]
                shown += [metadata.Distribution, metadata.Distribution.version.fget, metadata._unique.func]
                shown += [metadata.Distribution.files.fget, metadata.Distribution.metadata.fget]
                shown += [metadata._top_level_declared, metadata._top_level_inferred]
                for each in shown:
                    print(inspect.getsourcefile(each), inspect.getsource(each), each.__qualname__)
                    print(each.__module__, inspect.getdoc(each))
                    print(isinstance(each, type) or inspect.signature(each))
                print(inspect.getdoc(metadata.Distribution.version))
                metadata.version("absent")
                """
        }
    )

    assert answered(velo.both("shown.py").second)


def test_switched_off(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """`VELO_REMEMBER` leaves it out, or has nothing else."""
    prepare(site_packages, tree)
    velo.both("probe.py")

    assert answered(velo.run("probe.py", env={"VELO_REMEMBER": "none"})) == 0
    assert answered(velo.run("probe.py", env={"VELO_REMEMBER": "sources"})) == 0
    assert answered(velo.run("probe.py", env={"VELO_REMEMBER": "metadata"})) > 10


@pytest.mark.parametrize("check", ["root", "none"])
def test_weaker_checks(site_packages: Tree, tree: Tree, velo: Velo, check: str) -> None:
    """Asked once per root, an installation is seen and an edit in place is not; asked never, neither is."""
    prepare(site_packages, tree)
    velo.both("probe.py")
    tree.write(
        {
            "ask.py": """
                import importlib.metadata as m
                print(m.version("demo"), m.metadata("demo")["Summary"], m.files("demo"))
                print(sorted(m.packages_distributions()), [each._path.name for each in m.distributions()])
                """
        }
    )
    before = velo.plain("ask.py")

    def run() -> Result:
        return velo.run("ask.py", env={"VELO_CHECK": check, "VELO_READONLY": "1"})

    edited = METADATA.format("demo", "9.9").replace("about it", "edited")
    site_packages.write_unnoticed("demo-1.0.dist-info/METADATA", edited)
    site_packages.write({"demo/__init__.py": None})
    assert run().stdout == before.stdout != velo.plain("ask.py").stdout
    site_packages.write(info("fresh", "1.0"))
    assert run().stdout == (velo.plain("ask.py") if check == "root" else before).stdout


def test_damaged_table(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """Cut short, flipped, another's or writable by all: the program runs as without Velo, and it heals."""
    prepare(site_packages, tree)
    velo.both("probe.py")
    plain = velo.plain("probe.py")
    (table,) = (velo.home / "manifests").rglob("metadata.table")
    good = table.read_bytes()
    for damage in (
        good[:40],
        good[:-8],
        b"",
        good[:200] + b"\x01" + good[201:],
        good[:-60] + b"x" + good[-59:],
    ):
        table.unlink()
        table.write_bytes(damage)
        assert velo.run("probe.py", env={"VELO_READONLY": "1"}).answer == plain.answer
    table.unlink()
    table.write_bytes(good)
    table.chmod(0o666)
    result = velo.run("probe.py", env={"VELO_READONLY": "1"})
    assert result.answer == plain.answer
    assert result.reasons["metadata: owner"] == 1

    velo.both("probe.py")

    assert answered(velo.run("probe.py")) > 10


def test_nothing_is_loaded_in_vain(tree: Tree, velo: Velo, site_packages: Tree) -> None:
    """A program that does not ask what is installed does not load what answers it."""
    prepare(site_packages, tree)
    tree.write({"app.py": "import sys; print('importlib.metadata' in sys.modules)"})
    velo.both("app.py", served=0)

    assert not list((velo.home / "manifests").rglob("metadata.table"))


def test_backport(site_packages: Tree, tree: Tree, velo: Velo) -> None:
    """`importlib_metadata` is answered as well, alone and beside the standard library's."""
    prepare(site_packages, tree)
    packages = Path(pytest.importorskip("importlib_metadata").__file__ or "").parents[1]
    for name in ("importlib_metadata", "zipp", "lazy_importer"):
        if (packages / name).exists():
            shutil.copytree(packages / name, site_packages.folder / name)
    failed = velo.plain("-c", "import importlib_metadata").code
    if failed:
        pytest.skip("it needs more than is installed here")
    runs = velo.both("probe.py", env={"PROBED": "importlib_metadata"})
    assert answered(runs.second) > 10
    site_packages.write(everything_odd())
    velo.learn("probe.py", env={"PROBED": "importlib_metadata", **SEEDED})
    runs = velo.both("probe.py", env={"PROBED": "importlib_metadata", **SEEDED})
    assert answered(runs.second) > 100

    tree.write({"two.py": "import importlib_metadata, importlib.metadata as stock\n" + PROBE})
    velo.both("two.py")

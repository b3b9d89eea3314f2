# SPDX-License-Identifier: Apache-2.0
"""Which part of a tree is taken: secrets stay out and are named; patterns take in and leave out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.tree import Tree
from velo_import.errors import UsageFault
from velo_import.format.manifest import DEFER, STDLIB, TREE, Manifest, decode
from velo_import.ingest import apply, ingest
from velo_import.ingest.apply import IngestSummary
from velo_import.ingest.scan import Area, scan
from velo_import.ingest.secrets import is_key, is_secret
from velo_import.ingest.selection import Selection
from velo_import.store.catalog import Catalog
from velo_import.store.layout import Store

PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n"

Ingest = Callable[..., IngestSummary]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def project(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "project").write({"app.py": "import os\n"})


@pytest.fixture
def take(
    project: Tree, store: Store, python: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., IngestSummary]]:
    """Ingest the project; the standard library is left out, because compiling it would take seconds."""
    real = apply.areas_of
    monkeypatch.setattr(
        apply, "areas_of", lambda *given: tuple(area for area in real(*given) if area.kind != STDLIB)
    )
    yield lambda **options: ingest(project.folder, store=store, python=str(python), **options)


def published(summary: IngestSummary) -> Manifest:
    return decode(Path(summary.manifest).read_bytes())


def kept(summary: IngestSummary, project: Tree) -> set[str]:
    """The project's files that the manifest knows."""
    return {
        os.path.relpath(record.path, project.folder)
        for record in published(summary).files
        if record.path.startswith(f"{project.folder}/") and not record.flags & 1
    }


def is_in(store: Store, text: str) -> bool:
    """Whether any file of the store holds these bytes."""
    return any(text.encode() in path.read_bytes() for path in store.home.rglob("*") if path.is_file())


def secret_names(summary: IngestSummary, project: Tree) -> list[str]:
    return [os.path.relpath(path, project.folder) for path in summary.secrets]


SECRETS = """.env .env.production deploy/.env.local .ENV id_ed25519 keys/server.key cert.PEM .netrc .npmrc
    .ssh/config .gnupg/trustdb .aws/credentials deploy/credentials config/.docker/config.json prod.tfstate
    a/.secrets/b/c"""
NO_SECRETS = """app.py .env.example .env.sample env environment.py key.py secrets.py credentials.py
    keys/readme.md .envoy .aws/task-definition.json .docker/Dockerfile .github/workflows/ci.yml monkey
    pem.txt ssh/x"""


@pytest.mark.parametrize("path", SECRETS.split())
def test_names_that_credentials_have(path):
    assert is_secret(path)


@pytest.mark.parametrize("path", NO_SECRETS.split())
def test_names_that_credentials_do_not_have(path):
    assert not is_secret(path)


@pytest.mark.parametrize(
    "content",
    [
        PRIVATE_KEY.encode(),
        b"-----BEGIN PRIVATE KEY-----\nMIIE",
        b"\n\n-----BEGIN RSA PRIVATE KEY-----\r\nMIIE",
        b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
        b"PuTTY-User-Key-File-3: ssh-ed25519\n",
        b"# created: 2026-01-01\n# public key: age1\nAGE-SECRET-KEY-1QQ\n",
        b'{\n  "type": "service_account",\n  "private_key": "-----BEGIN PRIVATE KEY-----\\n"}',
    ],
)
def test_beginnings_that_keys_have(content):
    assert is_key(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\nMIID",
        b"-----BEGIN PUBLIC KEY-----\nMIID",
        b'KEY = """-----BEGIN PRIVATE KEY-----"""',
        b'{"name": "private_key"}',
        b"{" * 100_000,
        b"#\n" * 100_000,
        b" " * 100_000,
    ],
)
def test_beginnings_that_keys_do_not_have(content):
    assert not is_key(content)


def test_secrets_stay_out_of_the_store_and_are_named(project, store, take):
    project.write({".env": "TOKEN=hunter2\n", "deploy": PRIVATE_KEY, "certs/tls.key": "tls", "data.txt": "x"})

    summary = take()

    assert secret_names(summary, project) == [".env", "certs/tls.key", "deploy"]
    assert summary.excluded == 3
    assert kept(summary, project) == {"app.py", "data.txt"}
    assert not is_in(store, "hunter2") and not is_in(store, "b3BlbnNzaC1rZXkt")


def test_a_link_does_not_bring_a_secret_in(project, store, take, tmp_path):
    (tmp_path / ".env").write_text("TOKEN=hunter2\n")
    (project / "settings").symlink_to(tmp_path / ".env")

    summary = take()

    assert secret_names(summary, project) == ["settings"]
    assert not is_in(store, "hunter2")


def test_an_unchanged_tree_still_says_what_was_left_out(project, take):
    project.write({".env": "TOKEN=hunter2\n"})
    take()

    again = take()

    assert again.unchanged and secret_names(again, project) == [".env"] and again.excluded == 1


def test_what_is_asked_for_is_taken_in_until_it_is_not_asked_for_any_more(project, store, take):
    """Every ingest sees the same files ; only what the user wants is different."""
    project.write({".env": "TOKEN=hunter2\n", "deploy": PRIVATE_KEY})

    asked = take(include=[".env", "deploy"])
    assert kept(asked, project) == {"app.py", ".env", "deploy"} and asked.secrets == []
    assert is_in(store, "hunter2")

    assert kept(take(), project) == {"app.py"}


def test_what_was_asked_for_once_is_not_taken_in_because_the_catalogue_forgot(project, store, take):
    """What was asked for is in the catalogue alone; one that was made again knows nothing of it."""
    project.write({"deploy": PRIVATE_KEY})
    assert "deploy" in kept(take(include=["deploy"]), project)
    Catalog.rebuild(store).close()

    summary = take()
    assert summary.secrets == [str(project.folder / "deploy")]
    assert "deploy" not in kept(summary, project)


def test_what_packages_bring_is_no_secret(take, project, site_packages, store, python):
    """certifi's certificates are called cacert.pem, and tornado's tests have a key."""
    site_packages.write({"certifi/cacert.pem": "certificates", "tornado/test/test.key": PRIVATE_KEY})

    summary = ingest(python.parents[1], store=store, python=str(python))

    assert summary.secrets == [] and is_in(store, "b3BlbnNzaC1rZXkt")


def test_what_is_excluded_is_neither_stored_nor_compiled(project, store, take):
    project.write({"data/big.bin": "bulky", "pkg/__init__.py": "", "pkg/gen.py": "x = 'generated'\n"})

    summary = take(exclude=["data/", "/pkg/gen.py"])

    assert kept(summary, project) == {"app.py", "pkg/__init__.py"}
    assert not is_in(store, "bulky") and not is_in(store, "generated")
    folder = next(each for each in published(summary).folders if each.path == str(project / "pkg"))
    (record,) = (module for module in folder.modules if module.tail == "gen")
    assert record.flags & DEFER and record.pack == -1
    assert summary.excluded == 1
    assert take(exclude=["data/", "/pkg/gen.py"]).unchanged
    assert "data/big.bin" in kept(take(), project)


def test_a_later_pattern_takes_back_an_earlier_one(project, take):
    project.write({"a.log": "a", "keep.log": "b"})

    assert kept(take(exclude=["*.log", "!keep.log"]), project) == {"app.py", "keep.log"}


def test_exclusion_wins_over_inclusion(project, take):
    project.write({".env": "TOKEN=1\n"})

    summary = take(include=[".env"], exclude=[".env"])

    assert kept(summary, project) == {"app.py"} and summary.excluded == 1


def test_packages_in_a_folder_that_is_excluded_are_left_out(store, site_packages, python, take):
    environment = python.parents[1]
    site_packages.write({"a.py": "x = 1\n"})
    inside = os.path.relpath(site_packages.folder, environment)

    summary = ingest(environment, store=store, python=str(python), exclude=[f"./{inside}"])

    assert not [record for record in published(summary).files if record.path.endswith("a.py")]


def test_a_folder_that_is_left_out_by_default_can_be_asked_for(tmp_path):
    tree = Tree(tmp_path).write({"a.py": "", ".git/config": "", "node_modules/x/y.js": ""})
    tree.write({"one/pyvenv.cfg": "", "two/pyvenv.cfg": ""})
    areas = [Area(str(tmp_path), TREE)]

    found = scan(areas, selection=Selection(str(tmp_path), ["node_modules/", "/two/"], []))

    assert {os.path.relpath(folder.path, tree.folder) for folder in found.folders} == {
        ".",
        "node_modules",
        "node_modules/x",
        "two",
    }
    assert found.skipped == 2


def test_patterns_say_nothing_about_files_elsewhere():
    selection = Selection("/project", ["*.key"], ["tests/", "*.log"])

    assert selection.verdict("/project/a.key") is True
    assert selection.verdict("/project/deep/tests/") is False
    assert selection.verdict("/project/tests/a.key") is False
    assert selection.verdict("/project/a.py") is None
    assert selection.verdict("/projector/a.log") is None
    assert selection.verdict("/usr/lib/tests/") is None


@pytest.mark.parametrize("pattern", ["", " ", "!", "/", "#note"])
def test_a_pattern_that_can_match_nothing_is_refused(pattern):
    with pytest.raises(UsageFault, match="can match nothing") as caught:
        Selection("/project", [], [pattern])
    assert ".gitignore" in caught.value.hint


def test_the_command_names_what_it_left_out(tree, velo):
    tree.write({"app.py": "import pkg.gen", "pkg/gen.py": "print('generated')", ".env": "TOKEN=1"})

    result = velo.ingest(tree.folder, "--exclude", "gen.py")

    assert "left out, looks like a secret: .env" in result.stderr and "--include" in result.stderr
    assert "2 left out" in result.stdout
    assert velo.run("app.py").stdout == "generated\n"

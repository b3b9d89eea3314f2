# SPDX-License-Identifier: Apache-2.0
"""Where `require` leads: an answer that is kept is Node's, and while its facts hold it stays Node's."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import nodes
from tests.support.running import clean_environment
from tests.support.tree import Tree
from velo_import.format.node import Fact
from velo_import.ingest.node.facts import holds
from velo_import.ingest.node.resolve import Questions, Resolver, Unclear

EXTENSIONS = (".js", ".json", ".node")
# Asks afresh each time: Node remembers what it has seen.
QUESTION = """
const { createRequire } = require('module');
const answers = JSON.parse(require('fs').readFileSync(0, 'utf8')).map(([folder, request]) => {
  try {
    return createRequire(folder + '/-.js').resolve(request);
  } catch (error) {
    return '';
  }
});
process.stdout.write(JSON.stringify(answers));
"""
Asked = list[tuple[str, str]]
Ask = Callable[[Asked], list[str]]


@pytest.fixture(scope="module", params=nodes.versions())
def node(request: pytest.FixtureRequest) -> Path:
    try:
        return nodes.node(request.param)
    except nodes.Unavailable as reason:
        pytest.skip(f"no Node {request.param}: {reason}")


@pytest.fixture
def ask(node: Path, tmp_path: Path) -> Ask:
    """Node's own answers."""

    def answers(asked: Asked) -> list[str]:
        # No pipe: Node 18 that has read one takes every link for the end of a path.
        with tempfile.TemporaryFile() as question:
            question.write(json.dumps(asked).encode())
            question.seek(0)
            done = subprocess.run(
                [node, "-e", QUESTION],
                stdin=question,
                capture_output=True,
                env=clean_environment(tmp_path),
                cwd="/",
                check=True,
            )
        found: list[str] = json.loads(done.stdout)
        return found

    return answers


def kept(asked: Asked, answers: list[str]) -> tuple[dict[tuple[str, str], tuple[int, ...]], tuple[Fact, ...]]:
    """The facts by which each answer holds, for those that are kept."""
    questions = Questions()
    resolver = Resolver(questions, EXTENSIONS)
    found = {}
    for (folder, request), answer in zip(asked, answers, strict=True):
        try:
            if answer:
                found[folder, request] = resolver.resolve(folder, request, answer)
        except Unclear:
            pass
    return found, tuple(questions.facts)


PACKAGES = {
    "app.js": "",
    "lib/index.js": "",
    "lib/util.js": "",
    "lib/util/index.json": "{}",
    "data.json": "{}",
    "folder.js/inside.js": "",
    "folder.js.js": "",
    "package.json": '{"name": "project", "exports": {".": "./app.js", "./lib/*": "./lib/*.js"}, '
    '"imports": {"#util": "./lib/util.js", "#dep": "plain"}}',
    "node_modules/plain/index.js": "",
    "node_modules/main/package.json": '{"main": "./src/start"}',
    "node_modules/main/src/start.js": "",
    "node_modules/main/src/node_modules/plain/index.js": "",
    "node_modules/folder-main/package.json": '{"main": "lib"}',
    "node_modules/folder-main/lib/index.js": "",
    "node_modules/no-main/package.json": '{"main": "gone.js"}',
    "node_modules/no-main/index.js": "",
    "node_modules/file.js": "",
    "node_modules/@scope/one/package.json": '{"main": ""}',
    "node_modules/@scope/one/index.js": "",
    "node_modules/exporting/package.json": '{"exports": {".": {"import": "./m.mjs", "require": "./c.cjs"}, '
    '"./deep/*": "./src/*/index.js", "./null": null, "./list": ["./a.js", "./b.js"]}}',
    "node_modules/exporting/c.cjs": "",
    "node_modules/exporting/m.mjs": "",
    "node_modules/exporting/a.js": "",
    "node_modules/exporting/src/x/y/index.js": "",
    "node_modules/broken/package.json": "{",
    "node_modules/broken/index.js": "",
    "node_modules/null-exports/package.json": '{"exports": null, "main": "a"}',
    "node_modules/null-exports/a.js": "",
    "node_modules/.pnpm/real@1/node_modules/real/index.js": "",
    "node_modules/.pnpm/real@1/node_modules/plain/index.js": "",
}
REQUESTS = (
    *("./app", "./app.js", "./lib", "./lib/", "./lib/index", "./lib/util", "./lib/util/", "./data", "./gone"),
    *(".", "..", "./", "../project", "./folder.js", "./folder.js/inside", "./lib/../app", "project"),
    *(
        "project/lib/util",
        "project/gone",
        "#util",
        "#dep",
        "#gone",
        "plain",
        "main",
        "main/src/start",
        "main/",
    ),
    *("folder-main", "no-main", "file", "file.js", "@scope/one", "@scope", "exporting", "exporting/deep/x/y"),
    *("exporting/null", "exporting/list", "exporting/a.js", "broken", "null-exports", "linked", "gone", "fs"),
    *(
        "linked/index.js",
        "main/package.json",
        "./linked-file",
        "plain/../main",
        ".hidden",
        "./.hidden",
        "a\\b",
    ),
)


@pytest.fixture
def project(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path.resolve() / "work" / "project").write(PACKAGES)
    (tree / "node_modules/linked").symlink_to(".pnpm/real@1/node_modules/real")
    (tree / "linked-file.js").symlink_to("lib/util.js")
    return tree


def folders_of(project: Tree) -> list[str]:
    places = ("", "lib", "node_modules/main", "node_modules/main/src", "node_modules/exporting")
    pnpm = "node_modules/.pnpm/real@1/node_modules/real"
    return [str(project / place).rstrip("/") for place in (*places, pnpm)]


def test_answers_are_nodes(project: Tree, ask: Ask) -> None:
    """Every kind of request, from every kind of folder: kept as Node has it, or left to Node."""
    asked = [(folder, request) for folder in folders_of(project) for request in REQUESTS]
    answers = ask(asked)
    found, facts = kept(asked, answers)

    assert all(holds(facts, number) for using in found.values() for number in using)
    resolved = {question for question, answer in zip(asked, answers, strict=True) if answer.startswith("/")}
    assert found.keys() <= resolved
    # What is left: a `main` that warns, packages that cannot be read, and imports of other packages.
    left = {request for _, request in resolved - found.keys()}
    assert left <= {"no-main", "#dep", "plain/../main"}, left


MUTATIONS = (
    "create",
    "delete",
    "replace by a folder",
    "replace by a link",
    "edit a package",
    "move a folder",
    "recreate a folder",
)


def mutate(tree: Tree, dice: random.Random) -> str:
    """Change one thing anywhere in the tree; what it was."""
    paths = [path for path in sorted(tree.folder.rglob("*")) if path.is_symlink() or path.exists()]
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    folders = [path for path in paths if path.is_dir() and not path.is_symlink()]
    kind = dice.choice(MUTATIONS)
    if kind == "create":
        folder = dice.choice([tree.folder.parent, tree.folder, *folders])
        names = ("plain", "main", "plain.js", "index.js", "util.js", "lib.js", "app", "gone.js", "start")
        path = folder / dice.choice((*names, "package.json", "node_modules", "exporting.json", "real.js"))
        if path.exists() or path.is_symlink():
            return "nothing"
        if path.suffix or dice.random() < 0.5:
            path.write_text('{"type": "commonjs"}' if path.name == "package.json" else "")
        else:
            (path / "plain").mkdir(parents=True)
            (path / "index.js").write_text("")
            (path / "plain" / "index.js").write_text("")
    elif kind == "delete":
        path = dice.choice(paths)
        shutil.rmtree(path) if path in folders else path.unlink()
    elif kind == "replace by a folder":
        path = dice.choice(files)
        path.unlink()
        path.mkdir()
        (path / "index.js").write_text("")
    elif kind == "replace by a link":
        path = dice.choice(paths)
        moved = path.with_name(f"moved-{path.name}")
        path.rename(moved)
        path.symlink_to(moved.name)
    elif kind == "edit a package":
        path = dice.choice([path for path in files if path.name == "package.json"])
        path.write_text(
            dice.choice(('{"main": "a"}', '{"exports": "./index.js"}', "{}", '{"name": "plain"}'))
        )
    elif kind == "move a folder":
        path = dice.choice(folders)
        path.rename(path.with_name(f"{path.name}-2"))
    else:
        path = dice.choice(folders)
        copy = path.with_name("copy")
        shutil.copytree(path, copy, symlinks=True)
        shutil.rmtree(path)
        copy.rename(path)
    return f"{kind} {path}"


@pytest.mark.parametrize("seed", range(6))
def test_while_facts_hold_the_answer_stands(project: Tree, ask: Ask, seed: int) -> None:
    """Whatever is created, deleted, moved or linked: an answer whose facts hold is the one Node gives now."""
    dice = random.Random(seed)
    asked = [(folder, request) for folder in folders_of(project) for request in REQUESTS]
    held = 0
    for _ in range(8):
        answers = ask(asked)
        found, facts = kept(asked, answers)
        before = dict(zip(asked, answers, strict=True))
        done = mutate(project, dice)
        after = dict(zip(asked, ask(asked), strict=True))
        for question, using in found.items():
            if all(holds(facts, number) for number in using):
                held += 1
                assert before[question] == after[question], f"{question} after: {done}"
    assert held > 100  # and not because nothing ever holds


def test_a_project_folder_that_programs_write_to_forgets_nothing(project: Tree, ask: Ask) -> None:
    """A cache file beside the program does not cost it its answers; one in a package's folder does."""
    asked = [(str(project.folder), request) for request in ("./app", "./lib", "main", "plain")]
    answers = ask(asked)
    found, facts = kept(asked, answers)
    assert len(found) == 4

    project.write({".eslintcache": "{}", "lib/.cache": ""})
    assert all(holds(facts, number) for using in found.values() for number in using)

    project.write({"node_modules/main/src/new.js": ""})
    assert not all(holds(facts, number) for number in found[str(project.folder), "main"])
    assert all(holds(facts, number) for number in found[str(project.folder), "./app"])


def test_nothing_outside_the_tree_is_asked_twice(project: Tree) -> None:
    """A question costs one look, however many answers rely on it."""
    questions = Questions()
    resolver = Resolver(questions, EXTENSIONS)
    folder = str(project.folder)
    for _ in range(2):
        resolver.resolve(folder, "main", str(project / "node_modules/main/src/start.js"))
    paths = [(fact.path, fact.kind) for fact in questions.facts]

    assert len(paths) == len(set(paths))
    assert all(fact.above < number for number, fact in enumerate(questions.facts))
    assert os.path.dirname(questions.facts[0].path) == "/"

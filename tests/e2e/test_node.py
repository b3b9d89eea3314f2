# SPDX-License-Identifier: Apache-2.0
"""Node programs are the same programs: every run is compared, byte by byte, with Node without Velo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from zlib import crc32

import pytest

from tests.support import nodes
from tests.support.nodeprograms import NodeVelo
from tests.support.tree import Tree

INSTALLED = "installed"  # The one on PATH.
OTHERS = [version for version in nodes.VERSIONS if not version.startswith("20.")]
CORE = pytest.mark.parametrize("version", (INSTALLED, *OTHERS), indirect=True)
EVERYWHERE = pytest.mark.parametrize(
    "version", (INSTALLED, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)), indirect=True
)
WITH_HOOKS = pytest.mark.parametrize(
    "version", (pytest.param("22.23.3", marks=pytest.mark.slow), "26.10.0"), indirect=True
)

OLD = pytest.mark.parametrize(
    "version", [pytest.param(each, marks=pytest.mark.slow) for each in nodes.OLD_VERSIONS], indirect=True
)

PACKAGES = {
    "node_modules/dep/package.json": """
        {"name": "dep", "exports": {".": "./lib/index.js", "./package.json": "./package.json"}}
        """,
    "node_modules/dep/lib/index.js": """
        exports.name = require("../package.json").name; exports.own = () => require("dep") === exports;
        """,
    "node_modules/@scope/part/package.json": '{"name": "@scope/part", "main": "x", "type": "commonjs"}',
    "node_modules/@scope/part/x.js": "module.exports = 'scoped'; console.log(module)\n",
    "node_modules/inner/package.json": """
        {"name": "inner", "imports": {"#a": "./a.js"}, "exports": {"./y": "./y.js"}}
        """,
    "node_modules/inner/y.js": "module.exports = [require('#a'), require('inner/y') === module.exports]\n",
    "node_modules/inner/a.js": "module.exports = 'a'\n",
}
STORY = PACKAGES | {
    "main.js": """\
        #!/usr/bin/env node
        'use strict';
        console.log(require('dep').name, require('dep').own(), require('@scope/part'), require('inner/y'));
        console.log(require('./sub/a').where(), require.resolve('dep'));
        console.log(require.resolve.paths('x').slice(0, 2));
        console.log(require, module, Object.keys(require.cache), require.main === module, module.parent);
        console.log(require('./sub/data.json'), require('./sub/data').a, require('./sub/a').stack());
        for (const bad of ['nope', './nope', 'dep/hidden', '', 'inner/x', 'node:nope', './sub/bad.json',
          './sub/syntax.js', './sub/throws', './sub/dir', './sub/bom', './sub/latin', '#a']) {
          try { console.log(require(bad)); } catch (e) { console.log(e.code, e.requireStack, e.stack); }
        }
        for (const bad of ['nope', './nope', 'dep/hidden']) {
          try { require.resolve(bad); } catch (e) { console.log(e.stack); }
        }
        console.log(require('./sub/cycle1'), require('./sub/a').f.toString());
        const Module = module.constructor;
        console.log(Object.getOwnPropertyDescriptors(Module._extensions));
        console.log(Module._resolveFilename, Module.wrapper);
        console.log(Module._resolveFilename.toString().length, require.extensions['.js'].toString().length);
        console.log(Object.keys(Module._pathCache).filter((key) => key.includes('node_accel')), process.argv);
        import('dep').then((m) => console.log(m.default.name)).then(() => import('./sub/m.mjs')).then((m) => {
          console.log(m.default);
          return require('./sub/imports')();
        }).then((all) => { console.log(all); late(); });
        function late() { require('./sub/late'); }
        """,
    "sub/a.js": """\
        exports.where = () => [__filename, module.id, module.parent.id, module.loaded];
        exports.top = new Error('top').stack;
        exports.stack = () => new Error('here').stack;
        exports.f = function f ( a,b ) { /* kept */ return a };
        console.log(exports.top, this === exports, arguments.length, module.isPreloading);
        console.log(module.paths.length, __dirname);
        """,
    "sub/data.json": '{"a": 1}',
    "sub/bad.json": '{"a":',
    "sub/syntax.js": "const a = ;\n",
    "sub/throws.js": 'throw new Error("on line 1")',
    "sub/dir/index.js": "module.exports = 'index'\n",
    "sub/bom.js": "\ufeffmodule.exports = 'bom'\n",
    "sub/latin.js": "module.exports = 'é → " + '" + "🙂' + "'\n",
    "sub/cycle1.js": "exports.a = 1; exports.b = require('./cycle2').a;\n",
    "sub/cycle2.js": "exports.a = require('./cycle1').a;\n",
    "sub/m.mjs": "export default 'esm'\n",
    "sub/imports.js": """
        module.exports = async () => [
          (await import("./m.mjs")).default,
          await eval("import('dep')").then((m) => m.default.name),
          await new Function("name", "return import(name)")("dep").then((m) => m.default.name),
        ];
        """,
    "sub/late.js": "\n  throw new TypeError('late');\n",
}


@pytest.fixture
def node(version: str) -> Path:
    """A Node that Velo serves; the installed one where a story says nothing else."""
    if version == INSTALLED:
        found = shutil.which("node")
        if found and int(said_version(found).partition(".")[0]) >= 18:
            return Path(found).resolve()
        version = "20.20.2"
    try:
        return nodes.node(version)
    except nodes.Unavailable as reason:
        pytest.skip(f"no Node {version}: {reason}")


@pytest.fixture
def version(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", INSTALLED))


def said_version(node: str | Path) -> str:
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    return said.strip().removeprefix("v")


@pytest.fixture
def project(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "project")


@pytest.fixture
def velo(tmp_path: Path, node: Path, project: Tree) -> NodeVelo:
    return NodeVelo(tmp_path / "store", node, project.folder)


@CORE
def test_a_program_that_prints_everything(velo: NodeVelo, project: Tree, node: Path) -> None:
    """Stacks, modules, caches, errors, cycles, packages, `import()`: nothing tells that Velo is there."""
    project.write(STORY)

    runs = velo.same("main.js", served=0 if said_version(node).startswith("18.") else 9)

    assert "late" in runs[0].stderr and runs[0].code == 1


@EVERYWHERE
def test_errors_of_programs(velo: NodeVelo, project: Tree) -> None:
    """What Node prints of an uncaught error, down to the caret, and its exit code."""
    project.write({
        "line1.js": "require('./ok'); throw new Error('first line')",
        "missing.js": "require('./ok');\n  require('not-there')\n",
        "syntax.js": "require('./ok'); require('./broken')\n",
        "rejected.js": "require('./ok'); Promise.reject(new Error('later'))\n",
        "code.js": "require('./ok'); process.exitCode = 7\n",
        "exit.js": "process.on('exit', (code) => console.log(code)); require('./ok'); process.exit(3)\n",
        "ok.js": "exports.ok = true\n",
        "broken.js": "let a = 1;\nlet a = 2;\n",
    })  # fmt: skip

    for name in ("line1.js", "missing.js", "syntax.js", "rejected.js", "code.js", "exit.js"):
        velo.same(name, served=2)


@EVERYWHERE
def test_what_programs_do_to_the_loader(velo: NodeVelo, project: Tree) -> None:
    """Hooks of transpilers, tracers and mocks see every module, as without Velo."""
    uses = "console.log(require('./lib'), require('dep').name, require('./data'), module.children.length)\n"
    hooks = {
        "pirates": """
            const Module = require('module');
            const old = Module._extensions['.js'];
            Module._extensions['.js'] = function (mod, filename) {
              const compile = mod._compile;
              mod._compile = function (code, name) {
                mod._compile = compile; mod._compile(code.replace('lib', 'LIB'), name);
              };
              old(mod, filename);
            };
            """,
        "extension": "require.extensions['.foo'] = require.extensions['.js'];\n",
        "compile": """
            const Module = require('module');
            const old = Module.prototype._compile;
            Module.prototype._compile = function (code, name) {
              console.log('compiles', name); return old.call(this, code, name);
            };
            """,
        "resolve": """
            const Module = require('module');
            const old = Module._resolveFilename;
            Module._resolveFilename = function (request, ...rest) {
              console.log('resolves', request);
              return old.call(this, request === './lib' ? './other' : request, ...rest);
            };
            """,
        "require": """
            const Module = require('module');
            const old = Module.prototype.require;
            Module.prototype.require = function (id) {
              console.log('requires', id, Module._resolveFilename(id, this));
              return old.apply(this, arguments);
            };
            """,
        "load": """
            const Module = require('module');
            const old = Module._load;
            Module._load = function (id) { return id === './lib' ? 'mocked' : old.apply(this, arguments); };
            """,
        "wrapper": """
            const Module = require('module');
            Module.wrapper[0] += 'console.log("wrapped", __filename);';
            """,
        "paths": "module.paths.unshift(__dirname + '/more');\n",
        "cache": """
            require('./lib'); delete require.cache[require.resolve('./lib')];
            require.cache[require.resolve('./data')] = { exports: 'planted', loaded: true };
            """,
    }
    project.write(
        PACKAGES
        | {
            "lib.js": "module.exports = 'lib'; console.log('lib runs')\n",
            "other.js": "module.exports = 'other'\n",
        }
    )
    project.write(
        {"data.json": '"data"', "more/dep.js": "exports.name = 'more'\n", "uses.js": uses, "plain.js": uses}
    )
    velo.same("plain.js", served=4)
    for name, hook in hooks.items():
        project.write(
            {
                f"{name}.js": f"{hook.strip()}\n{uses}",
                f"{name}-below.js": f"{hook.strip()}\nrequire('./uses');\n",
            }
        )

    for name in hooks:
        velo.same(f"{name}.js")
        velo.same(f"{name}-below.js")


@EVERYWHERE
def test_traps_on_prototypes(velo: NodeVelo, project: Tree) -> None:
    """A program that sets traps on Object.prototype catches nobody whom it would not catch without Velo."""
    project.write({
        "main.js": """
            const names = ['main', 'name', 'type', 'exports', 'imports'];
            for (const name of names) {
              const trap = () => { throw new Error(`trapped: ${name}`); };
              const traps = { __proto__: null, get: trap, set: trap, configurable: true };
              Object.defineProperty(Object.prototype, name, traps);
            }
            const said = [require('./lib').where(), require('plain')];
            for (const name of names) delete Object.prototype[name];
            console.log(said);
            """,
        "lib.js": "exports.where = () => [require.main === module.parent, Object.keys(require)]\n",
        "node_modules/plain/package.json": "{}",
        "node_modules/plain/index.js": "module.exports = 'plain'\n",
    })  # fmt: skip

    velo.same("main.js", served=3)


@OLD
def test_nodes_that_are_too_old(velo: NodeVelo, project: Tree) -> None:
    """They meet the preload all the same, as children of others, and say nothing of it."""
    project.write(
        {
            "main.js": """
                console.log(process.version, require('./lib'), Object.keys(require.cache), module);
                console.log(process.listenerCount('exit'), new Error('where').stack);
                new (require('worker_threads').Worker)(__dirname + '/worker.js');
                """,
            "lib.js": "module.exports = 'lib'\n",
            "worker.js": "console.log(require('./lib'), Object.keys(require.cache))\n",
            "module.mjs": "import lib from './lib.js'; console.log(lib)\n",
        }
    )

    velo.same("main.js", served=0)
    velo.same("module.mjs", served=0)
    velo.same("-p", "require('./lib')", served=0)
    velo.same("missing.js", served=0)


@WITH_HOOKS
def test_registered_hooks(velo: NodeVelo, project: Tree) -> None:
    """`module.registerHooks`: who registers any is left alone from then on."""
    project.write({
        "main.js": """
            console.log(require('./a'));
            require('module').registerHooks({
              load(url, context, next) {
                const out = next(url, context);
                console.log('loads', url.split('/').pop(), typeof out.source);
                return out;
              },
            });
            console.log(require('./b'));
            require('module').registerHooks({
              resolve(name, context, next) {
                console.log('resolves', name); return next(name === './c' ? './a' : name, context);
              },
            });
            console.log(require('./c'), require.resolve('./c'));
            """,
        "a.js": "module.exports = 'a'\n",
        "b.js": "module.exports = 'b' + require('./a') + require('./d')\n",
        "c.js": "module.exports = 'c'\n",
        "d.js": "module.exports = 'd'\n",
    })  # fmt: skip

    velo.same("main.js", served=2)


@EVERYWHERE
def test_edits_win(velo: NodeVelo, project: Tree) -> None:
    """Whatever changes between two runs, the next one does what plain Node does."""
    project.write(PACKAGES | {
        "main.js": """
            console.log(require('./lib'), require('dep').name, require('./folder'), require('./sub/user'));
            console.log(require('linked'));
            """,
        "lib.js": "module.exports = 'lib old'\n",
        "folder/index.js": "module.exports = 'folder'\n",
        "sub/user.js": "module.exports = require('dep').name\n",
        "packages/linked/package.json": '{"name": "linked"}',
        "packages/linked/index.js": "module.exports = [__filename, require('./part')]\n",
        "packages/linked/part.js": "module.exports = 'part'\n",
        "packages/second/index.js": "module.exports = 'second'\n",
        "node_modules/dep/lib/other.js": "exports.name = 'other'\n",
    })  # fmt: skip
    (project / "node_modules/linked").symlink_to("../packages/linked")
    velo.same("main.js", served=8)

    def after(change: str) -> None:
        velo.differs_not("main.js")
        assert velo.differs_not("main.js").served, change

    project.write_unnoticed("lib.js", "module.exports = 'lib new'\n")
    after("an edit of the same length with the times set back")
    project.write({"folder.js": "module.exports = 'nearer'\n"})
    after("a file that comes before a folder")
    project.write({"folder.js": None})
    after("and is gone again")
    project.write({"sub/node_modules/dep/index.js": "exports.name = 'nearer dep'\n"})
    after("a package that is nearer")
    project.write({"node_modules/dep/package.json": '{"name": "dep", "exports": "./lib/other.js"}'})
    after("other exports")
    (project / "node_modules/linked").unlink()
    (project / "node_modules/linked").symlink_to("../packages/second")
    after("another target of a link")
    os.rename(project / "packages", project / "moved")
    (project / "packages").symlink_to("moved")
    after("a folder that became a link")
    project.write(
        {
            "lib.js": "module.exports = require('./fresh') // now with a dependency\n",
            "fresh.js": "module.exports = 'fresh'\n",
        }
    )
    after("a new dependency")
    project.write({"lib.js": "export default 1\n"})
    velo.differs_not("main.js")
    project.write({"lib.js": "module.exports = ;\n"})
    velo.differs_not("main.js")
    project.write({"lib.js": None})
    velo.differs_not("main.js")
    project.write({"lib.js": "module.exports = 'back'\n", "package.json": '{"type": "module"}'})
    velo.differs_not("main.js")
    project.write({"package.json": '{"type": "commonjs"}'})
    after("explicit CommonJS")


def test_edits_while_it_runs(velo: NodeVelo, project: Tree) -> None:
    """A program that writes modules and loads them gets what it wrote."""
    project.write({
        "main.js": """
            const fs = require('fs');
            fs.writeFileSync(__dirname + '/made.js', `module.exports = ${process.argv[2]}`);
            console.log(require('./made'), require('./user')(process.argv[2]));
            setTimeout(() => {
              fs.writeFileSync(__dirname + '/made.js', 'module.exports = 0');
              delete require.cache[require.resolve('./made')];
              console.log(require('./made'));
            }, 5);
            """,
        "user.js": """
            const fs = require('fs');
            module.exports = (number) => {
              delete require.cache[require.resolve('./made')];
              fs.writeFileSync(__dirname + '/made.js', `module.exports = ${number} + 1`);
              return require('./made');
            };
            """,
    })  # fmt: skip

    for number in ("1", "2", "3", "4"):
        velo.differs_not("main.js", number)


@EVERYWHERE
def test_damage_is_a_plain_run(velo: NodeVelo, project: Tree) -> None:
    """Flipped bytes anywhere, files cut short, files of others: never seen by V8, never a complaint."""
    project.write(PACKAGES | {"main.js": "console.log(require('dep').name, require('inner/y'))\n"})
    velo.same("main.js", served=4)
    plain = velo.plain("main.js")
    readonly = {"VELO_READONLY": "1"}
    kept = [*(velo.home / "indexes").rglob("*.index"), *(velo.home / "packs").rglob("*.pack")]
    assert kept
    for path in kept:
        whole = path.read_bytes()
        status = path.stat()
        for place in range(0, len(whole), max(1, len(whole) // 40)):
            path.chmod(0o600)
            with open(path, "r+b") as file:  # The same inode, and its times set back.
                file.seek(place)
                file.write(bytes([whole[place] ^ 0x41]))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert velo.run("main.js", env=readonly).answer == plain.answer, f"{path.name} at {place}"
            with open(path, "r+b") as file:
                file.seek(place)
                file.write(whole[place : place + 1])
        for length in (0, 7, 199, len(whole) - 8):
            path.write_bytes(whole[:length])
            assert velo.run("main.js", env=readonly).answer == plain.answer
        path.write_bytes(whole)
        path.chmod(0o666)
        result = velo.run("main.js", env=readonly)
        assert result.answer == plain.answer
        assert path.suffix == ".pack" or not result.served
        path.chmod(0o600)


@EVERYWHERE
def test_our_own_code_in_the_store(velo: NodeVelo, project: Tree, node: Path) -> None:
    """What is kept of Velo's own code is not used if it is damaged, old, or another's; and is kept again."""
    project.write(PACKAGES | {"main.js": "console.log(require('dep').name, require('inner/y'))\n"})
    plain, *_, last = velo.same("main.js", served=4)
    files = list((velo.home / "run").glob("rooms-*"))
    if said_version(node).startswith("18."):
        assert not files, "it has no CRC-32"
        return
    [kept] = files
    assert kept.stat().st_mode & 0o777 == 0o600
    whole = kept.read_bytes()

    def still_served() -> None:
        result = velo.run("main.js", env={"VELO_READONLY": "1"})
        assert (result.answer, result.served, result.errors) == (plain.answer, last.served, 0)

    for place in range(0, len(whole), len(whole) // 20):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        still_served()
    for length in (0, 7, 31, len(whole) - 8):
        kept.write_bytes(whole[:length])
        still_served()
    about = whole.index(b"\\n") + 2
    other = bytearray(whole)
    other[about] ^= 1  # Another size of the executable.
    other[12:16] = crc32(bytes(other[16:])).to_bytes(4, "little")
    kept.write_bytes(other)
    still_served()
    velo.run("main.js")
    assert kept.read_bytes()[: len(other)] != other, "it was not kept again"
    kept.chmod(0o666)
    still_served()


@EVERYWHERE
def test_children_and_workers(velo: NodeVelo, project: Tree) -> None:
    """Workers, forks and other Nodes below a program, each with what is its own."""
    others = [
        str(path) for path in (nodes.attempt(each) for each in nodes.VERSIONS) if isinstance(path, Path)
    ]
    project.write(PACKAGES | {
        "main.js": f"""
            const {{ Worker, isMainThread }} = require('worker_threads');
            const {{ spawnSync, fork }} = require('child_process');
            console.log(isMainThread, require('dep').name);
            for (const node of {json.dumps(others)}) {{
              const child = spawnSync(node, [__dirname + '/child.js', 'x'], {{ encoding: 'utf8' }});
              console.log(child.stdout, child.stderr, child.status);
            }}
            new Worker(__dirname + '/worker.js').on('message', (m) => {{
              console.log('worker', m);
              const text = 'require("worker_threads").parentPort.postMessage(require("dep").name)';
              new Worker(text, {{ eval: true }})
                .on('message', (m) => console.log('eval', m)).on('exit', () => {{
                  fork(__dirname + '/child.js', ['forked']).on('exit', (code) => console.log('exit', code));
                }});
            }});
            """,
        "worker.js": """
            const { parentPort } = require('worker_threads');
            parentPort.postMessage([require('dep').name, Object.keys(require.cache), new Error('w').stack]);
            """,
        "child.js": """
            console.log(process.version, process.argv.slice(2), require('dep').name, require('inner/y'));
            process.exitCode = 4;
            """,
    })  # fmt: skip

    velo.same("main.js", served=2)


@EVERYWHERE
def test_worker_threads(velo: NodeVelo, project: Tree) -> None:
    """A worker's program is served as one that has a process of its own: its stacks, errors, exit codes, its
    data and its children are what they are without Velo.
    """
    project.write(PACKAGES | {
        "main.js": """
            const { Worker, SHARE_ENV } = require('worker_threads');
            const file = __dirname + '/worker.js';
            const each = [
              [file, { workerData: 'data', argv: ['--word', 'x'] }],
              [file, { workerData: 'throw' }], [file, { workerData: 'exit' }],
              [file, { workerData: 'nested' }], [file, { workerData: 'late', env: SHARE_ENV }],
              [file, { workerData: 'env', env: {} }],
              [file, { workerData: 'options', execArgv: ['--stack-trace-limit=3'] }],
              [file, { workerData: 'links', execArgv: ['--preserve-symlinks'] }],
              ['require("./worker")', { eval: true, workerData: 'eval' }],
              [__dirname + '/module.mjs', {}], [__dirname + '/absent.js', {}], [__dirname + '/data.json', {}],
            ];
            (function next() {
              const [what, options] = each.shift() || [];
              if (what === undefined) return console.log(process.listenerCount('exit'));
              new Worker(what, options)
                .on('message', (message) => console.log('message', message))
                .on('error', (error) => console.log('error', error.code, error.stack))
                .on('exit', (code) => { console.log('exit', code); next(); });
            })();
            """,
        "worker.js": """
            const { parentPort, workerData, Worker, threadId } = require('worker_threads');
            const { name } = require('dep');
            parentPort.postMessage([workerData, name, process.argv.slice(2), process.execArgv]);
            parentPort.postMessage([Object.keys(require.cache).length, require.main === module, module.id]);
            parentPort.postMessage([process.argv[1] === __filename, new Error('here').stack]);
            parentPort.postMessage(require('./lib')());
            if (workerData === 'throw') setTimeout(() => require('./throws'), 50); // After its messages.
            if (workerData === 'exit') process.exit(7);
            if (workerData === 'late') setTimeout(() => parentPort.postMessage(require('inner/y')), 5);
            if (workerData === 'nested')
              new Worker(__filename, { workerData: 'inner' }).on('message', (m) => parentPort.postMessage(m));
            """,
        "lib.js": "module.exports = () => new Error('in lib').stack\n",
        "throws.js": "\n  throw new TypeError('thrown');\n",
        "module.mjs": "import lib from './lib.js'; import 'worker_threads'; console.log(typeof lib)\n",
        "data.json": "{}",
    })  # fmt: skip

    velo.same("main.js", served=20)


@EVERYWHERE
def test_options_and_switches(velo: NodeVelo, project: Tree) -> None:
    """Where something measures or changes loading, Velo stands aside; where not, it serves."""
    project.write(PACKAGES | {
        "main.js": """
            console.log(require('dep').name, require('inner/y'), process.execArgv, new Error('e').stack);
            """,
        "preload.js": "console.log('preloaded', require('dep').name, module.isPreloading)\n",
        "more/extra.js": "module.exports = 'extra'\n",
        "path.js": "console.log(require('extra'))\n",
    })  # fmt: skip
    velo.same("main.js", served=4)
    velo.same("--max-old-space-size=200", "main.js", served=4)
    velo.same("--stack-trace-limit=3", "main.js", served=4)
    velo.same("-r", "./preload.js", "main.js", served=2)
    velo.same("-p", "require('dep').name", served=0)
    velo.same("-e", "console.log(require('dep').name, new Error('x').stack)", served=0)
    for option in (
        "--preserve-symlinks",
        "--enable-source-maps",
        "--conditions=other",
        "--check",
        "--trace-sync-io",
    ):
        velo.same(option, "main.js", served=0)
    for name, value in (("VELO_DISABLE", "1"), ("NODE_V8_COVERAGE", "coverage"), ("VELO_READONLY", "1")):
        velo.same("main.js", served=0, env={name: value})
    assert list((project / "coverage").iterdir())
    velo.same("path.js", served=0, env={"NODE_PATH": str(project / "more")})
    for check in ("stat", "root", "none"):
        assert velo.differs_not("main.js", env={"VELO_CHECK": check}).served >= 4


def test_node_options_of_the_user(velo: NodeVelo, project: Tree) -> None:
    """What stands in NODE_OPTIONS stays there and works; also in a folder with a space in its name."""
    project.write(PACKAGES | {
        "with space/preload.js": "console.log('preloaded')\n",
        "with space/main.js": "console.log(require('dep').name, process.env.USER_OPTION)\n",
    })  # fmt: skip
    options = f'--require "{project.folder}/with space/preload.js" --max-old-space-size=300'

    velo.same("with space/main.js", served=3, env={"NODE_OPTIONS": options, "USER_OPTION": "kept"})


def test_a_tree_that_was_ingested(velo: NodeVelo, project: Tree, node: Path) -> None:
    """After `velo ingest` the very first run of an installed command is served, and tells no difference."""
    project.write(
        PACKAGES | {"node_modules/tool/bin.js": "console.log(require('dep').name, require('inner/y'))\n"}
    )
    (project / "node_modules/.bin").mkdir()
    (project / "node_modules/.bin/tool").symlink_to("../tool/bin.js")
    command = project / "node_modules/.bin/tool"
    plain = velo.plain(command)
    ingested = velo.command("ingest", "--node", node, project.folder)
    assert ingested.code == 0, ingested.stderr

    first = velo.learn(command)

    assert first.answer == plain.answer
    assert first.served >= 5, velo.story([first])

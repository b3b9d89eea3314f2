// SPDX-License-Identifier: Apache-2.0
// Serves what the index knows: where a request leads, and the module that is there, while everything it depends on is
// unchanged.
//
// The surprise: nothing of Node's loader is replaced for longer than it takes. A served module gets a `require` of ours.
// That one decides first, and only if it has an answer do `Module._resolveFilename` and `Module._extensions['.js']`
// become ours, until Node has called them once. So whatever we do not know runs without a frame of ours below it, and
// programs that patch the loader find it as it was.
'use strict';

const { readFileSync } = require('fs');
const vm = require('vm');
const { dirname } = require('path');
const { Sources } = load('sources');
const { functions } = load('mimic');
const { TEXT, CAPTURED, UNCOMPILED, IMPORTS, IMPORT, wrapped } = load('unit');

const EXPLICIT = 3;
const PARAMETERS = ['exports', 'require', 'module', '__filename', '__dirname'];
const OUTERMOST = 0;

exports.serve = function (session) {
  const { Module, own, counts } = session;
  const importer = vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  const builtins = new Set(Module.builtinModules);
  const sources = new Sources(session);
  const extensions = Module._extensions;
  const native = {
    resolveFilename: Module._resolveFilename,
    findPath: Module._findPath,
    lookupPaths: Module._resolveLookupPaths,
    nodeModulePaths: Module._nodeModulePaths,
    script: extensions['.js'],
    json: extensions['.json'],
    compile: Module.prototype._compile,
    wrap: Module.wrap,
    wrapped: Module.wrap(''),
    extensionNames: Object.keys(extensions),
  };
  const symbols = {};
  for (const symbol of Object.getOwnPropertySymbols(own)) symbols[symbol.description] = symbol;
  const { kIsExecuting, kFormat, kModuleSource } = symbols;
  const log = process.env.VELO_LOG ? load('log').logger(process.env.VELO_LOG) : null;

  let retired = false;
  let isAllowed = false;
  let depth = OUTERMOST;
  let asked = null; // the parent whose request is answered
  let request = '';
  let answer = '';
  let ready = null; // the module that Node is about to load

  function retire(reason) {
    retired = true;
    counts.reasons[reason] = 1;
  }

  function leftToNode(reason, what) {
    counts.deferred++;
    counts.reasons[reason] = (counts.reasons[reason] || 0) + 1;
    if (log !== null) log(`${what}: left to Node: ${reason}`);
  }

  // Whatever programs patch, they patched for a reason.
  function isUntouched() {
    if (
      Module._resolveFilename !== native.resolveFilename ||
      Module._findPath !== native.findPath ||
      Module._resolveLookupPaths !== native.lookupPaths ||
      Module._nodeModulePaths !== native.nodeModulePaths ||
      Module.prototype._compile !== native.compile ||
      Module._extensions !== extensions ||
      extensions['.js'] !== native.script ||
      extensions['.json'] !== native.json ||
      process.sourceMapsEnabled === true
    ) {
      return false;
    }
    let at = 0;
    for (const name in extensions) if (name !== native.extensionNames[at++]) return false;
    return at === native.extensionNames.length && Module.wrap === native.wrap;
  }

  function isRelative(text) {
    const first = text.charCodeAt(0);
    if (first === 47) return true;
    if (first !== 46) return false;
    const second = text.charCodeAt(1);
    return text.length === 1 || second === 47 || (second === 46 && (text.length === 2 || text.charCodeAt(2) === 47));
  }

  function hasUsualPaths(mod, folder) {
    if (folder.paths === null) folder.paths = Module._nodeModulePaths(mod.path);
    const { paths } = mod;
    if (!Array.isArray(paths) || paths.length !== folder.paths.length) return false;
    for (let at = 0; at < paths.length; at++) if (paths[at] !== folder.paths[at]) return false;
    return true;
  }

  function prepare(mod, wanted) {
    asked = ready = null;
    if (depth++ === OUTERMOST) sources.forget();
    if (retired || typeof wanted !== 'string' || builtins.has(wanted) || wanted.startsWith('node:')) {
      if (wanted === 'inspector' || wanted === 'node:inspector') retire('inspector');
      return;
    }
    try {
      decide(mod, wanted);
    } catch (error) {
      asked = ready = null;
      counts.errors++;
      if (log !== null) log(`${wanted}: error: ${error && error.message}`);
    }
  }

  function decide(mod, wanted) {
    if (!isUntouched()) return leftToNode('patched loader', wanted);
    // Where an absolute path leads does not depend on who asks.
    const found = sources.resolution(mod.path, wanted) || (wanted.charCodeAt(0) === 47 ? sources.main(wanted) : null);
    const reason = found === null ? 'unknown request' : reasonAgainst(found, mod, wanted);
    let target;
    let source = null;
    let file = 0;
    if (reason === '') {
      ({ source } = found);
      target = source.index.target(found.at);
      file = source.index.resolutions[found.at + 2];
    } else {
      // Node says where it leads, before it is asked: what is there may be known all the same. If it fails it does so
      // again, without us.
      if (reason === 'changed folders') counts.stale++;
      leftToNode(reason, wanted);
      target = resolvedByNode(mod, wanted);
      if (target === '') return undefined;
      if (reason !== 'module.paths' && typeof mod.filename === 'string') missed(mod.filename, wanted);
    }
    if (Module._cache[target] === undefined) {
      if (source === null) ({ source, file } = sources.file(target));
      if (file === 0) leftToNode('no unit', target);
      else ready = prepared(source, file - 1, target);
    }
    asked = mod;
    request = wanted;
    answer = target;
    Module._resolveFilename = resolveFilename;
    if (ready !== null) extensions[ready.isText ? '.json' : '.js'] = ready.isText ? loadText : loadScript;
    return undefined;
  }

  function reasonAgainst({ source, folder, at }, mod, wanted) {
    if (!isRelative(wanted) && !hasUsualPaths(mod, folder)) return 'module.paths';
    return source.facts.all(source.index.resolutions[at + 3]) ? '' : 'changed folders';
  }

  function resolvedByNode(mod, wanted) {
    try {
      const target = native.resolveFilename.call(Module, wanted, mod, false);
      return typeof target === 'string' && target.charCodeAt(0) === 47 ? target : '';
    } catch (error) {
      return '';
    }
  }

  function missed(from, wanted) {
    if (session.mayWrite && session.missed.size < 10000) {
      session.missed.set(`${from}\t${wanted}`, true);
      session.watchExit(session);
    }
  }

  function restore() {
    if (Module._resolveFilename === resolveFilename) Module._resolveFilename = native.resolveFilename;
    if (extensions['.js'] === loadScript) extensions['.js'] = native.script;
    if (extensions['.json'] === loadText) extensions['.json'] = native.json;
  }

  function leave() {
    if (--depth === OUTERMOST) sources.rest();
    asked = ready = null;
    restore();
  }

  function resolveFilename(wanted, parent, isMain, options) {
    Module._resolveFilename = native.resolveFilename;
    if (wanted === request && parent === asked && !isMain && options === undefined) {
      asked = null;
      counts.resolved++;
      return answer;
    }
    if (options !== undefined) restore();
    return native.resolveFilename.call(Module, wanted, parent, isMain, options);
  }

  // The module in file `number` of an index, so that nothing is left to do but to run it; null: Node loads it.
  function prepared({ index, facts, packs }, number, path) {
    const at = number * 8;
    const { files } = index;
    const kind = files[at + 2] & 255;
    const tree = files[at + 2] >>> 8;
    if (!facts.all(files[at + 4])) {
      counts.stale++;
      missed(path, '');
      leftToNode('changed package', path);
      return null;
    }
    if (!facts.isFresh(tree, path, files[at + 3])) {
      counts.stale++;
      missed(path, '');
      return kind === TEXT ? null : edited(path, kind);
    }
    const unit = packs.unit(files[at + 5], files[at + 6] * 16, files[at + 7]);
    const isOutOfReach = unit !== null && unit.flags & UNCOMPILED && importer === undefined;
    if (unit === null || isOutOfReach || (unit.kind === TEXT) !== (kind === TEXT)) {
      leftToNode(unit === null ? 'unreadable pack' : 'import() on this Node', path);
      return null;
    }
    if (Module.wrap('') !== native.wrapped) {
      leftToNode('patched loader', path);
      return null;
    }
    if (kind === TEXT) return { path, isText: true, value: JSON.parse(unit.text) };
    if (unit.flags & IMPORTS) allowImports();
    const isCaptured = unit.flags & (CAPTURED | UNCOMPILED);
    const script = scriptOf(isCaptured ? path : flat(path), unit.text, unit.bytecode);
    if (script.cachedDataRejected) leftToNode('bytecode rejected', path);
    if (session.mayWrite && !isCaptured) {
      session.captured.push({ path, script, text: unit.text, flags: unit.flags });
      session.watchExit(session);
    }
    return entryOf(path, kind, script);
  }

  // A source that was changed since it was learned: compiled as it is now, so that what it requires is served. Whether it
  // is CommonJS still, Node decides.
  function edited(path, kind) {
    const source = readFileSync(path, 'utf8');
    if (source.charCodeAt(0) === 0xfeff || (importer === undefined && /import|eval|Function/.test(source))) return null;
    if (IMPORT.test(source)) allowImports();
    try {
      vm.compileFunction(source, PARAMETERS, { filename: path });
      counts.native++;
      return entryOf(path, kind, scriptOf(path, wrapped(source), undefined));
    } catch (error) {
      return null;
    }
  }

  // Node warns once that what gives our scripts its own `import()` is experimental: nobody asked for that.
  function allowImports() {
    if (isAllowed || importer === undefined) return;
    isAllowed = true;
    const before = process.emitWarning;
    process.emitWarning = () => {};
    try {
      scriptOf('/-', 'import("node:fs").catch(() => {})', undefined).runInThisContext();
    } finally {
      process.emitWarning = before;
    }
  }

  function scriptOf(filename, text, cachedData) {
    return new vm.Script(text, { filename, lineOffset: -1, cachedData, importModuleDynamically: importer });
  }

  function entryOf(path, kind, script) {
    const wrapper = script.runInThisContext();
    return { path, isText: false, isExplicit: kind === EXPLICIT, wrapper, folder: dirname(path), value: undefined };
  }

  const hooks = {
    Module,
    nativeScript: native.script,
    nativeExtensions: extensions,
    prepare,
    leave,
    isRetired: () => retired,

    // What Node is to run, if it is what we prepared.
    take(module, filename) {
      const entry = ready;
      ready = null;
      restore();
      const isForeign = kModuleSource !== undefined && module[kModuleSource] !== undefined;
      if (entry === null || entry.path !== filename || isForeign || module._compile !== native.compile || retired) return null;
      if (kFormat !== undefined && entry.isExplicit && module[kFormat] === undefined) module[kFormat] = 'commonjs';
      counts.served++;
      if (log !== null) log(`${filename}: served`);
      return entry;
    },

    enter(module) {
      if (depth++ === OUTERMOST) sources.forget();
      if (kIsExecuting !== undefined) module[kIsExecuting] = true;
      return makeRequire(module);
    },

    exit(module) {
      if (--depth === OUTERMOST) sources.rest();
      if (kIsExecuting !== undefined) module[kIsExecuting] = false;
    },
  };

  function loadText(module, filename) {
    const entry = ready;
    ready = null;
    restore();
    const isForeign = kModuleSource !== undefined && module[kModuleSource] !== undefined;
    if (entry === null || entry.path !== filename || isForeign || retired) return native.json.call(extensions, module, filename);
    if (Object.prototype.hasOwnProperty.call(module, kFormat) && module[kFormat] === undefined) module[kFormat] = 'json';
    counts.served++;
    if (log !== null) log(`${filename}: served`);
    module.exports = entry.value;
  }

  const mimicked = sources.first === null ? null : functions(sources.first.index.frames(), hooks);
  if (mimicked === null) return;
  const { loadScript, makeRequire } = mimicked;
  watchHooks(Module, retire);

  // The program itself is loaded when all preloads are, and nobody requires it: it begins when Node looks for `runMain`.
  const begin = Object.getOwnPropertyDescriptor(Module, 'runMain');
  function restoreBegin(value) {
    Object.defineProperty(Module, 'runMain', { ...begin, value });
  }
  Object.defineProperty(Module, 'runMain', {
    configurable: true,
    enumerable: begin.enumerable,
    get() {
      restoreBegin(begin.value);
      try {
        prepareMain();
      } catch (error) {
        counts.errors++;
        ready = null;
      }
      return begin.value;
    },
    set: restoreBegin,
  });

  function prepareMain() {
    const { main } = session;
    if (!isUntouched()) return leftToNode('patched loader', main);
    const found = sources.main(main);
    let target;
    let source = null;
    let file = 0;
    if (found !== null && found.source.facts.all(found.source.index.resolutions[found.at + 3])) {
      ({ source } = found);
      target = source.index.target(found.at);
      file = source.index.resolutions[found.at + 2];
    } else {
      missed(main, '');
      leftToNode(found === null ? 'unknown program' : 'changed folders', main);
      target = Module._findPath(main, null, true);
      if (typeof target !== 'string') return undefined;
      ({ source, file } = sources.file(target));
    }
    if (file === 0) return leftToNode('no unit', main);
    const entry = prepared(source, file - 1, target);
    if (entry === null || entry.isText) return undefined;
    ready = entry;
    extensions['.js'] = loadScript;
    return undefined;
  }
};

// A piece of a string keeps the whole of it, and V8 would store that with the name of a script.
function flat(path) {
  return Buffer.from(path).toString();
}

// Hooks see and change everything: whoever registers some is left alone from then on.
function watchHooks(Module, retire) {
  for (const [holder, name] of [[Module, 'registerHooks'], [process, 'setSourceMapsEnabled']]) {
    const description = Object.getOwnPropertyDescriptor(holder, name);
    if (!description || typeof description.value !== 'function' || !description.configurable) continue;
    if (holder === process && process.sourceMapsEnabled !== undefined) continue;
    const nativeFunction = description.value;
    const own = {
      [name](...words) {
        retire(name);
        return Reflect.apply(nativeFunction, this, words);
      },
    }[name];
    Object.defineProperty(own, 'length', { value: nativeFunction.length, configurable: true });
    Object.defineProperty(holder, name, { ...description, value: own });
  }
}

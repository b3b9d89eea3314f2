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
const { Sources } = load('sources');
const { functions } = load('mimic');
const { TEXT, CAPTURED, UNCOMPILED, IMPORTS, IMPORT, wrapped } = load('unit');

const EXPLICIT = 3;
const PARAMETERS = ['exports', 'require', 'module', '__filename', '__dirname'];
const OUTERMOST = 0;
const TRACING_SINCE = 20;

// Programs may replace these methods.
const includes = Function.prototype.call.bind(Array.prototype.includes);
const push = Function.prototype.call.bind(Array.prototype.push);

exports.serve = function (session) {
  const { Module, own, counts } = session;
  const importer = vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
  const builtins = new Set(Module.builtinModules);
  const sources = new Sources(session);
  const extensions = Module._extensions;
  const native = {
    load: Module._load,
    require: Module.prototype.require,
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
  let channels = null; // on which those who trace `require` listen

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

  function hasUsualPaths(mod, place) {
    const { paths } = mod;
    const usual = place.paths;
    if (!Array.isArray(paths) || paths.length !== usual.length) return false;
    for (let at = 0; at < paths.length; at++) if (paths[at] !== usual[at]) return false;
    return true;
  }

  // The module that `require` has to give the exports of and do nothing more, if Velo knows; else Node is asked, and finds
  // what it needs prepared, if Velo knows that.
  function prepare(mod, place, wanted) {
    asked = ready = null;
    let isInside = false;
    try {
      const known = place.known.get(wanted);
      if (known !== undefined) {
        const child = loadedModule(mod, place, known);
        if (child !== undefined) return child;
      }
      isInside = true;
      if (depth++ === OUTERMOST) sources.forget();
      if (retired || typeof wanted !== 'string' || builtins.has(wanted) || wanted.startsWith('node:')) {
        if (wanted === 'inspector' || wanted === 'node:inspector') retire('inspector');
        return undefined;
      }
      const child = decide(mod, place, wanted);
      if (child !== undefined) leave();
      return child;
    } catch (error) {
      asked = ready = null;
      if (!isInside) depth++;
      counts.errors++;
      if (log !== null) log(`request: error: ${error && error.message}`);
      return undefined;
    }
  }

  // Where Node finds a module in its cache it does just this. Where a request led once, it does not ask again either.
  function loadedModule(mod, place, { target, isRelative }) {
    const child = Module._cache[target];
    if (child === undefined || child === null || child.loaded !== true) return undefined;
    if (!isAsEver(mod) || !(isRelative || hasUsualPaths(mod, place))) return undefined;
    const { children } = mod;
    if (children && !includes(children, child)) push(children, child);
    counts.resolved++;
    return child;
  }

  function isAsEver(mod) {
    if (
      retired ||
      Module._load !== native.load ||
      mod.require !== native.require ||
      Module._resolveFilename !== native.resolveFilename ||
      Module._findPath !== native.findPath ||
      Module._resolveLookupPaths !== native.lookupPaths
    ) {
      return false;
    }
    if (channels === null) channels = tracingChannels();
    for (let at = 0; at < channels.length; at++) if (channels[at].hasSubscribers) return false;
    return true;
  }

  function decide(mod, place, wanted) {
    if (!isUntouched()) return leftToNode('patched loader', wanted);
    // Where an absolute path leads does not depend on who asks.
    const found = sources.resolution(place.path, wanted) || (wanted.charCodeAt(0) === 47 ? sources.main(wanted) : null);
    const isNear = isRelative(wanted);
    const reason = found === null ? 'unknown request' : reasonAgainst(found, mod, place, isNear);
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
    if (isNear || hasUsualPaths(mod, place)) {
      const known = { target, isRelative: isNear };
      place.known.set(wanted, known);
      if (ready === null) {
        const child = loadedModule(mod, place, known);
        if (child !== undefined) return child;
      }
    }
    asked = mod;
    request = wanted;
    answer = target;
    Module._resolveFilename = resolveFilename;
    if (ready !== null) {
      extensions[ready.isText ? '.json' : '.js'] = ready.isText ? loadText : loadScript;
      Module._nodeModulePaths = nodeModulePaths;
    }
    return undefined;
  }

  function reasonAgainst({ source, at }, mod, place, isNear) {
    if (!isNear && !hasUsualPaths(mod, place)) return 'module.paths';
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
    if (Module._nodeModulePaths === nodeModulePaths) Module._nodeModulePaths = native.nodeModulePaths;
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

  // Node asks where a module that it is about to load will look for packages.
  function nodeModulePaths(from) {
    Module._nodeModulePaths = native.nodeModulePaths;
    return ready !== null && from === ready.place.path ? ready.place.paths.slice() : native.nodeModulePaths.call(Module, from);
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
      return kind === TEXT ? null : edited(path, kind, sources.place(index.folderOf(number)));
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
    const place = sources.place(index.folderOf(number));
    if (kind === TEXT) return { path, place, isText: true, value: JSON.parse(unit.text) };
    if (unit.flags & IMPORTS) allowImports();
    const isCaptured = unit.flags & (CAPTURED | UNCOMPILED);
    const script = scriptOf(isCaptured ? path : flat(path), unit.text, unit.bytecode);
    if (script.cachedDataRejected) leftToNode('bytecode rejected', path);
    if (session.mayWrite && !isCaptured) {
      session.captured.push({ path, script, text: unit.text, flags: unit.flags });
      session.watchExit(session);
    }
    return entryOf(path, place, kind, script);
  }

  // A source that was changed since it was learned: compiled as it is now, so that what it requires is served. Whether it
  // is CommonJS still, Node decides.
  function edited(path, kind, place) {
    const source = readFileSync(path, 'utf8');
    if (source.charCodeAt(0) === 0xfeff || (importer === undefined && /import|eval|Function/.test(source))) return null;
    if (IMPORT.test(source)) allowImports();
    try {
      vm.compileFunction(source, PARAMETERS, { filename: path });
      counts.native++;
      return entryOf(path, place, kind, scriptOf(path, wrapped(source), undefined));
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

  function entryOf(path, place, kind, script) {
    const wrapper = script.runInThisContext();
    return { path, place, isText: false, isExplicit: kind === EXPLICIT, wrapper, folder: place.path, value: undefined };
  }

  const hooks = {
    Module,
    nativeScript: native.script,
    nativeExtensions: extensions,
    prepare,
    leave,
    isRetired: () => retired,
    isOfObject: session.isOfObject,

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
      return makeRequire(module, sources.place(module.path));
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

  const mimicked = sources.first === null ? null : functions(sources.first.index.frames(), hooks, session.kept);
  if (mimicked === null) return;
  const { loadScript, makeRequire } = mimicked;
  watchHooks(Module, retire);

  // The program itself is loaded when all preloads are, and nobody requires it: it begins when Node looks for `runMain`.
  const begin = Object.getOwnPropertyDescriptor(Module, 'runMain');
  function restoreBegin(value) {
    Object.defineProperty(Module, 'runMain', { __proto__: null, ...begin, value });
  }
  Object.defineProperty(Module, 'runMain', {
    __proto__: null,
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

function tracingChannels() {
  if (parseInt(process.versions.node, 10) < TRACING_SINCE) return [];
  const { channel } = require('diagnostics_channel');
  return ['start', 'end', 'error'].map((event) => channel(`tracing:module.require:${event}`));
}

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

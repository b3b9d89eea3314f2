// SPDX-License-Identifier: Apache-2.0
// The functions of Node's loader that stand in tracebacks between two modules, ours instead of Node's: they have its
// names, and stand in scripts of its names at its lines and columns, so that an error's `stack` is what it is without us.
// Where they stand differs from version to version; the worker has asked (FORMAT.md, section 14.3, frames).
'use strict';

// Text that ends where a call has to stand: on a line after everything so far, at that column.
function at(line, column, now, before) {
  return before + '\n'.repeat(line - now) + ' '.repeat(column - 1);
}

// {compile, loadScript, makeRequire}; null where the frames are not ones that can be imitated.
exports.functions = function (frames, hooks, kept) {
  const compiled = (filename, line, text) => kept.script(filename, line - 1, text);
  const [run, js, require, resolve, inner, outer] = frames;
  const isPossible =
    run[0] === js[0] &&
    require[0] === resolve[0] &&
    run[1] > 1 &&
    js[1] > run[1] &&
    require[1] > 1 &&
    resolve[1] > require[1] &&
    resolve[1] < 1e5 &&
    js[1] < 1e5 &&
    (inner[1] === 0 || (inner[0] === outer[0] && inner[1] > 1 && inner[2] > 8 && outer[1] > inner[1] && outer[1] < 1e5)) &&
    frames.every((frame, number) => (number > 3 && inner[1] === 0) || (frame[0].startsWith('node:') && frame[2] >= 8 && frame[2] < 100));
  if (!isPossible) return null;

  let first = run[1] - 1;
  let text = at(run[1], run[2], first, '(function (Module, hooks, apply) { "use strict";' +
    'Module.prototype._compile = function (entry, filename) { const exports = this.exports; const require = hooks.enter(this, entry);' +
    'let result; try { result =');
  text += 'apply(entry.wrapper, exports, [exports, require, this, filename, entry.folder]); } finally { hooks.exit(this, entry); }';
  text += 'return result; };';
  const head = hooks.isOfObject ? 'Module._extensions = { "Object..js": function' : 'Module._extensions[".js"] = function';
  text += at(js[1], js[2], run[1], head + ' (module, filename) {' +
    'const entry = hooks.take(module, filename); const run = entry === null ? hooks.nativeScript : Module.prototype._compile;');
  text += 'apply(run, entry === null ? hooks.nativeExtensions : module, entry === null ? [module, filename] : [entry, filename]); }' + (head.includes('{') ? '}' : '') + '; })';
  const Module = { _extensions: {}, prototype: {} };
  compiled(run[0], first, text)(Module, hooks, Reflect.apply);

  // What Node 24 has between `require.resolve` and the resolver.
  let resolver = 'Module._resolveFilename(request, mod, false, options)';
  let between;
  if (inner[1] !== 0) {
    first = inner[1] - 1;
    text = at(inner[1], inner[2] - 7, first, '(function (Module) { "use strict";' +
      'function wrapResolveFilename(request, parent, isMain, options) { return (');
    text += 'Module._resolveFilename(request, parent, isMain, options)); }';
    text += at(outer[1], outer[2], inner[1], 'return function resolveForCJSWithHooks(request, parent, isMain, options) { return (');
    text += 'wrapResolveFilename(request, parent, isMain, options)); }; })';
    between = compiled(inner[0], first, text)(hooks.Module);
    resolver = 'between(request, mod, false, options === undefined ? {} : options)';
  }

  first = require[1] - 1;
  text = at(require[1], require[2] - 4, first, '(function (hooks, Module, process, between, define) { "use strict"; return function (mod, place) {' +
    'function require(path) { const known = hooks.prepare(mod, place, path); if (known !== undefined) return known.exports; try { return (');
  text += 'mod.require(path)); } finally { hooks.leave(); } }';
  text += at(resolve[1], between === undefined ? resolve[2] - 7 : resolve[2], require[1], 'function resolve(request, options) {' +
    'if (hooks.isRetired() || typeof request !== "string") return Module.createRequire(mod.filename).resolve(request, options); return (');
  text += resolver + '); }' +
    'function paths(request) { return typeof request === "string" ? Module._resolveLookupPaths(request, mod) :' +
    'Module.createRequire(mod.filename).resolve.paths(request); }' +
    'require.resolve = resolve; resolve.paths = paths; define(require, "main",' +
    '{ __proto__: null, configurable: true, enumerable: true, value: process.mainModule, writable: true });' +
    'require.extensions = Module._extensions; require.cache = Module._cache; return require; }; })';
  const makeRequire = compiled(require[0], first, text)(hooks, hooks.Module, process, between, Object.defineProperty);
  return { loadScript: Object.values(Module._extensions)[0], makeRequire };
};

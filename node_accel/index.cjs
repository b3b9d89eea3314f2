// SPDX-License-Identifier: Apache-2.0
// Velo's entry point into a Node program: `NODE_OPTIONS=--require=<this file>`. Any Node may meet it, and every child of
// a program does: it parses on all of them, does nothing where it does not know its way, and never speaks.
'use strict';

(function () {
  var versions = process.versions;
  var disable = process.env.VELO_DISABLE;
  try {
    // No program finds us in what it can list.
    var Module = module.constructor;
    delete require.cache[__filename];
    Object.keys(Module._pathCache).forEach(function (key) {
      if (Module._pathCache[key] === __filename) delete Module._pathCache[key];
    });
    if (
      parseInt(versions.node, 10) < 18 ||
      versions.electron !== undefined ||
      versions.bun !== undefined ||
      versions.deno !== undefined ||
      process.platform !== 'linux' ||
      (disable !== undefined && disable !== '' && disable !== '0')
    ) {
      return;
    }
    // `require` may be somebody else's by the time that the program ends, and so may be what is in `fs`.
    var getBuiltin = process.getBuiltinModule;
    var nativeLoad = Module._load;
    var fs = require('fs');
    var files = { constants: fs.constants };
    [
      'appendFileSync', 'closeSync', 'existsSync', 'fstatSync', 'lstatSync', 'mkdirSync', 'openSync', 'readFileSync', 'readSync',
      'readdirSync', 'realpathSync', 'renameSync', 'rmSync', 'unlinkSync', 'writeSync',
    ].forEach(function (name) {
      files[name] = fs[name];
    });
    var builtin = function (name) {
      if (name === 'fs') return files;
      return getBuiltin ? getBuiltin.call(process, name) : nativeLoad.call(Module, 'node:' + name, null, false);
    };
    // Our other files, by hand: nobody finds them in `require.cache`. While we start Node compiles them as it has compiled
    // this one; later on its loader may be somebody else's.
    var folder = __dirname + '/lib/';
    var isStarting = true;
    var rooms = {};
    var load = function (name) {
      if (rooms[name] === undefined) {
        rooms[name] = {};
        (load.core[name] || compiled(name))(rooms[name], load, builtin);
      }
      return rooms[name];
    };
    var compiled = function (name) {
      var path = folder + name + '.cjs';
      var text = '(function (exports, load, require) {' + files.readFileSync(path, 'latin1') + '\n})';
      if (!isStarting) return new (builtin('vm').Script)(text, { filename: path }).runInThisContext();
      module._compile('module.exports = ' + text, path);
      return module.exports;
    };
    load.core = {};
    load('start').start(module, folder, process.abort.name === 'unavailableInWorker');
    isStarting = false;
  } catch (error) {
    // A plain start.
  }
})();

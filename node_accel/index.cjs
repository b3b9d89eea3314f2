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
      process.abort.name === 'unavailableInWorker' || // a worker's main file is not known yet
      (disable !== undefined && disable !== '' && disable !== '0')
    ) {
      return;
    }
    // `require` may be somebody else's by the time that the program ends.
    var getBuiltin = process.getBuiltinModule;
    var nativeLoad = Module._load;
    // And so may be what is in `fs`; all but its getters is taken as it is now.
    var fs = require('fs');
    var files = { constants: fs.constants };
    Object.keys(fs).forEach(function (name) {
      if (/Sync$/.test(name)) files[name] = fs[name];
    });
    var builtin = function (name) {
      if (name === 'fs') return files;
      return getBuiltin ? getBuiltin.call(process, name) : nativeLoad.call(Module, 'node:' + name, null, false);
    };
    var folder = __dirname + '/lib/';
    var room = {};
    var text = files.readFileSync(folder + 'room.cjs', 'latin1');
    new (require('vm').Script)('(function (exports) {' + text + '\n})', { filename: folder + 'room.cjs' })
      .runInThisContext()(room);
    room.loader(folder, builtin)('start').start(module);
  } catch (error) {
    // A plain start.
  }
})();

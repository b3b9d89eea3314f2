// SPDX-License-Identifier: Apache-2.0
// Loads the other files of this folder: by hand, so that no program finds them in `require.cache`, and cheaper than
// `require` does.
'use strict';

exports.loader = function (folder, require) {
  const { readFileSync } = require('fs');
  const { Script } = require('vm');
  const rooms = Object.create(null);
  return function load(name) {
    let room = rooms[name];
    if (room === undefined) {
      const filename = `${folder}${name}.cjs`;
      const text = `(function (exports, load, require) {${readFileSync(filename, 'latin1')}\n})`;
      rooms[name] = room = {};
      new Script(text, { filename }).runInThisContext()(room, load, require);
    }
    return room;
  };
};

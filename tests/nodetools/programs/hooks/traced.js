// What tracers do: each package is wrapped when it is first required.
const { Hook } = require('require-in-the-middle');

const seen = [];
new Hook(['express', 'debug', 'fs'], { internals: true }, (exports, name, folder) => {
  seen.push(`${name} ${folder ? folder.split('node_modules').length : folder}`);
  return exports;
});
require('express')().get('/', () => {});
require('fs');
console.log(seen.join('\n'));

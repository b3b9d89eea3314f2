// SPDX-License-Identifier: Apache-2.0
// Learns modules without running them (FORMAT.md, section 14.5): reads, compiles, and asks Node where their requests lead.
// Started by `velo`, never by programs.
'use strict';

const fs = require('fs');
const path = require('path');
const v8 = require('v8');
const vm = require('vm');
const Module = require('module');

const rooms = {};

// As in a program, but that everybody may see them.
function load(name) {
  if (!(name in rooms)) {
    rooms[name] = {};
    const filename = path.join(__dirname, `lib/${name}.cjs`);
    vm.compileFunction(fs.readFileSync(filename, 'latin1'), ['exports', 'load', 'require'], { filename })(rooms[name], load, require);
  }
  return rooms[name];
}

const { hexadecimal } = load('fold');
const { SCRIPT, TEXT, UNCOMPILED, IMPORTS, encode, wrapped } = load('unit');
const { reach } = load('imports');
const { identityOf, optionsOf } = load('names');

const EXPLICIT = 3;
const LITERAL = /\brequire\s*\(\s*(?:"([^"\\\n]+)"|'([^'\\\n]+)'|`([^`\\\n$]+)`)\s*\)/g;
const PARAMETERS = ['exports', 'require', 'module', '__filename', '__dirname'];
const LARGEST_SOURCE = 64 << 20;
const LARGEST_UNCOMPILED = 128 << 10; // what has to be compiled anyway, Node reads as fast as we do
const loader = vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
const builtins = new Set(Module.builtinModules);

// What Node finds in the home folder and beside itself is nobody's project, and has no place in an index.
function forgetGlobalFolders() {
  const { execPath } = process;
  delete process.env.NODE_PATH;
  process.env.HOME = '';
  process.execPath = '/-/-/node';
  Module._initPaths();
  process.execPath = execPath;
}

function resolved(from, request) {
  if (builtins.has(request) || request.startsWith('node:')) return null;
  try {
    const found = Module.createRequire(from).resolve(request);
    return path.isAbsolute(found) ? found : null;
  } catch (error) {
    return null;
  }
}

const types = new Map();

// What the nearest package.json says about CommonJS and ES modules; nothing above a `node_modules`, as in Node.
function typeOf(folder) {
  if (types.has(folder)) return types.get(folder);
  let type;
  if (path.basename(folder) !== 'node_modules') {
    let text;
    try {
      text = fs.readFileSync(path.join(folder, 'package.json'), 'utf8');
    } catch (error) {
      const parent = path.dirname(folder);
      type = parent === folder ? undefined : typeOf(parent);
    }
    if (text !== undefined) {
      try {
        type = JSON.parse(text).type;
      } catch (error) {
        type = 'damaged';
      }
    }
  }
  types.set(folder, type);
  return type;
}

// A piece of a string keeps the whole of it, and V8 would store that with the name of a script.
function flat(text) {
  return Buffer.from(text).toString();
}

// Whether bytecode names the file it was compiled from, whatever the name it is used under: V8 before 12.
function namesItsFile() {
  const text = '(() => new Error().stack)';
  const cachedData = new vm.Script(text, { filename: '/-first' }).createCachedData();
  return new vm.Script(text, { filename: '/-second', cachedData }).runInThisContext()().includes('/-first');
}

const isPlaced = namesItsFile();

function compiled(file, text) {
  const script = new vm.Script(text, { filename: file, lineOffset: -1, importModuleDynamically: loader });
  return script.createCachedData();
}

// [kind, flags, unit, source], or the reason why the file is left to Node.
function learned(file) {
  const extension = path.extname(path.basename(file));
  if (!['.js', '.cjs', '.json', ''].includes(extension)) return 'suffix';
  const status = fs.lstatSync(file);
  if (!status.isFile() || status.size > LARGEST_SOURCE) return 'not a file';
  if (fs.realpathSync(file) !== file) return 'link';
  const bytes = fs.readFileSync(file);
  const source = bytes.toString('utf8');
  if (source.charCodeAt(0) === 0xfeff || !Buffer.from(source).equals(bytes)) return 'encoding';
  if (extension === '.json') {
    JSON.parse(source);
    return [TEXT, 0, encode(TEXT, source, Buffer.alloc(0), 0), source];
  }
  const type = extension === '.cjs' ? 'commonjs' : typeOf(path.dirname(file));
  if (type === 'module' || type === 'damaged') return type;
  if (extension === '' && type !== undefined) return 'suffix';
  vm.compileFunction(source, PARAMETERS, { filename: file }); // throws what is no CommonJS
  const text = wrapped(source);
  const { imports, compiles } = reach(source);
  const isUncompiled = isPlaced && (imports || compiles);
  const flags = (imports ? IMPORTS : 0) | (isUncompiled ? UNCOMPILED : 0);
  if (isUncompiled && bytes.length > LARGEST_UNCOMPILED) return 'import() on this Node';
  const bytecode = isUncompiled ? Buffer.alloc(0) : compiled(file, text);
  return [type === 'commonjs' ? EXPLICIT : SCRIPT, flags, encode(SCRIPT, text, bytecode, flags), source];
}

function requestsOf(file, source) {
  const found = {};
  for (const match of source.matchAll(LITERAL)) {
    const request = match[1] || match[2] || match[3];
    const target = request in found ? null : resolved(file, request);
    if (target) found[request] = target;
  }
  return found;
}

function answer(record, out) {
  const at = record.indexOf('=');
  const name = record.slice(0, at);
  const value = flat(record.slice(at + 1));
  if (name === 'request') {
    const [from, request] = value.split('\t');
    return { from, request, path: resolved(from, request) };
  }
  if (name === 'main') return { main: value, path: resolved('/', value) };
  let result;
  try {
    result = learned(value);
  } catch (error) {
    result = String((error && error.code) || 'syntax');
  }
  if (typeof result === 'string') return { file: value, left: result };
  const [kind, flags, unit, source] = result;
  const offset = out.size;
  fs.writeSync(out.descriptor, unit);
  out.size += unit.length;
  return { file: value, kind, unit: [offset, unit.length], flags, requests: kind === TEXT ? {} : requestsOf(value, source) };
}

function main() {
  process.chdir('/');
  const records = fs.readFileSync(0, 'utf8').split('\0').filter(Boolean);
  const place = records.find((record) => record.startsWith('out='));
  const out = { descriptor: place ? fs.openSync(place.slice(4), 'w', 0o600) : -1, size: 0 };
  const first = {
    tag: hexadecimal(v8.cachedDataVersionTag()),
    identity: identityOf(process, optionsOf(process), Module._extensions),
    version: process.version,
    arch: process.arch,
    execPath: process.execPath,
    placed: isPlaced,
    crc: load('kept').crc32 !== null,
    frames: require('./lib/probe.cjs')(__filename, require),
  };
  forgetGlobalFolders();
  const answers = records.filter((record) => !record.startsWith('out=')).map((record) => answer(record, out));
  fs.writeFileSync(1, [first, ...answers].map((each) => JSON.stringify(each) + '\n').join(''));
}

main();

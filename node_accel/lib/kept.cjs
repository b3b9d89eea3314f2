// SPDX-License-Identifier: Apache-2.0
// Our own code as a program runs it that is served: one script, and what V8 made of it is kept in the store, so that a
// start reads one file and compiles next to nothing (FORMAT.md, section 14.7). Knows where that is, and whether it is of
// this Node and of the files beside this one; in doubt it compiles those.
'use strict';

const { lstatSync, existsSync, readFileSync, openSync, fstatSync, readSync, closeSync, constants } = require('fs');
const { Script } = require('vm');

// What is in the one script, in the order in which it is needed.
const CORE = ['sums', 'reader', 'facts', 'sources', 'packs', 'unit', 'mimic', 'serve'];
const MAGIC = 0x4f4c4556;
const VERSION = 1;
const HEADER = 32;
const LARGEST = 4 << 20;

// Node's own CRC-32: nothing else is fast before V8 has compiled it, and `zlib` as a module brings streams with it. Null
// where there is none, or where Node says that nobody should ask.
function findCrc32() {
  const major = parseInt(process.versions.node, 10);
  const { env, execArgv } = process;
  const isFrownedOn = env.NODE_PENDING_DEPRECATION || /pending.deprecation/.test(`${env.NODE_OPTIONS} ${execArgv.join(' ')}`);
  if (major < 20 || major > 26 || isFrownedOn || process.permission !== undefined) return null;
  const { crc32 } = process.binding('zlib');
  return typeof crc32 === 'function' ? crc32 : null;
}

const crc32 = findCrc32();

// `scripts` are texts and code that were kept, or null; `made` is what this run may keep instead.
class Kept {
  constructor({ home, folder, isOurs }) {
    const { execPath } = process;
    this.isOurs = isOurs;
    this.about = `${process.version} ${process.arch} ${execPath} ${folder}`;
    let name = 0;
    for (let at = 0; at < this.about.length; at++) name = (Math.imul(name, 31) + this.about.charCodeAt(at)) | 0;
    this.path = `${home}/run/rooms-${process.version}-${(name >>> 0).toString(16)}.node`;
    for (const path of [execPath, ...CORE.map((each) => `${folder}${each}.cjs`)]) {
      const { size, mtimeMs, ctimeMs, ino } = lstatSync(path);
      this.about += `\n${size} ${mtimeMs} ${ctimeMs} ${ino}`;
    }
    this.made = [];
    this.scripts = crc32 !== null && existsSync(this.path) ? this.read() : null;
    this.isWanted = crc32 !== null && this.scripts === null;
    this.rooms = this.script(`${folder}core`, 0, this.scripts === null ? textOf(folder) : this.scripts[0].text);
  }

  // What a script of ours comes to.
  script(filename, lineOffset, text) {
    const found = this.scripts === null ? undefined : this.scripts.find((each) => each.text === text);
    const script = new Script(text, { filename, lineOffset, cachedData: found && found.code });
    if (script.cachedDataRejected) this.isWanted = false; // V8 has other options: none of ours to change.
    this.made.push({ text, script });
    return script.runInThisContext();
  }

  read() {
    const descriptor = openSync(this.path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    let bytes;
    try {
      const status = fstatSync(descriptor);
      const { size } = status;
      if (!status.isFile() || !this.isOurs(status) || size < HEADER || size > LARGEST) return null;
      bytes = Buffer.allocUnsafeSlow(size);
      if (readSync(descriptor, bytes, 0, size, 0) !== size) return null;
    } finally {
      closeSync(descriptor);
    }
    const words = new Uint32Array(bytes.buffer, 0, HEADER / 4);
    if (words[0] !== MAGIC || words[1] !== VERSION || words[2] !== bytes.length) return null;
    if (words[3] !== crc32(bytes.subarray(16), 0)) return null;
    const begin = HEADER + words[4];
    const { about, scripts } = JSON.parse(bytes.utf8Slice(HEADER, begin));
    if (about !== this.about) return null;
    return scripts.map(([text, textLength, code, codeLength]) => ({
      text: bytes.latin1Slice(begin + text, begin + text + textLength),
      code: bytes.subarray(begin + code, begin + code + codeLength),
    }));
  }

  // What to keep: with all the functions that were called by now.
  encoded() {
    const pieces = [];
    let size = 0;
    function add(bytes) {
      const at = size;
      pieces.push(bytes, Buffer.alloc(-bytes.length & 15));
      size += (bytes.length + 15) & ~15;
      return at;
    }
    const scripts = this.made.map(({ text, script }) => {
      const code = script.createCachedData();
      return [add(Buffer.from(text, 'latin1')), text.length, add(code), code.length];
    });
    const header = Buffer.from(JSON.stringify({ about: this.about, scripts }));
    const padding = Buffer.alloc(-header.length & 15, ' ');
    const bytes = Buffer.concat([Buffer.alloc(HEADER), header, padding, ...pieces]);
    bytes.set(new Uint8Array(Uint32Array.of(MAGIC, VERSION, bytes.length, 0, header.length + padding.length).buffer));
    bytes.writeUInt32LE(crc32(bytes.subarray(16), 0), 12);
    return bytes;
  }
}

function textOf(folder) {
  const rooms = CORE.map((name) => `${name}: function (exports, load, require) {${readFileSync(`${folder}${name}.cjs`, 'latin1')}\n}`);
  return `({${rooms.join(',\n')}})`;
}

exports.crc32 = crc32;
exports.Kept = Kept;

// SPDX-License-Identifier: Apache-2.0
// Units (FORMAT.md, section 14.2): a module's text and bytecode, in one piece. Knows the bytes, not where they lie.
// The surprise: the wrapper stands on a line of its own, so that lines, columns and the line that Node shows of an
// error are those of the source.
'use strict';

const { checksum, hasChecksum } = load('sums');

const SCRIPT = 1;
const TEXT = 2;
const CAPTURED = 1;
const UNCOMPILED = 2;
const IMPORTS = 4;
const HEADER = 32;
const BEFORE = '(function (exports, require, module, __filename, __dirname) {\n';
const AFTER = '\n})';

// The text of a script's unit. A `#!` is skipped only at the very beginning; a comment of its length does the same.
function wrapped(source) {
  return BEFORE + (source.startsWith('#!') ? '//' + source.slice(2) : source) + AFTER;
}

// A unit's bytes. `bytecode` may be empty.
function encode(kind, text, bytecode, flags) {
  const wide = /[^\u0000-\u00ff]/.test(text);
  const textLength = wide ? text.length * 2 : text.length;
  const place = bytecode.length ? (HEADER + textLength + 15) & ~15 : 0;
  const end = place ? place + bytecode.length : HEADER + textLength;
  const bytes = Buffer.alloc((end + 15) & ~15);
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  words[2] = kind;
  words[3] = wide ? 1 : 0;
  words[4] = textLength;
  words[5] = place;
  words[6] = bytecode.length;
  words[7] = flags;
  bytes.write(text, HEADER, wide ? 'utf16le' : 'latin1');
  if (place) bytecode.copy(bytes, place);
  [words[0], words[1]] = checksum(bytes, 8, bytes.length);
  return bytes;
}

// {kind, text, bytecode, flags} of a unit that lies in `bytes`, a multiple of 16 into their memory; null if it is damaged.
function decode(bytes, offset, length) {
  if (length < HEADER || length % 8 || offset + length > bytes.length) return null;
  const words = new Int32Array(bytes.buffer, bytes.byteOffset + offset, HEADER / 4);
  const textLength = words[4];
  const place = words[5];
  const size = words[6];
  if (textLength < 0 || size < 0 || HEADER + textLength > length || (place && (place < HEADER + textLength || place + size > length))) return null;
  if (!hasChecksum(bytes, offset + 8, offset + length, words[0], words[1])) return null;
  const begin = offset + HEADER;
  return {
    kind: words[2],
    text: words[3] ? bytes.ucs2Slice(begin, begin + textLength) : bytes.latin1Slice(begin, begin + textLength),
    bytecode: place ? bytes.subarray(offset + place, offset + place + size) : undefined,
    flags: words[7],
  };
}

// `import()`, as far as text can tell.
const IMPORT = /\bimport\s*(?:\/\*[^]*?\*\/\s*|\/\/.*\s*)*\(/;

Object.assign(exports, { SCRIPT, TEXT, CAPTURED, UNCOMPILED, IMPORTS, IMPORT, BEFORE, AFTER, wrapped, encode, decode });

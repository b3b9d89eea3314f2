// SPDX-License-Identifier: Apache-2.0
// Fold (FORMAT.md, section 14): the checksum of what Node programs read. Finds accidents, as fast as memory is read.
'use strict';

const SEED_A = 0x56454c4f;
const SEED_B = 0x4e4f4445;
const MULTIPLIER_A = 0x9e3779b1;
const MULTIPLIER_B = 0x85ebca6b;

// Of pairs of words `from` to `to` (both even), an Int32Array: unsigned words would be numbers on the heap: the two words of the fold, in an array that the next call does not touch.
function foldWords(words, from, to) {
  let a = SEED_A | 0;
  let b = SEED_B | 0;
  for (let at = from; at < to; at += 2) {
    a = Math.imul(((a << 5) | (a >>> 27)) ^ words[at], MULTIPLIER_A);
    b = Math.imul(((b << 5) | (b >>> 27)) ^ words[at + 1], MULTIPLIER_B);
  }
  b = Math.imul(b ^ (a >>> 15), MULTIPLIER_A);
  a = Math.imul(a ^ (b >>> 13), MULTIPLIER_B);
  return [a >>> 0, b >>> 0];
}

// Of any text, in UTF-8: 16 hexadecimal digits.
function foldText(text) {
  const size = Buffer.byteLength(text);
  const padded = Buffer.alloc((size + 7) & ~7);
  padded.write(text);
  const words = new Int32Array(padded.buffer, padded.byteOffset, padded.length / 4);
  const [a, b] = foldWords(words, 0, words.length);
  return hexadecimal(a) + hexadecimal(b);
}

function hexadecimal(word) {
  return (word + 0x100000000).toString(16).slice(1);
}

exports.foldWords = foldWords;
exports.foldText = foldText;
exports.hexadecimal = hexadecimal;

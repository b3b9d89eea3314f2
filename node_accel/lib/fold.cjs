// SPDX-License-Identifier: Apache-2.0
// Fold, which makes names of texts (FORMAT.md, section 14).
'use strict';

const SEED_A = 0x56454c4f;
const SEED_B = 0x4e4f4445;
const MULTIPLIER_A = 0x9e3779b1;
const MULTIPLIER_B = 0x85ebca6b;

// Of any text, in UTF-8: 16 hexadecimal digits.
function foldText(text) {
  const size = Buffer.byteLength(text);
  const padded = Buffer.alloc((size + 7) & ~7);
  padded.write(text);
  let a = SEED_A;
  let b = SEED_B;
  for (let at = 0; at < padded.length; at += 8) {
    a = Math.imul(((a << 5) | (a >>> 27)) ^ padded.readInt32LE(at), MULTIPLIER_A);
    b = Math.imul(((b << 5) | (b >>> 27)) ^ padded.readInt32LE(at + 4), MULTIPLIER_B);
  }
  b = Math.imul(b ^ (a >>> 15), MULTIPLIER_A);
  a = Math.imul(a ^ (b >>> 13), MULTIPLIER_B);
  return hexadecimal(a >>> 0) + hexadecimal(b >>> 0);
}

function hexadecimal(word) {
  return (word + 0x100000000).toString(16).slice(1);
}

exports.foldText = foldText;
exports.hexadecimal = hexadecimal;

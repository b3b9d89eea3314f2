// SPDX-License-Identifier: Apache-2.0
// The checksum of what Node programs read from the store (FORMAT.md, section 14).
'use strict';

const { crc32 } = load('kept');

const CRC = 0x43524333; // stands where the second sum does in the other kind
const SEED_A = 0x56454c4f;
const SEED_B = 0x4e4f4445;

// Of bytes from `from` to `to`, both multiples of 8: two words.
function checksum(bytes, from, to) {
  if (crc32 !== null) return [crc32(bytes.subarray(from, to), 0) | 0, CRC];
  return sums(new Int32Array(bytes.buffer, bytes.byteOffset + from, (to - from) / 4));
}

function hasChecksum(bytes, from, to, first, second) {
  if (crc32 !== null) return second === CRC && (crc32(bytes.subarray(from, to), 0) | 0) === first;
  const [a, b] = checksum(bytes, from, to);
  return a === first && b === second;
}

// Signed words: others would be numbers on the heap. Two additions and no call, because it runs long before V8 compiles it.
function sums(words) {
  let a = SEED_A;
  let b = SEED_B;
  for (let at = 0; at < words.length; at += 2) {
    a = (a + words[at]) | 0;
    b = (b + a) | 0;
    a = (a + words[at + 1]) | 0;
    b = (b + a) | 0;
  }
  return [a, b];
}

exports.checksum = checksum;
exports.hasChecksum = hasChecksum;

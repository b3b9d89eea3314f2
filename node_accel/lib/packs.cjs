// SPDX-License-Identifier: Apache-2.0
// Reads units out of packs. Node maps no files: a pack is read in windows, which grow while modules are asked for in the
// order in which they lie there, and shrink to the unit itself otherwise.
'use strict';

const fs = require('fs');
const { decode } = load('unit');

const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
const BIG = { bigint: true };
const SMALLEST = 128 << 10;
const LARGEST = 2 << 20;
const NEAR = 64 << 10;

exports.Packs = class Packs {
  constructor(index, session) {
    this.index = index;
    this.session = session;
    this.windows = new Map();
  }

  // The unit, or null: the pack is gone, changed, somebody else's, or the unit is damaged.
  unit(number, offset, length) {
    let window = this.windows.get(number);
    if (window === undefined) {
      window = { begin: 0, end: 0, ahead: SMALLEST / 4, bytes: null };
      this.windows.set(number, window);
    }
    if (offset < window.begin || offset + length > window.end) this.read(number, window, offset, length);
    return window.bytes === null ? null : decode(window.bytes, offset - window.begin, length);
  }

  forget() {
    this.windows.clear();
  }

  // Opened for each window: programs see the numbers of the descriptors that they get.
  read(number, window, offset, length) {
    const { index, session } = this;
    const isNext = offset >= window.begin && offset <= window.end + NEAR;
    window.ahead = isNext ? Math.min(window.ahead * 4, LARGEST) : SMALLEST / 4;
    window.bytes = null;
    window.begin = window.end = 0;
    const name = index.string(index.packs[number * 2]);
    if (!/^[0-9a-f]+\/[0-9a-f]+\.pack$/.test(name)) return;
    const descriptor = fs.openSync(`${session.home}/packs/v1/${name}`, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    try {
      const status = fs.fstatSync(descriptor, BIG);
      const isSound = status.isFile() && session.isOurs(status) && index.isStamped(index.packs[number * 2 + 1], status);
      const left = Number(status.size) - offset;
      if (!isSound || length > left) return;
      const size = Math.min(isNext ? Math.max(length, window.ahead) : length, left);
      const bytes = Buffer.allocUnsafeSlow(size);
      let read = 0;
      while (read < size) {
        const more = fs.readSync(descriptor, bytes, read, size - read, offset + read);
        if (more === 0) return;
        read += more;
      }
      window.bytes = bytes;
      window.begin = offset;
      window.end = offset + size;
    } finally {
      fs.closeSync(descriptor);
    }
  }
};

// SPDX-License-Identifier: Apache-2.0
// Reads units out of packs. Node maps no files: a pack is read in windows while modules are asked for in the order in which
// they lie there, and unit by unit otherwise. The surprise: all windows of a pack are the same memory, because memory that is
// new to the process costs more than what is read into it. So a unit is worth something only until the next one is asked for.
'use strict';

const fs = require('fs');
const { decode } = load('unit');

const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
const BIG = { bigint: true };
const SMALLEST = 128 << 10;
const LARGEST = 512 << 10;
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
      window = { begin: offset, end: offset, ahead: SMALLEST, memory: null };
      this.windows.set(number, window);
    }
    const isInside = offset >= window.begin && offset + length <= window.end;
    if (!isInside && !this.read(number, window, offset, length)) return null;
    return decode(window.memory, offset - window.begin, length);
  }

  forget() {
    this.windows.clear();
  }

  // Opened for each window: programs see the numbers of the descriptors that they get.
  read(number, window, offset, length) {
    const { index, session } = this;
    const isNext = offset >= window.begin && offset <= window.end + NEAR;
    const ahead = isNext ? window.ahead : 0;
    window.ahead = isNext ? LARGEST : SMALLEST;
    window.begin = window.end = 0;
    const name = index.string(index.packs[number * 2]);
    if (!/^[0-9a-f]+\/[0-9a-f]+\.pack$/.test(name)) return false;
    const descriptor = fs.openSync(`${session.home}/packs/v1/${name}`, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    try {
      const status = fs.fstatSync(descriptor, BIG);
      const isSound = status.isFile() && session.isOurs(status) && index.isStamped(index.packs[number * 2 + 1], status);
      const left = Number(status.size) - offset;
      if (!isSound || length > left) return false;
      const size = Math.min(Math.max(length, ahead), left);
      if (window.memory === null || window.memory.length < size) window.memory = Buffer.allocUnsafeSlow(size);
      for (let read = 0; read < size; ) {
        const more = fs.readSync(descriptor, window.memory, read, size - read, offset + read);
        if (more === 0) return false;
        read += more;
      }
      window.begin = offset;
      window.end = offset + size;
      return true;
    } finally {
      fs.closeSync(descriptor);
    }
  }
};

// SPDX-License-Identifier: Apache-2.0
// Whether the file system is still as the index describes it (FORMAT.md, section 14.3). Each fact is asked for once while
// a `require` is under way, which is as long as Node itself believes what `stat` said.
'use strict';

const { lstatSync } = require('fs');

const BIG = { bigint: true, throwIfNoEntry: false };
const ABSENT = 0;
const SAME = 1;
const UNCHANGED = 2;
const STAT = 0;
const ROOT = 1;
const NONE = 2;
const MODES = { stat: STAT, root: ROOT, none: NONE };

exports.Facts = class Facts {
  constructor(index, wanted) {
    this.index = index;
    this.forced = MODES[wanted];
    this.turn = 1;
    this.known = new Int32Array(index.facts.length / 4); // the turn in which it held, negative: in which it did not
    this.knownLists = new Int32Array(index.lists.length); // the turn in which all of a list held
    this.trees = new Map();
  }

  // From now on everything is asked for again.
  forget() {
    this.turn++;
  }

  // How files of this tree are checked; a tree that is asked for once is asked now.
  mode(tree) {
    let mode = this.trees.get(tree);
    if (mode === undefined) {
      const recorded = this.index.trees[tree * 4 + 1];
      mode = this.forced === undefined ? recorded : this.forced;
      if (mode === ROOT && !this.all(this.index.trees[tree * 4 + 2], true)) mode = STAT;
      this.trees.set(tree, mode);
    }
    return mode;
  }

  // Whether the file at `path` is the one with that stamp.
  isFresh(tree, path, stamp) {
    return this.mode(tree) !== STAT || this.index.isStamped(stamp, lstatSync(path, BIG));
  }

  all(list, isAsked) {
    if (this.knownLists[list] === this.turn) return true;
    const { lists } = this.index;
    const end = list + 1 + lists[list];
    if (!(end <= lists.length)) return false;
    for (let at = list + 1; at < end; at++) {
      if (!this.holds(lists[at], isAsked)) return false;
    }
    this.knownLists[list] = this.turn;
    return true;
  }

  holds(fact, isAsked) {
    const known = this.known[fact];
    if (known === this.turn) return true;
    if (known === -this.turn || known === undefined) return false;
    const at = fact * 4;
    const { facts } = this.index;
    const parent = facts[at + 1];
    const kind = facts[at + 2];
    const holds =
      (parent === 0 || (parent - 1 < fact && this.holds(parent - 1, isAsked))) &&
      ((!isAsked && this.mode(kind >>> 8) !== STAT) || this.asks(at, kind & 15, (kind >>> 4) & 15));
    this.known[fact] = holds ? this.turn : -this.turn;
    return holds;
  }

  asks(at, kind, type) {
    const { index } = this;
    let status;
    try {
      status = lstatSync(index.string(index.facts[at]), BIG);
    } catch (error) {
      return false;
    }
    if (kind === ABSENT || status === undefined) return kind === ABSENT && status === undefined;
    if (((Number(status.mode) >> 12) & 15) !== type) return false;
    const stamp = index.facts[at + 3];
    const { stamps } = index;
    if (stamps[stamp * 4 + 2] !== BigInt.asIntN(64, status.ino)) return false;
    return (
      kind === SAME ||
      (kind === UNCHANGED &&
        stamps[stamp * 4] === status.mtimeNs &&
        stamps[stamp * 4 + 1] === status.ctimeNs &&
        (type !== 8 || stamps[stamp * 4 + 3] === status.size))
    );
  }
};

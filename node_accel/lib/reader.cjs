// SPDX-License-Identifier: Apache-2.0
// Reads an index (FORMAT.md, section 14.3). Nothing is parsed: words are looked at where they lie, requests of a folder
// become a map when the folder is first asked for.
'use strict';

const fs = require('fs');
const { hasChecksum } = load('sums');

const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
const BIG = { bigint: true, throwIfNoEntry: false };
const LARGEST = 256 << 20;
const FIRST_SECTION = 200;
const WORDS_OF = [8, 4, 2, 4, 5, 4, 8, 1, 1, 0]; // of one record of each section, in their order

exports.open = function (path, session) {
  let descriptor;
  try {
    descriptor = fs.openSync(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  } catch (error) {
    return null;
  }
  let bytes;
  try {
    const status = fs.fstatSync(descriptor);
    if (!status.isFile() || !session.isOurs(status) || status.size < FIRST_SECTION || status.size > LARGEST || status.size % 8) {
      return null;
    }
    bytes = Buffer.allocUnsafeSlow(status.size);
    if (fs.readSync(descriptor, bytes, 0, status.size, 0) !== status.size) return null;
  } finally {
    fs.closeSync(descriptor);
  }
  const words = new Uint32Array(bytes.buffer, 0, bytes.length / 4);
  if (bytes.latin1Slice(0, 8) !== 'VELONODE' || words[2] !== 2 || words[3] > 1) return null;
  if (words[4] !== bytes.length || words[5] !== WORDS_OF.length) return null;
  if (!hasChecksum(bytes, 32, bytes.length, words[6] | 0, words[7] | 0)) return null;
  const sections = [];
  for (let at = 0; at < WORDS_OF.length; at++) {
    const offset = words[8 + 2 * at];
    const length = words[9 + 2 * at];
    if (offset < FIRST_SECTION || offset % 8 || offset + length > bytes.length || length % (4 * WORDS_OF[at] || 1)) return null;
    sections.push({ offset, length, words: words.subarray(offset / 4, (offset + length) / 4) });
  }
  const index = new Index(bytes, words, sections);
  const isItsOwn = index.string(words[28]) === session.identity && index.string(words[29]) === session.subject;
  if (!isItsOwn || index.string(words[30]) !== process.execPath) return null;
  return index.isStamped(words[31], fs.lstatSync(process.execPath, BIG)) ? index : null;
};

class Index {
  constructor(bytes, words, sections) {
    const [stamps, trees, packs, facts, folders, resolutions, files, lists, offsets, text] = sections;
    this.words = words;
    this.stamps = new BigInt64Array(bytes.buffer, stamps.offset, stamps.length / 8);
    this.trees = trees.words;
    this.packs = packs.words;
    this.facts = facts.words;
    this.folderWords = folders.words;
    this.resolutions = resolutions.words;
    this.files = files.words;
    this.lists = lists.words;
    this.offsets = offsets.words;
    const end = text.offset + text.length;
    this.text = words[3] ? bytes.ucs2Slice(text.offset, end) : bytes.latin1Slice(text.offset, end);
    this.folders = new Map();
    for (let at = 0; at < this.folderWords.length; at += 5) {
      this.folders.set(this.string(this.folderWords[at]), { at, requests: null });
    }
  }

  string(number) {
    return this.text.slice(this.offsets[number], this.offsets[number + 1]);
  }

  // The path that a resolution leads to.
  target(at) {
    const file = this.resolutions[at + 2];
    if (file === 0) return this.string(this.resolutions[at + 1]);
    const words = (file - 1) * 8;
    const folder = this.folderOf(file - 1);
    return `${folder === '/' ? '' : folder}/${this.string(this.files[words])}`;
  }

  // The folder in which a file is.
  folderOf(number) {
    return this.string(this.folderWords[this.files[number * 8 + 1] * 5]);
  }

  // Where a request made in a folder leads: the number of its resolution in words, or undefined.
  resolution(folder, request) {
    if (folder.requests === null) {
      folder.requests = new Map();
      const first = this.folderWords[folder.at + 1] * 4;
      const end = first + this.folderWords[folder.at + 2] * 4;
      for (let at = first; at < end; at += 4) folder.requests.set(this.string(this.resolutions[at]), at);
    }
    return folder.requests.get(request);
  }

  // 1 + the number of a file, or 0.
  file(path, name) {
    const folder = this.folders.get(path);
    if (folder === undefined) return 0;
    const first = this.folderWords[folder.at + 3];
    const end = first + this.folderWords[folder.at + 4];
    for (let number = first; number < end; number++) {
      if (this.string(this.files[number * 8]) === name) return number + 1;
    }
    return 0;
  }

  // Whether what the kernel says now is what the stamp says: mtime, ctime, inode, size.
  isStamped(number, status) {
    const at = number * 4;
    return (
      status !== undefined &&
      this.stamps[at] === status.mtimeNs &&
      this.stamps[at + 1] === status.ctimeNs &&
      this.stamps[at + 2] === BigInt.asIntN(64, status.ino) &&
      this.stamps[at + 3] === status.size
    );
  }

  // Script, line and column of the frames that tracebacks show.
  frames() {
    const frames = [];
    for (let at = 32; at < 50; at += 3) frames.push([this.string(this.words[at]), this.words[at + 1], this.words[at + 2]]);
    return frames;
  }
}

// SPDX-License-Identifier: Apache-2.0
// Who knows a request: the start index, which knows what this program loaded before; and, where that one does not, the
// index of the tree that the requiring file is in, which `velo ingest` made (FORMAT.md, section 14.1).
'use strict';

const { lstatSync, realpathSync } = require('fs');
const { dirname, basename } = require('path');
const { Facts } = load('facts');
const { Packs } = load('packs');
const { indexName } = load('names');

const MODULES = '/node_modules';

exports.Sources = class Sources {
  constructor(session) {
    this.session = session;
    this.start = session.index === null ? null : this.source(session.index);
    this.trees = new Map(); // by their folder
    this.treesOf = new Map(); // by the folder that asks
    this.places = new Map(); // by their path
    // Before anything was learned the real path of the program says which tree there may be.
    const path = this.start === null ? realPath(session.main) : '';
    this.first = this.start || (path === '' ? null : this.tree(dirname(path)));
  }

  source(index) {
    return { index, facts: new Facts(index, process.env.VELO_CHECK), packs: new Packs(index, this.session) };
  }

  forget() {
    if (this.start !== null) this.start.facts.forget();
    for (const source of this.trees.values()) if (source !== null) source.facts.forget();
  }

  // The program goes on by itself: what was read ahead is given back.
  rest() {
    if (this.start !== null) this.start.packs.forget();
    for (const source of this.trees.values()) if (source !== null) source.packs.forget();
  }

  // A folder, as its modules see it: `paths` are where they look for packages, `known` is where requests of theirs led.
  place(path) {
    let place = this.places.get(path);
    if (place === undefined) {
      place = { path, paths: this.paths(path), known: new Map() };
      this.places.set(path, place);
    }
    return place;
  }

  // What Node says: a `node_modules` in this folder and in each above it, but in none that has that name.
  paths(path) {
    const slash = path.lastIndexOf('/');
    if (slash < 0 || path === '/') return [MODULES];
    const above = this.place(path.slice(0, slash) || '/').paths;
    return path.slice(slash) === MODULES ? above : [path + MODULES, ...above];
  }

  // {source, at} of what is asked in a folder, or null.
  resolution(path, request) {
    let found = this.start === null ? null : resolutionIn(this.start, path, request);
    if (found === null) {
      const source = this.tree(path);
      if (source !== null) found = resolutionIn(source, path, request);
    }
    return found;
  }

  // The same of the program itself, and of other absolute paths.
  main(main) {
    return this.start === null ? null : resolutionIn(this.start, '', main);
  }

  // {source, file} of a path; file is 1 + its number in the index, or 0.
  file(path) {
    const folder = dirname(path);
    const name = basename(path);
    let source = this.start;
    let file = source === null ? 0 : source.index.file(folder, name);
    if (file === 0) {
      source = this.tree(folder);
      file = source === null ? 0 : source.index.file(folder, name);
    }
    return { source, file };
  }

  tree(path) {
    let source = this.treesOf.get(path);
    if (source === undefined) {
      source = this.open(path);
      this.treesOf.set(path, source);
    }
    return source;
  }

  open(path) {
    const { session } = this;
    const folder = treeFolder(path);
    if (folder === null) return null;
    let source = this.trees.get(folder);
    if (source === undefined) {
      const place = `${session.home}/indexes/v1/${indexName('tree', session.identity, folder)}.index`;
      const isThere = lstatSync(place, { throwIfNoEntry: false }) !== undefined;
      const index = isThere ? load('reader').open(place, { ...session, subject: folder }) : null;
      source = index === null ? null : this.source(index);
      this.trees.set(folder, source);
    }
    return source;
  }
};

function resolutionIn(source, path, request) {
  const folder = source.index.folders.get(path);
  const at = folder && source.index.resolution(folder, request);
  return at === undefined ? null : { source, at };
}

// Empty where Node has to add a suffix, or to complain.
function realPath(main) {
  const status = lstatSync(main, { throwIfNoEntry: false });
  return status === undefined ? '' : realpathSync(main);
}

// What is before the first `node_modules` of the path, or the nearest folder upward that has one.
function treeFolder(path) {
  const at = `${path}/`.indexOf(`${MODULES}/`);
  if (at >= 0) return path.slice(0, at) || '/';
  for (let folder = path; ; folder = dirname(folder)) {
    if (lstatSync(folder === '/' ? MODULES : folder + MODULES, { throwIfNoEntry: false })) return folder;
    if (folder === '/') return null;
  }
}

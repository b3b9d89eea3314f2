// SPDX-License-Identifier: Apache-2.0
// What an index is called and whom it is for (FORMAT.md, section 14.1). Pure but for `process`, which it is given.
'use strict';

const { foldText } = load('fold');

// Options whose next word belongs to them, or that say what runs and not how.
const OWN_WORDS = /^(?:-e|-p|-pe|-r|--eval|--print|--require)(?:=|$)/;

function optionsOf(process) {
  const words = (process.env.NODE_OPTIONS || '').split(' ').concat(process.execArgv);
  const kept = words.filter((word) => word.charCodeAt(0) === 45 && !OWN_WORDS.test(word));
  return Array.from(new Set(kept)).sort();
}

function identityOf(process, options, extensions) {
  const names = Object.keys(extensions).join(',');
  return `node\n${process.version}\n${process.arch}\n${options.join(' ')}\n${names}`;
}

// Scripts share an index with those beside them; a command without a suffix has its own.
function subjectOf(main) {
  const slash = main.lastIndexOf('/');
  return /.\.[cm]?[jt]s$/.test(main.slice(slash + 1)) ? main.slice(0, slash) || '/' : main;
}

function indexName(kind, identity, subject) {
  return `${kind}-${foldText(`${identity}\0${subject}`)}`;
}

exports.optionsOf = optionsOf;
exports.identityOf = identityOf;
exports.subjectOf = subjectOf;
exports.indexName = indexName;

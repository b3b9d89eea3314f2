// SPDX-License-Identifier: Apache-2.0
// Decides, once per thread, whether this program is served, and from which index. Whatever is not known to leave
// programs as they are makes us stand aside.
'use strict';

const { lstatSync, readdirSync } = require('fs');
const { optionsOf, identityOf, subjectOf, indexName } = load('names');

// Options that change neither how modules are found and read nor what is seen of it. All others: not our business.
const HARMLESS = new RegExp(
  '^--(?:max-old-space-size|max-semi-space-size|min-semi-space-size|max-heap-size|stack-size|stack-trace-limit|expose-gc|' +
    'no-warnings|no-deprecation|trace-deprecation|trace-warnings|trace-uncaught|throw-deprecation|' +
    'disable-warning|unhandled-rejections|max-http-header-size|dns-result-order|network-family-autoselection|' +
    'no-network-family-autoselection|tls-[a-z0-9.-]+|use-openssl-ca|use-bundled-ca|use-system-ca|' +
    'openssl-(?:legacy-provider|config|shared-config)|title|icu-data-dir|no-experimental-fetch|' +
    'no-experimental-global-[a-z]+|no-node-snapshot|huge-max-old-generation-size)(?:=|$)'
);
// Of Node, which change the loader or measure what runs.
const VARIABLES = [
  'NODE_PATH',
  'NODE_V8_COVERAGE',
  'NODE_PRESERVE_SYMLINKS',
  'NODE_PRESERVE_SYMLINKS_MAIN',
  'NODE_DEBUG',
  'NODE_PENDING_DEPRECATION',
];

function isSet(value) {
  return value !== undefined && value !== '' && value !== '0';
}

// Why nothing is served, or ''.
function reasonAgainst(process, options) {
  const odd = options.find((option) => !HARMLESS.test(option.replace(/_/g, '-')));
  if (odd !== undefined) return `option ${odd}`;
  const variable = VARIABLES.find((name) => isSet(process.env[name]));
  if (variable !== undefined) return `variable ${variable}`;
  if (process.permission !== undefined) return 'permission model';
  if (process.sourceMapsEnabled) return 'source maps';
  return '';
}

// Whether anything was ingested.
function hasTrees(indexes) {
  return lstatSync(indexes, { throwIfNoEntry: false }) && readdirSync(indexes).some((name) => name.startsWith('tree-'));
}

// What lies in the store is executed: nobody else may write to it.
function isOurs(status) {
  return (Number(status.uid) === 0 || Number(status.uid) === process.geteuid()) && (Number(status.mode) & 0o022) === 0;
}

// The user's store, or ''.
function findStore(env) {
  const home = env.VELO_HOME || (env.XDG_CACHE_HOME || (env.HOME && `${env.HOME}/.cache`) || '') + '/velo';
  if (home.charCodeAt(0) !== 47 || home === '/velo') return '';
  const status = lstatSync(home, { throwIfNoEntry: false });
  return status && isOurs(status) ? home : '';
}

// A worker learns what its program is after its preloads, and then looks for `runMain`; one that is given text does not.
exports.start = function (own, folder, isWorker) {
  if (!isWorker) {
    // From 22 on V8 knows the loader's own functions by another name.
    begin(own, folder, parseInt(process.versions.node, 10) >= 22);
    return;
  }
  // Its options are its parent's, where they do not say otherwise; NODE_OPTIONS may have changed meanwhile.
  if (!(process.env.NODE_OPTIONS || '').includes(own.filename)) return;
  const isOfObject = new Error().stack.includes(' Object..js '); // 20 is of two minds: its workers come from no snapshot.
  const Module = own.constructor;
  const description = Object.getOwnPropertyDescriptor(Module, 'runMain');
  function restore(value) {
    Object.defineProperty(Module, 'runMain', { __proto__: null, ...description, value });
  }
  Object.defineProperty(Module, 'runMain', {
    __proto__: null,
    configurable: true,
    enumerable: description.enumerable,
    get() {
      restore(description.value);
      try {
        begin(own, folder, isOfObject);
      } catch (error) {
        // A plain worker.
      }
      return Module.runMain;
    },
    set: restore,
  });
};

function begin(own, folder, isOfObject) {
  const { env } = process;
  const home = findStore(env);
  if (!home) return;
  const Module = own.constructor;
  const options = optionsOf(process);
  const reason = reasonAgainst(process, options);
  const hasStatistics = isSet(env.VELO_STATS);
  // What -e, a pipe or a prompt brings has no file, and its `require` is Node's own.
  const isScript = process._eval == null && typeof process.argv[1] === 'string' && process.argv[1].charCodeAt(0) === 47;
  if ((reason || !isScript) && !hasStatistics) return;
  const identity = identityOf(process, options, Module._extensions);
  const subject = subjectOf(isScript ? process.argv[1] : '/-');
  const session = {
    own,
    Module,
    home,
    options,
    identity,
    subject,
    main: isScript ? process.argv[1] : '', // `npx` writes another one there
    name: indexName('start', identity, subject),
    folder,
    isOurs,
    kept: null,
    mayWrite: !isSet(env.VELO_READONLY),
    index: null,
    counts: { served: 0, resolved: 0, deferred: 0, stale: 0, native: 0, errors: 0, reasons: {} },
    captured: [],
    watchExit: exports.watchExit,
    isOfObject,
    missed: new Map(),
  };
  if (reason || !isScript) {
    session.counts.reasons[reason || 'no script'] = 1;
    session.mayWrite = false;
  } else {
    const indexes = `${home}/indexes/v1`;
    const path = `${indexes}/${session.name}.index`;
    const isKnown = lstatSync(path, { throwIfNoEntry: false });
    if (isKnown || hasTrees(indexes)) {
      session.kept = new (load('kept').Kept)(session);
      load.core = session.kept.rooms;
      if (isKnown) session.index = load('reader').open(path, session);
      load('serve').serve(session);
    }
  }
  const isWanting = session.index === null || (session.kept !== null && session.kept.isWanted);
  if (hasStatistics || (isWanting && session.mayWrite)) exports.watchExit(session);
}

// Once: `exit` listeners can be counted by programs, so there is one only if there is something to say.
exports.watchExit = function (session) {
  if (session.isWatched) return;
  session.isWatched = true;
  process.once('exit', () => {
    try {
      load('farewell').farewell(session);
    } catch (error) {
      // The program has ended: nobody needs to know.
    }
  });
};

// SPDX-License-Identifier: Apache-2.0
// What is done when the program has ended: a line of statistics if asked, and notes for the learner, who is started
// detached (FORMAT.md, section 14.4). Loaded at exit only. The program's results are out by now, but its exit is still
// waited for: nothing here may block.
'use strict';

const fs = require('fs');
const { appendLine } = load('log');
const { foldText, hexadecimal } = load('fold');
const { SCRIPT, CAPTURED, encode } = load('unit');

const MOST_FILES = 20000;
const MOST_NOTES = 64;
const LONGEST_CAPTURE = 400; // ms: serialising what a program compiled, once in its life
const LARGEST_CAPTURE = 256 << 20;
const STARTED_FOR = 60; // seconds
const LONGEST_PAUSE = 12; // powers of two, as in the Python hook
const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = fs.constants;

// Node cannot make an error where a program has put one of its properties on all objects: it aborts.
const OF_ERRORS = ['path', 'dest', 'code', 'errno', 'syscall', 'message', 'stack'];

exports.farewell = function (session) {
  if (OF_ERRORS.some((name) => name in Object.prototype)) return;
  const target = process.env.VELO_STATS;
  if (target !== undefined && target !== '' && target !== '0') appendLine(target, JSON.stringify(statistics(session)));
  if (!session.mayWrite) return;
  try {
    learn(session);
  } finally {
    if (session.kept !== null && session.kept.isWanted && session.counts.served > 0) keep(session.kept);
  }
};

// Our own scripts, so that the next programs of this Node need not compile them (FORMAT.md, section 14.7).
function keep(kept) {
  const temporary = `${kept.path}.${unique()}.tmp`;
  write(temporary, kept.encoded());
  fs.renameSync(temporary, kept.path);
}

function unique() {
  return `${process.pid}.${Math.floor(Math.random() * 2 ** 40).toString(36)}`;
}

function statistics(session) {
  const { counts } = session;
  return {
    runtime: 'node',
    pid: process.pid,
    version: process.version,
    argv: process.argv,
    served: counts.served,
    resolved: counts.resolved,
    deferred: counts.deferred,
    stale: counts.stale,
    native: counts.native,
    errors: counts.errors,
    wanted: session.missed.size + (session.index === null ? filesOf(session).length : 0),
    captured: session.captured.length,
    reasons: counts.reasons,
  };
}

// The modules that came from files, in the order in which they were loaded.
function filesOf(session) {
  const { mainModule } = process;
  if (mainModule === undefined) return []; // An ES module: what it loads it does not ask us for.
  // One that failed is in no cache.
  return [...new Set([mainModule.filename, ...Object.keys(session.Module._cache)])]
    .filter((path) => typeof path === 'string' && path.charCodeAt(0) === 47 && !/[\0\t]/.test(path))
    .slice(0, MOST_FILES);
}

// What Node has resolved, whether a literal stood there or not, as the notes have requests. Node keeps that under the
// request and the folders in which it looked: the requiring one, or first the `node_modules` in it.
function requestsOf(session) {
  const found = [];
  for (const key of Object.keys(session.Module._pathCache).slice(0, MOST_FILES)) {
    const [request, first] = key.split('\0');
    if (/[\t\n]/.test(key)) continue;
    if (request.charCodeAt(0) === 47) found.push(`main=${request}`); // Wherever it stands, it leads to the same file.
    if (!first || first.charCodeAt(0) !== 47 || request.charCodeAt(0) === 47) continue;
    const isRelative = request === '.' || request === '..' || /^\.\.?\//.test(request);
    if (isRelative) found.push(`request=${first}/-.js\t${request}`);
    else if (first.endsWith('/node_modules')) found.push(`request=${first.slice(0, -13)}/-.js\t${request}`);
  }
  return found;
}

function learn(session) {
  const { home, name } = session;
  const files = filesOf(session);
  if (!files.length || (session.index !== null && !session.missed.size && !session.captured.length)) return;
  const learner = fs.readFileSync(`${home}/run/learner`, 'utf8').replace(/\0+$/, '').split('\0');
  const wanted = [session.index === null ? files : [], [...session.missed.keys()], session.captured.map((each) => each.path)];
  const mark = foldText(JSON.stringify(wanted.map((names) => [...names].sort())));
  if (isInVain(`${home}/run/${name}.vain`, mark)) return;
  const folder = `${home}/run/node`;
  try {
    fs.mkdirSync(folder, 0o700);
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
  }
  if (fs.readdirSync(folder).length >= MOST_NOTES) return;
  const stem = `${folder}/${name}.${unique()}`;
  const notes = notesOf(session, files, mark).concat(capture(session, `${stem}.units`));
  try {
    write(`${stem}.tmp`, Buffer.from(notes.map((note) => note + '\0').join('')));
    fs.renameSync(`${stem}.tmp`, `${stem}.notes`);
  } catch (error) {
    fs.rmSync(`${stem}.units`, { force: true });
    throw error;
  }
  if (mayStart(`${folder}/${name}.started`)) spawn(session, [...learner, '--node', name]);
}

function notesOf(session, files, mark) {
  return [
    'velo-node-notes 1',
    `identity=${session.identity}`,
    `subject=${session.subject}`,
    `executable=${process.execPath}`,
    `version=${process.version}`,
    `arch=${process.arch}`,
    ...session.options.map((option) => `option=${option}`),
    `tag=${hexadecimal(require('v8').cachedDataVersionTag())}`,
    `mark=${mark}`,
    `main=${session.main}`,
    ...files.map((path) => `file=${path}`),
    ...[...session.missed.keys()].filter((key) => !key.endsWith('\t')).map((key) => `request=${key}`),
    ...requestsOf(session),
  ];
}

// The units of scripts that ran for the first time since they were learned, with all the functions that ran.
function capture(session, path) {
  if (!session.captured.length) return [];
  const began = Date.now();
  const units = [];
  const notes = [];
  let size = 0;
  for (const { path: file, script, text, flags } of session.captured) {
    if (Date.now() - began > LONGEST_CAPTURE || size > LARGEST_CAPTURE) break;
    const unit = encode(SCRIPT, text, script.createCachedData(), flags | CAPTURED);
    notes.push(`unit=${size} ${unit.length} ${file}`);
    units.push(unit);
    size += unit.length;
  }
  try {
    write(path, Buffer.concat(units));
  } catch (error) {
    return [];
  }
  return notes;
}

function write(path, bytes) {
  const descriptor = fs.openSync(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
  try {
    for (let at = 0; at < bytes.length; ) at += fs.writeSync(descriptor, bytes, at);
  } catch (error) {
    fs.unlinkSync(path);
    throw error;
  } finally {
    fs.closeSync(descriptor);
  }
}

// Whether learners were started for the very same wants before, without gain, and not long ago (FORMAT.md, section 2).
function isInVain(path, mark) {
  let records;
  try {
    records = fs.readFileSync(path);
  } catch (error) {
    return false;
  }
  for (let at = 0; at + 16 <= records.length; at += 16) {
    if (hexadecimal(records.readUInt32LE(at)) + hexadecimal(records.readUInt32LE(at + 4)) !== mark) continue;
    const since = Date.now() / 1000 - records.readUInt32LE(at + 8);
    return since >= 0 && since < 2 ** Math.min(records.readUInt32LE(at + 12), LONGEST_PAUSE);
  }
  return false;
}

// Whether no other program has just started a learner, who will find our notes before it ends.
function mayStart(path) {
  try {
    fs.closeSync(fs.openSync(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600));
    return true;
  } catch (error) {
    const status = fs.lstatSync(path, { throwIfNoEntry: false });
    if (status !== undefined && Math.abs(Date.now() - status.mtimeMs) < STARTED_FOR * 1000) return false;
    fs.rmSync(path, { force: true });
    return status !== undefined;
  }
}

// The learner holds no descriptor, terminal or process group of the program's.
function spawn(session, command) {
  const env = { ...process.env, VELO_DISABLE: '1', PYTHONPATH: '', VELO_HOME: session.home };
  delete env.NODE_OPTIONS;
  const child = require('child_process').spawn(command[0], command.slice(1), { detached: true, stdio: 'ignore', env });
  child.on('error', () => {});
  child.unref();
}

// SPDX-License-Identifier: Apache-2.0
// VELO_LOG and VELO_STATS: lines to a file, or (`1`) to stderr. Failure is silence.
'use strict';

const { appendFileSync, writeSync } = require('fs');

// One write, so that lines of processes that share a file stay whole.
function appendLine(target, line) {
  try {
    if (target === '1') writeSync(2, line + '\n');
    else appendFileSync(target, line + '\n', { mode: 0o600 });
  } catch (error) {
    // A full disk, a closed stderr: nothing depends on it.
  }
}

exports.appendLine = appendLine;
exports.logger = (target) => (text) => appendLine(target, `velo[${process.pid}] ${text}`);

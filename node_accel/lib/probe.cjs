// SPDX-License-Identifier: Apache-2.0
// Where the calls stand in Node's own loader that tracebacks show between two modules (FORMAT.md, section 14.3, frames).
// Required natively, by the worker only, and asks for itself: no list of versions could know.
'use strict';

function frames(act) {
  const before = Error.prepareStackTrace;
  Error.prepareStackTrace = (error, sites) => sites;
  try {
    return act().map((site) => [site.getFileName() || '', site.getLineNumber() || 0, site.getColumnNumber() || 0]);
  } finally {
    Error.prepareStackTrace = before;
  }
}

module.exports = function (callerFile, callerRequire) {
  const loading = module.loading.slice(1, module.loading.findIndex((frame) => frame[0] === callerFile));
  const resolving = frames(() => {
    try {
      return callerRequire.resolve('./there-is-no-such-file-for-sure');
    } catch (error) {
      return error.stack;
    }
  });
  // Innermost first: this file, running it, loading it, ..., `require`, the caller.
  const own = resolving.findIndex((frame) => frame[0] === __filename);
  // The resolver itself throws; between it and `require.resolve` there is nothing, or two calls.
  const between = own === 4 ? [resolving[1], resolving[2]] : [['', 0, 0], ['', 0, 0]];
  return [loading[0], loading[1], loading[loading.length - 1], resolving[own - 1], ...between];
};

Error.stackTraceLimit = 50;
module.loading = frames(() => new Error().stack);
while (module.loading[0][0] === __filename && module.loading[1][0] === __filename) module.loading.shift();

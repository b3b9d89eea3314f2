// SPDX-License-Identifier: Apache-2.0
// Whether a source can come to `import()`: what stands in comments does not count, and there most of them stand, as types.
// Knows just enough of JavaScript to tell code from comments, strings and patterns; in doubt the answer is yes.
'use strict';

const { IMPORT } = load('unit');

const EXPRESSION_BEFORE = /(?:^|[(,=:[!&|?{};+\-*%~^<>]|\b(?:return|typeof|case|in|of|delete|void|throw|new|else|do|instanceof|await|yield))\s*$/;
const DYNAMIC = /\beval\b|(?<![\w$])(?:Async|AsyncGenerator|Generator)?Function\s*\(/;
// Text from elsewhere is compiled; strings are empty here.
const COMPILES = /\beval\s*\(\s*(?!["'`])|[=,(]\s*eval\s*[),;]|(?<![\w$])(?:Async|AsyncGenerator|Generator)?Function\s*\((?!(?:\s*(?:""|'')\s*,?)*\s*\))/;

// {code, strings}: the source without comments and with all strings empty, and what stood in them; null if it is not clear.
function parts(source) {
  let code = '';
  let strings = '';
  const templates = []; // depth of braces at which each `${` ends
  let depth = 0;
  let at = 0;
  let from = 0;

  // The text of a template from `begin` on, up to its end or to a `${`.
  function template(begin) {
    for (let to = begin; to < source.length; to++) {
      const letter = source[to];
      if (letter === '\\') to++;
      else if (letter === '`') {
        strings += source.slice(begin, to) + '\n';
        code += '``';
        return to + 1;
      } else if (letter === '$' && source[to + 1] === '{') {
        strings += source.slice(begin, to) + '\n';
        templates.push(depth++);
        code += '`${';
        return to + 2;
      }
    }
    return -1;
  }

  while (at < source.length) {
    const letter = source[at];
    let next = at + 1;
    if (letter === '"' || letter === "'") {
      code += source.slice(from, at);
      while (source[next] !== letter) {
        if (next >= source.length || source[next] === '\n') return null;
        next += source[next] === '\\' ? (source[next + 1] === '\r' ? 3 : 2) : 1;
      }
      strings += source.slice(at + 1, next) + '\n';
      code += letter + letter;
      from = ++next;
    } else if (letter === '`') {
      code += source.slice(from, at);
      next = template(next);
      if (next < 0) return null;
      from = next;
    } else if (letter === '{') {
      depth++;
    } else if (letter === '}') {
      depth--;
      if (templates[templates.length - 1] === depth) {
        templates.pop();
        code += source.slice(from, next);
        next = template(next);
        if (next < 0) return null;
        from = next;
      }
    } else if (letter === '/') {
      const second = source[next];
      if (second === '/') {
        code += source.slice(from, at);
        next = source.indexOf('\n', at);
        from = next = next < 0 ? source.length : next;
      } else if (second === '*') {
        code += source.slice(from, at) + ' ';
        next = source.indexOf('*/', at + 2) + 2;
        if (next < 2) return null;
        from = next;
      } else if (EXPRESSION_BEFORE.test((code.slice(-20) + source.slice(Math.max(from, at - 20), at)).slice(-20))) {
        let isClass = false;
        while (source[next] !== '/' || isClass) {
          if (next >= source.length || source[next] === '\n') return null;
          if (source[next] === '[') isClass = true;
          else if (source[next] === ']') isClass = false;
          next += source[next] === '\\' ? 2 : 1;
        }
        code += source.slice(from, at) + '/-/';
        from = ++next;
      }
    }
    at = next;
  }
  return templates.length ? null : { code: code + source.slice(from), strings };
}

// {imports, compiles}: whether an `import()` of its own can run; whether one of anybody else's text can.
exports.reach = function (source) {
  if (!IMPORT.test(source) && !DYNAMIC.test(source)) return { imports: false, compiles: false };
  const found = parts(source);
  if (found === null) return { imports: true, compiles: true };
  const isDynamic = DYNAMIC.test(found.code);
  return {
    imports: IMPORT.test(found.code) || (isDynamic && IMPORT.test(found.strings)),
    compiles: COMPILES.test(found.code),
  };
};

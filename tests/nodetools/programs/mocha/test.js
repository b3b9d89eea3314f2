const assert = require('assert');
const express = require('express');

describe('express', () => {
  it('has an application', () => assert.equal(typeof express().listen, 'function'));
  it('fails with a stack', () => assert.deepEqual(Object.keys(express.Router()).length, 0));
  it('is in the cache', () => assert(require.cache[require.resolve('express')].loaded));
  it('cannot find', () => assert.throws(() => require('nope'), { code: 'MODULE_NOT_FOUND' }));
});

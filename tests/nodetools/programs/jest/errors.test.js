test('what is missing', () => {
  expect(() => require('./nope')).toThrow("Cannot find module './nope' from 'errors.test.js'");
  expect(require.resolve('express')).toMatch(/express.index.js$/);
});

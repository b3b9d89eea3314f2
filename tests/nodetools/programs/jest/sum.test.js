import { folder, sum } from './sum';

test('adds', () => expect(sum(1, 2)).toBe(3));
test('knows its folder', () => expect(folder()).toBe('jest'));
test('fails with a stack', () => expect(sum(1, 2)).toBe(4));
test('requires afresh', () => {
  jest.resetModules();
  expect(require('./sum')).not.toBe(require.cache);
  expect(require('./sum').sum).not.toBe(sum);
});

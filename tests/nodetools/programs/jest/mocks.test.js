jest.mock('./sum', () => ({ sum: jest.fn(() => 42), random: jest.requireActual('./sum').random }));
const express = require('express');
const { sum, random } = require('./sum');

test('is mocked', () => expect([sum(1, 1), typeof random()]).toEqual([42, 'number']));
test('loads packages', () => expect(typeof express().listen).toBe('function'));

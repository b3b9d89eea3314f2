module.exports = { rootDir: __dirname, cacheDirectory: '<rootDir>/../out/jest', testEnvironment: 'node', reporters: ['default'] };

const js = require('@eslint/js');

module.exports = [js.configs.recommended, { rules: { 'prefer-const': 'warn', complexity: ['warn', 12], 'max-depth': ['warn', 4] } }];

const path = require('path');

exports.sum = (a, b) => a + b;
exports.folder = () => path.basename(__dirname);
exports.random = () => Math.random();

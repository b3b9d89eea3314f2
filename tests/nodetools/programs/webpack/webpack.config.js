const path = require('path');

module.exports = {
  mode: 'production',
  context: __dirname,
  entry: { page: './page.js', server: './server.js' },
  target: 'node',
  devtool: 'source-map',
  output: { path: path.join(__dirname, '../out/webpack'), chunkFilename: '[name].[contenthash].js' },
  optimization: { splitChunks: { chunks: 'all', minSize: 1000 } },
};

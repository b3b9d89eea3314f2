module.exports = {
  distDir: '../out/next',
  generateBuildId: () => 'one',
  eslint: { ignoreDuringBuilds: true },
  experimental: { cpus: 2 },
};

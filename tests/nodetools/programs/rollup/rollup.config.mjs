export default { input: 'rollup/main.mjs', output: { file: 'out/rollup/bundle.js', format: 'cjs' }, external: ['path'] };

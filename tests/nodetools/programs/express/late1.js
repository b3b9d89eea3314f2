module.exports = () => 'late1 ' + module.children.length + require.main.filename.endsWith('load.js');

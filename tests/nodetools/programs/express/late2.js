module.exports = () => 'late2 ' + module.children.length + require.main.filename.endsWith('load.js');

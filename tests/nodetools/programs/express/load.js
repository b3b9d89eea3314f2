// A server under load: 400 requests, 16 at a time, of which some load more code.
const { createHash } = require('crypto');
const http = require('http');
const express = require('express');

const app = express();
app.set('views', __dirname);
app.engine('txt', (file, options, done) => require('fs').readFile(file, 'utf8', (error, text) => done(error, text && text + options.number)));
app.use(express.json());
app.use('/files', express.static(__dirname));
app.get('/number/:number', (request, response) => response.json({ number: +request.params.number, path: request.path }));
app.get('/view/:number', (request, response) => response.render('view.txt', { number: request.params.number }));
app.get('/late/:number', (request, response) => response.send(require(`./late${request.params.number % 3}`)()));
app.post('/echo', (request, response) => response.status(201).send(request.body));
app.use((error, request, response, next) => response.status(500).send(error.message));

const server = app.listen(0, '127.0.0.1', async () => {
  server.keepAliveTimeout = 0; // On a busy machine connections would be closed between two requests.
  const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });
  const ask = (number) =>
    new Promise((resolve, reject) => {
      const paths = ['number', 'view', 'late', 'files', 'nothing', 'echo'];
      const kind = paths[number % paths.length];
      const path = kind === 'files' ? '/files/view.txt' : kind === 'echo' ? '/echo' : `/${kind}/${number}`;
      const body = kind === 'echo' ? JSON.stringify({ number }) : '';
      const headers = body ? { 'content-type': 'application/json', 'content-length': body.length } : {};
      const asked = http.request({ port: server.address().port, path, method: body ? 'POST' : 'GET', agent, headers }, (response) => {
        let text = '';
        response.on('data', (part) => (text += part)).on('end', () => resolve(`${number} ${response.statusCode} ${text}`));
      });
      asked.on('error', reject).end(body);
    });
  const answers = await Promise.all(Array.from({ length: 400 }, (_, number) => ask(number)));
  agent.destroy();
  server.close();
  console.log(answers.slice(0, 12).join('\n'), createHash('sha256').update(answers.join()).digest('hex'));
});

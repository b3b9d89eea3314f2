require('express')().get('/', (request, response) => response.send('hello'));

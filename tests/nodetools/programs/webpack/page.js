import React from 'react';
import { renderToString } from 'react-dom/server';

console.log(renderToString(React.createElement('p', { id: 'a' }, 'hello')));
import('./later.js').then(({ later }) => console.log(later()));

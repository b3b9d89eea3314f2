import { join } from 'path';
import { part } from './part.mjs';
console.log(join('a', part));

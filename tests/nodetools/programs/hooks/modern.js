import { readFileSync } from 'fs';
import express from 'express';

class Reader { #path = __filename; read() { return readFileSync(this.#path, 'utf8').length; } }
console.log(new Reader().read(), typeof express, new Error('where').stack.split('\n')[1].replace(/.*hooks/, ''));

export const part = 'part'; export const unused = 1;

import { Circle } from './shapes';

export const text: string = new Circle(1).area();

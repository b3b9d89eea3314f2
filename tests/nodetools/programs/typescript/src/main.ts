import { Circle, Square, type Shape } from './shapes';

const shapes: Shape[] = [new Circle(2), new Square(3)];
const total = shapes.map((shape) => shape.area()).reduce((sum, area) => sum + area, 0);
console.log(total.toFixed(3), shapes.map(({ name }) => name).join());

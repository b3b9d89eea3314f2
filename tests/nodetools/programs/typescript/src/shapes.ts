export interface Shape { readonly name: string; area(): number }
export abstract class Named implements Shape {
  constructor(readonly name: string) {}
  abstract area(): number;
}
export class Circle extends Named {
  constructor(private readonly radius: number) { super('circle'); }
  area(): number { return Math.PI * this.radius ** 2; }
}
export class Square<T extends number> extends Named {
  constructor(private readonly side: T) { super('square'); }
  area(): number { return this.side * this.side; }
}
export type Areas<S extends readonly Shape[]> = { [K in keyof S]: number };

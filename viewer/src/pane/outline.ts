/* Outlines around masks: what the network gives as pixels, as lines that stay sharp when they are enlarged. Pure arithmetic. */

export type Outline = 'lungs' | 'infection';
export const OUTLINES: Outline[] = ['lungs', 'infection'];

/** Masks of one slice, a byte a pixel: bit 0 lungs, bit 1 infection. */
export interface Masks {
  columns: number;
  rows: number;
  bits: Uint8Array;
}

/** Left, top, right, bottom in shares of the frame. */
export type Place = [number, number, number, number];

const BITS: Record<Outline, number> = { lungs: 1, infection: 2 };

/** The masks of a picture: lungs are red, infection is green. */
export function masks(image: { width: number; height: number; data: Uint8ClampedArray }): Masks {
  const bits = new Uint8Array(image.width * image.height);
  for (let i = 0; i < bits.length; i++) {
    bits[i] = ((image.data[4 * i] as number) > 127 ? 1 : 0) | ((image.data[4 * i + 1] as number) > 127 ? 2 : 0);
  }
  return { columns: image.width, rows: image.height, bits };
}

/**
 * The edge of one mask as SVG path data, in a picture of `width` by `height`; empty where there is no mask.
 *
 * Walks along the sides of pixels with the mask on the right hand and goes from the middle of one side to that of the
 * next, which rounds the steps. Pixels that touch at a corner alone are apart.
 */
export function trace(from: Masks, which: Outline, width: number, height: number): string {
  const { columns, rows, bits } = from;
  const bit = BITS[which];
  const at = (x: number, y: number): boolean =>
    x >= 0 && y >= 0 && x < columns && y < rows && ((bits[y * columns + x] as number) & bit) !== 0;
  // Sides to walk, by the corner they begin at and their direction: right, down, left, up.
  const across = columns + 1;
  const sides = new Uint8Array(across * (rows + 1));
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      if (!at(x, y)) continue;
      if (!at(x, y - 1)) mark(sides, y * across + x, 0);
      if (!at(x + 1, y)) mark(sides, y * across + x + 1, 1);
      if (!at(x, y + 1)) mark(sides, (y + 1) * across + x + 1, 2);
      if (!at(x - 1, y)) mark(sides, (y + 1) * across + x, 3);
    }
  }
  const parts: string[] = [];
  for (let corner = 0; corner < sides.length; corner++) {
    while (sides[corner] !== 0) parts.push(loop(sides, corner, across, width / columns, height / rows));
  }
  return parts.join('');
}

const DX = [1, 0, -1, 0];
const DY = [0, 1, 0, -1];

function mark(sides: Uint8Array, corner: number, direction: number): void {
  sides[corner] = (sides[corner] as number) | (1 << direction);
}

/** One closed way, taken out of the sides. */
function loop(sides: Uint8Array, start: number, across: number, sx: number, sy: number): string {
  const points: [number, number][] = [];
  let corner = start;
  let came = -1;
  do {
    const left = sides[corner] as number;
    // Where two pixels touch at a corner: turn right, so that each keeps its own way.
    const turns = came < 0 ? [0, 1, 2, 3] : [(came + 1) % 4, came, (came + 3) % 4];
    const direction = turns.find((turn) => left & (1 << turn));
    if (direction === undefined) break;
    sides[corner] = left & ~(1 << direction);
    const [dx, dy] = [DX[direction] as number, DY[direction] as number];
    points.push([(corner % across) + dx / 2, Math.floor(corner / across) + dy / 2]);
    corner += dx + dy * across;
    came = direction;
  } while (corner !== start || ((sides[corner] as number) & (1 << ((came + 1) % 4))) !== 0);
  const kept = points.filter((point, i) => !between(points, i, point));
  return `M${kept.map(([x, y]) => `${round(x * sx)} ${round(y * sy)}`).join('L')}Z`;
}

/** Whether a point lies on the straight way between its neighbours. */
function between(points: [number, number][], i: number, [x, y]: [number, number]): boolean {
  const [ax, ay] = points[(i + points.length - 1) % points.length] as [number, number];
  const [bx, by] = points[(i + 1) % points.length] as [number, number];
  return points.length > 4 && (x - ax) * (by - y) === (bx - x) * (y - ay);
}

function round(value: number): number {
  return Math.round(100 * value) / 100;
}

/** Where in a picture a part of the frame lies: x, y, width, height. */
export function placed([left, top, right, bottom]: Place, width: number, height: number): Place {
  return [left * width, top * height, (right - left) * width, (bottom - top) * height];
}

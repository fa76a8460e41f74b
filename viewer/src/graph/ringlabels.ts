/* Where rings are labelled: along one direction, the one where labels hide the fewest cases, and beside those they do. */
import type { Ring } from './radial';

const DIRECTIONS = 32;
const UP = -Math.PI / 2;

/** Angle in radians; upwards where all directions are alike. */
export function labelDirection(at: ArrayLike<number>, rings: readonly Ring[], size: number): number {
  let best = UP;
  let least = Infinity;
  for (let d = 0; d < DIRECTIONS; d++) {
    // 0, +1, -1, +2, -2 ...: of equals, the one nearest to upwards
    const angle = UP + (((d + 1) >> 1) * (d % 2 ? 1 : -1) * 2 * Math.PI) / DIRECTIONS;
    let hidden = 0;
    for (const ring of rings) {
      const x = ring.radius * Math.cos(angle);
      const y = ring.radius * Math.sin(angle);
      for (let i = 2; i < at.length; i += 2) {
        const out = Math.max(Math.abs(at[i]! - x) - 0.05, Math.abs(at[i + 1]! - y) - 0.02);
        if (out < size / 2) hidden++;
      }
    }
    if (hidden < least) {
      least = hidden;
      best = angle;
    }
  }
  return best;
}

/** Half of what a picture takes to the sides, with its question mark, and below it, with its rank; in pixels. */
const BESIDE = 4;
const BELOW = 14;
const ASIDE = 5; // directions to either side of the common one

export interface Label {
  x: number;
  y: number;
  w: number;
  h: number;
}

/** Whether two boxes, told by their middles, come nearer than a pixel. */
export function meet(a: Label, b: Label): boolean {
  return Math.abs(a.x - b.x) < (a.w + b.w) / 2 + 1 && Math.abs(a.y - b.y) < (a.h + b.h) / 2 + 1;
}

/**
 * The place on a ring nearest to the common direction where a label of w by h hides no picture of side `size` and no
 * other label; null where there is none. All in pixels.
 */
export function freePlace(
  angle: number,
  radius: number,
  [w, h]: readonly [number, number],
  xs: ArrayLike<number>,
  ys: ArrayLike<number>,
  size: number,
  others: readonly Label[],
): Label | null {
  for (let d = 0; d <= 2 * ASIDE; d++) {
    const turned = angle + (((d + 1) >> 1) * (d % 2 ? 1 : -1) * 2 * Math.PI) / DIRECTIONS;
    const label = { x: xs[0]! + radius * Math.cos(turned), y: ys[0]! + radius * Math.sin(turned), w, h };
    if (!others.some((other) => meet(label, other)) && !hides(label, xs, ys, size)) return label;
  }
  return null;
}

function hides(label: Label, xs: ArrayLike<number>, ys: ArrayLike<number>, size: number): boolean {
  const across = (size + label.w) / 2 + BESIDE;
  const [above, below] = [(size + label.h) / 2 + BESIDE, (size + label.h) / 2 + BELOW];
  for (let i = 1; i < xs.length; i++) {
    const down = label.y - ys[i]!;
    if (Math.abs(label.x - xs[i]!) < across && down > -above && down < below) return true;
  }
  return false;
}

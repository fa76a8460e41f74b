/* Where rings are labelled: along one direction, the one where labels hide the fewest cases. */
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

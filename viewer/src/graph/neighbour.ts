/* Which case the keyboard goes to. */

export type Direction = 'ArrowLeft' | 'ArrowRight' | 'ArrowUp' | 'ArrowDown';

const STEPS: Record<Direction, readonly [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

export const isDirection = (key: string): key is Direction => key in STEPS;

/** The nearest shown node in a quarter turn round the direction; being off the axis counts double; -1: there is none. */
export function neighbour(
  at: ArrayLike<number>,
  from: number,
  direction: Direction,
  shown: (i: number) => boolean,
): number {
  const [dx, dy] = STEPS[direction];
  let best = -1;
  let least = Infinity;
  for (let i = 0; 2 * i < at.length; i++) {
    if (i === from || !shown(i)) continue;
    const x = at[2 * i]! - at[2 * from]!;
    const y = at[2 * i + 1]! - at[2 * from + 1]!;
    const along = x * dx + y * dy;
    const off = Math.abs(x * dy - y * dx);
    if (along <= 1e-9 || off > along) continue;
    if (along + 2 * off < least) {
      least = along + 2 * off;
      best = i;
    }
  }
  return best;
}

/** The next shown node by rank (`step` 1 or -1), or the same where there is none. Nodes are in order of rank. */
export function byRank(count: number, from: number, step: 1 | -1, shown: (i: number) => boolean): number {
  for (let i = from + step; i >= 0 && i < count; i += step) if (shown(i)) return i;
  return from;
}

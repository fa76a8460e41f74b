import { describe, expect, it } from 'vitest';
import { freePlace, type Label, meet } from '../src/graph/ringlabels';

const UP = -Math.PI / 2;
const LABEL = [40, 16] as const;
const place = (xs: number[], ys: number[], others: Label[] = []) => freePlace(UP, 200, LABEL, xs, ys, 50, others);

describe('the label of a ring', () => {
  it('lies in the common direction where nothing is there', () => {
    const found = place([0, 150], [0, 0]);
    expect(found?.x).toBeCloseTo(0);
    expect(found?.y).toBeCloseTo(-200);
  });

  it('goes aside on its ring for a picture, and covers none', () => {
    const found = place([0, 0], [0, -200]) as Label;
    expect(Math.hypot(found.x, found.y)).toBeCloseTo(200);
    expect(meet(found, { x: 0, y: -200, w: 50, h: 50 })).toBe(false);
  });

  it('leaves the rank below a picture to be read', () => {
    const found = place([0, 0], [0, -240]) as Label;
    expect(found.x).not.toBeCloseTo(0);
  });

  it('goes aside for another label', () => {
    const other = { x: 0, y: -195, w: 40, h: 16 };
    expect(meet(place([0], [0], [other]) as Label, other)).toBe(false);
  });

  it('is left out where pictures cover its side of the ring', () => {
    const angles = Array.from({ length: 32 }, (_, n) => (n * 2 * Math.PI) / 32);
    const on = (of: (angle: number) => number) => [0, ...angles.map((angle) => 200 * of(angle))];
    expect(place(on(Math.cos), on(Math.sin))).toBeNull();
  });
});

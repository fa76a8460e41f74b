import { describe, expect, test } from 'vitest';
import { moved, WHOLE, zoomed } from '../src/pane/zoom';

describe('zooming into a picture', () => {
  test('keeps what is under the pointer under the pointer', () => {
    const first = zoomed(WHOLE, 2, 0.25, -0.1);
    const under = (zoom: typeof WHOLE) => [(0.25 - zoom.x) / zoom.scale, (-0.1 - zoom.y) / zoom.scale];
    const then = zoomed(first, 1.5, 0.25, -0.1);
    for (const i of [0, 1]) expect(under(then)[i]).toBeCloseTo(under(WHOLE)[i] as number, 9);
  });

  test('ends at the whole picture, in its place', () => {
    expect(zoomed(moved(zoomed(WHOLE, 4), 1, 1), 0.01)).toEqual(WHOLE);
  });

  test('never takes the picture out of the stage', () => {
    expect(moved(WHOLE, 0.3, 0.3)).toEqual(WHOLE);
    expect(moved(zoomed(WHOLE, 3), 50, -50)).toEqual({ scale: 3, x: 1, y: -1 });
    expect(zoomed(WHOLE, 1e9).scale).toBe(12);
  });
});

import { describe, expect, test } from 'vitest';
import { Follow } from '../src/pane/follow';
import { greys, paint, viridis } from '../src/pane/lut';

function grey(value: number, center: number, width: number, inverted = false): number {
  const out = new Uint32Array(1);
  paint(Int16Array.of(value), greys({ center, width }, inverted), out);
  return (out[0] as number) & 0xff;
}

describe('a window', () => {
  test('is black below, white above and grey in its middle', () => {
    expect(grey(-1350, -600, 1500)).toBe(0);
    expect(grey(-32768, 40, 400)).toBe(0);
    expect(grey(32767, 40, 400)).toBe(255);
    expect(Math.abs(grey(40, 40, 400) - 128)).toBeLessThanOrEqual(1);
  });

  test('of width one is a threshold (PS3.3 C.11.2.1.2)', () => {
    expect([grey(99, 100, 1), grey(100, 100, 1)]).toEqual([0, 255]);
  });

  test('is turned round for MONOCHROME1', () => {
    expect(grey(1000, 40, 400, true)).toBe(0);
    expect(grey(-1000, 40, 400, true)).toBe(255);
  });
});

describe('the colours of effects', () => {
  test('grow lighter from end to end', () => {
    const light = Array.from({ length: 50 }, (_, i) => {
      const [red, green, blue] = viridis(i / 49);
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    });
    expect(light.every((value, i) => i === 0 || value >= (light[i - 1] as number))).toBe(true);
  });
});

describe('two series in step', () => {
  function aligned(query: number, other: number, at: [number, number]): Follow {
    const follow = new Follow();
    follow.align({ query, case: other }, { query: at[0], case: at[1] });
    return follow;
  }

  test('move by the same share of their length', () => {
    const follow = aligned(101, 51, [0, 0]);
    follow.move('query', 50);
    expect(follow.at).toEqual({ query: 50, case: 25 });
    follow.move('case', 50);
    expect(follow.at).toEqual({ query: 100, case: 50 });
  });

  test('keep the distance of the matching slices they began with', () => {
    const follow = aligned(101, 101, [40, 60]);
    follow.move('query', 50);
    expect(follow.at.case).toBe(70);
    follow.move('case', 60);
    expect(follow.at.query).toBe(40);
  });

  test('stop at their ends', () => {
    const follow = aligned(10, 10, [5, 8]);
    follow.move('query', 99);
    expect(follow.at).toEqual({ query: 9, case: 9 });
    follow.move('query', -5);
    expect(follow.at.query).toBe(0);
  });

  test('move alone when they are let go, and together again from where they are', () => {
    const follow = aligned(10, 10, [0, 0]);
    follow.setTogether(false);
    follow.move('case', 4);
    expect(follow.at).toEqual({ query: 0, case: 4 });
    follow.setTogether(true);
    follow.move('query', 2);
    expect(follow.at.case).toBe(6);
  });

  test('may have a single slice', () => {
    const follow = aligned(1, 20, [0, 10]);
    follow.move('case', 12);
    expect(follow.at).toEqual({ query: 0, case: 12 });
  });
});

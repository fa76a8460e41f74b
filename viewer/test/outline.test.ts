import { describe, expect, test } from 'vitest';
import { type Masks, masks, placed, trace } from '../src/pane/outline';

/** A mask from a drawing: # lungs, o infection, 8 both. */
function drawing(...lines: string[]): Masks {
  const bits = lines.join('').split('');
  return {
    columns: lines[0]?.length ?? 0,
    rows: lines.length,
    bits: Uint8Array.from(bits, (c) => (c === '#' ? 1 : c === 'o' ? 2 : c === '8' ? 3 : 0)),
  };
}

function points(path: string): [number, number][][] {
  return path
    .split('Z')
    .filter(Boolean)
    .map((loop) =>
      loop
        .slice(1)
        .split('L')
        .map((point) => point.split(' ').map(Number) as [number, number]),
    );
}

/** Twice the area inside; negative for a hole. */
function area(loop: [number, number][]): number {
  return loop.reduce((sum, [x, y], i) => {
    const [nx, ny] = loop[(i + 1) % loop.length] as [number, number];
    return sum + x * ny - nx * y;
  }, 0);
}

describe('the masks of a picture', () => {
  test('are red for lungs and green for infection', () => {
    const data = Uint8ClampedArray.of(0, 0, 0, 255, 255, 0, 0, 255, 0, 255, 0, 255, 255, 255, 0, 255);
    expect([...masks({ width: 4, height: 1, data }).bits]).toEqual([0, 1, 2, 3]);
  });
});

describe('an outline', () => {
  test('goes through the middles of the sides of its pixels', () => {
    expect(points(trace(drawing('...', '.#.', '...'), 'lungs', 3, 3))).toEqual([
      [
        [1.5, 1],
        [2, 1.5],
        [1.5, 2],
        [1, 1.5],
      ],
    ]);
  });

  test('is measured in the picture it is drawn on', () => {
    const [loop] = points(trace(drawing('....', '.##.', '.##.', '....'), 'lungs', 400, 200));
    const xs = (loop ?? []).map(([x]) => x);
    const ys = (loop ?? []).map(([, y]) => y);
    expect([Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)]).toEqual([100, 300, 50, 150]);
  });

  test('of nothing is empty, and of each mask its own', () => {
    const both = drawing('.#8o');
    expect(trace(drawing('....'), 'lungs', 4, 1)).toBe('');
    const end = (which: 'lungs' | 'infection') =>
      points(trace(both, which, 4, 1))
        .flat()
        .map(([x]) => x);
    expect([Math.min(...end('lungs')), Math.max(...end('lungs'))]).toEqual([1, 3]);
    expect([Math.min(...end('infection')), Math.max(...end('infection'))]).toEqual([2, 4]);
  });

  test('goes round a hole the other way', () => {
    const loops = points(trace(drawing('#####', '#...#', '#...#', '#...#', '#####'), 'lungs', 5, 5));
    expect(loops).toHaveLength(2);
    expect(loops.map(area).map(Math.sign).sort()).toEqual([-1, 1]);
  });

  test('reaches the border of the picture', () => {
    const [loop] = points(trace(drawing('##', '##'), 'lungs', 2, 2));
    expect(Math.min(...(loop ?? []).flat())).toBe(0);
    expect(Math.max(...(loop ?? []).flat())).toBe(2);
  });

  test('keeps pixels apart that touch at a corner', () => {
    expect(points(trace(drawing('#.', '.#'), 'lungs', 2, 2))).toHaveLength(2);
    expect(points(trace(drawing('.#', '#.'), 'lungs', 2, 2))).toHaveLength(2);
  });

  test('has no more points than it turns', () => {
    const wide = drawing('.'.repeat(102), `.${'#'.repeat(100)}.`, '.'.repeat(102));
    expect(points(trace(wide, 'lungs', 102, 3)).flat().length).toBeLessThan(10);
  });

  test('closes and holds as much as its mask, whatever that is', () => {
    let seed = 1;
    const random = () => {
      seed = (seed * 48271) % 2147483647;
      return seed / 2147483647;
    };
    for (let n = 0; n < 20; n++) {
      const bits = Uint8Array.from({ length: 30 * 20 }, () => (random() < 0.5 ? 1 : 0));
      const loops = points(trace({ columns: 30, rows: 20, bits }, 'lungs', 30, 20));
      const held = loops.reduce((sum, loop) => sum + area(loop) / 2, 0);
      // each corner that is cut off takes an eighth, each inner one gives it back
      const corners = countCorners(bits, 30, 20);
      expect(held).toBeCloseTo(bits.reduce((sum, bit) => sum + bit, 0) - corners / 8, 6);
    }
  });
});

/** Turns to the right minus turns to the left along all edges. */
function countCorners(bits: Uint8Array, columns: number, rows: number): number {
  const at = (x: number, y: number) => (x >= 0 && y >= 0 && x < columns && y < rows ? (bits[y * columns + x] ?? 0) : 0);
  let turns = 0;
  for (let y = 0; y <= rows; y++) {
    for (let x = 0; x <= columns; x++) {
      const four = [at(x - 1, y - 1), at(x, y - 1), at(x - 1, y), at(x, y)] as const;
      const n = four.reduce((sum, bit) => sum + bit, 0);
      if (n === 1) turns++;
      else if (n === 3) turns--;
      else if (n === 2 && four[0] === four[3]) turns += 2;
    }
  }
  return turns;
}

describe('the regions', () => {
  test('lie on the part of the frame that the networks saw', () => {
    expect(placed([0, 0, 1, 1], 512, 300)).toEqual([0, 0, 512, 300]);
    expect(placed([0.25, 0.5, 0.75, 1], 400, 200)).toEqual([100, 100, 200, 100]);
    expect(placed([-0.5, 0, 1.5, 1], 100, 100)).toEqual([-50, 0, 200, 100]);
  });
});

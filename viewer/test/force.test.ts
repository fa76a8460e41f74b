import { describe, expect, it } from 'vitest';
import { answer } from '../bench/generated';
import { forceLayout, weight } from '../src/graph/atlas2';
import { radialLayout } from '../src/graph/radial';
import type { GraphData } from '../src/graph/types';

function laidOut(data: GraphData): Float64Array {
  const { at, size } = radialLayout(data.nodes);
  return forceLayout(
    at,
    Float64Array.from(data.nodes, (n) => n.distance),
    data.edges,
    size,
  );
}

describe('ForceAtlas2', () => {
  it.each([3, 50, 300])('of %i cases keeps the query in the middle and is the same each time', (n) => {
    const at = laidOut(answer(n));
    expect([at[0], at[1]]).toEqual([0, 0]);
    expect([...at].every(Number.isFinite)).toBe(true);
    expect(laidOut(answer(n))).toEqual(at);
  });

  it('draws joined cases nearer to each other than others', () => {
    const data = answer(100);
    const at = laidOut(data);
    const apart = (i: number, j: number) => Math.hypot(at[2 * i]! - at[2 * j]!, at[2 * i + 1]! - at[2 * j + 1]!);
    const mean = (all: number[]) => all.reduce((a, b) => a + b, 0) / all.length;
    const joined = data.edges.map(([i, j]) => apart(i, j));
    const all = data.nodes.flatMap((_, i) => data.nodes.slice(i + 1).map((__, k) => apart(i, i + 1 + k)));
    expect(mean(joined)).toBeLessThan(0.6 * mean(all));
  });

  it('ties cases by the square of their nearness, within bounds', () => {
    expect(weight(0.1, 0.1)).toBe(1);
    expect(weight(0.1, 0.2)).toBeCloseTo(0.25);
    expect(weight(0.1, 5)).toBe(0.02);
    expect(weight(0.1, 0)).toBe(1);
  });

  it('stands cases at distance zero and edges that repeat', () => {
    const data = answer(10);
    for (const node of data.nodes) node.distance = 0;
    data.edges.push([1, 2, 0], [2, 1, 0], [3, 3, 0], [0, 1, 0.1]);
    expect([...laidOut(data)].every(Number.isFinite)).toBe(true);
  });
});

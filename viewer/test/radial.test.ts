import { describe, expect, it } from 'vitest';
import { answer } from '../bench/generated';
import { CENTRE, inversions, LARGER, overlapping, radialLayout, rings } from '../src/graph/radial';
import type { GraphNode } from '../src/graph/types';

const distances = (nodes: readonly GraphNode[]) => nodes.map((n) => n.distance);

describe('the radial layout', () => {
  it.each([1, 2, 3, 5, 50, 200, 300, 1000])('of %i cases draws no case nearer than one that is nearer', (n) => {
    for (const seed of [1, 2, 3]) {
      const { nodes } = answer(n, seed);
      const { at } = radialLayout(nodes);
      expect([...at].every(Number.isFinite)).toBe(true);
      expect(inversions(distances(nodes), at)).toBe(0);
    }
  });

  it('notices an inversion where there is one', () => {
    const { nodes } = answer(20);
    const { at } = radialLayout(nodes);
    [at[2], at[3], at[40], at[41]] = [at[40]!, at[41]!, at[2]!, at[3]!];
    expect(inversions(distances(nodes), at)).toBeGreaterThan(0);
  });

  it.each([
    [10, 0],
    [50, 0.05],
    [200, 0.2],
  ])('of %i cases leaves at most %f of the pictures overlapping', (n, share) => {
    for (const seed of [1, 2, 3]) {
      const { at, size } = radialLayout(answer(n, seed).nodes);
      expect(overlapping(at, size)).toBeLessThanOrEqual(share);
    }
  });

  it('puts cases of equal distance on one circle, apart from each other', () => {
    const { nodes } = answer(100, 1, true);
    const { at, size } = radialLayout(nodes);
    const radii = nodes.slice(1).map((_, k) => Math.hypot(at[2 * k + 2]!, at[2 * k + 3]!));
    expect(Math.max(...radii) - Math.min(...radii)).toBeLessThan(1e-9);
    expect(overlapping(at, size)).toBeLessThan(0.2);
  });

  it.each([2, 5, 10, 20, 50])('of %i cases draws none over the query', (n) => {
    for (const seed of [1, 2, 3, 4, 5]) {
      const { at, size } = radialLayout(answer(n, seed).nodes);
      const reach = (Math.max(size * LARGER, CENTRE) + size) / 2;
      const over = at.filter(
        (_, k) => k > 1 && k % 2 === 0 && Math.abs(at[k]!) < reach && Math.abs(at[k + 1]!) < reach,
      );
      expect(over).toHaveLength(0);
    }
  });

  it('draws few cases large and many small', () => {
    const sizes = [5, 20, 40, 80, 200, 1000].map((n) => radialLayout(answer(n).nodes).size);
    expect(sizes[0]).toBeGreaterThan(0.15);
    expect(sizes).toEqual([...sizes].sort((a, b) => b - a));
  });

  it('is the same each time', () => {
    expect(radialLayout(answer(300).nodes)).toEqual(radialLayout(answer(300).nodes));
  });

  it('keeps the query in the middle and everything inside the outer ring', () => {
    const { at } = radialLayout(answer(300).nodes);
    expect([at[0], at[1]]).toEqual([0, 0]);
    expect(Math.max(...at)).toBeLessThanOrEqual(1 + 1e-9);
  });

  it('lays out the query alone and directions that are no numbers', () => {
    expect([...radialLayout(answer(0).nodes).at]).toEqual([0, 0]);
    const { nodes } = answer(3);
    nodes[1]!.angle = Number.NaN;
    expect([...radialLayout(nodes).at].every(Number.isFinite)).toBe(true);
  });
});

describe('the rings', () => {
  it('lie where a case of their similarity would lie', () => {
    const { nodes } = answer(50);
    const { at, size } = radialLayout(nodes);
    const far = nodes.at(-1)!;
    const near = nodes[1]!;
    const [r0, r1] = [1, nodes.length - 1].map((i) => Math.hypot(at[2 * i]!, at[2 * i + 1]!));
    for (const ring of rings(nodes, size)) {
      const share = (1 - ring.similarity - near.distance) / (far.distance - near.distance);
      expect(ring.radius).toBeCloseTo(r0! + share * (r1! - r0!), 9);
    }
  });

  it.each([2, 10, 50, 300])('of %i cases are at most six, and their labels differ', (n) => {
    for (const seed of [1, 2, 3, 4, 5]) {
      const { nodes } = answer(n, seed);
      const found = rings(nodes, radialLayout(nodes).size);
      expect(found.length).toBeLessThanOrEqual(6);
      const labels = found.map((r) => r.similarity.toFixed(r.digits));
      expect(new Set(labels).size).toBe(labels.length);
      expect(found.every((r) => Math.abs(Number(r.similarity.toFixed(r.digits)) - r.similarity) < 1e-9)).toBe(true);
    }
  });

  it('are one where all cases are equally far, and none without a case', () => {
    expect(rings(answer(5, 1, true).nodes, 0.1)).toHaveLength(1);
    expect(rings(answer(0).nodes, 0.1)).toEqual([]);
  });
});

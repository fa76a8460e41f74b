import { describe, expect, it } from 'vitest';
import { byRank, neighbour } from '../src/graph/neighbour';

const all = () => true;
/* 0 in the middle; 1 right, 2 far right, 3 up (screen: smaller y), 4 down and left */
const at = [0, 0, 1, 0.2, 3, 0, 0.1, -1, -1, 1.2];

describe('the neighbour by arrow', () => {
  it('is the nearest in that direction', () => {
    expect(neighbour(at, 0, 'ArrowRight', all)).toBe(1);
    expect(neighbour(at, 1, 'ArrowRight', all)).toBe(2);
    expect(neighbour(at, 0, 'ArrowUp', all)).toBe(3);
    expect(neighbour(at, 0, 'ArrowDown', all)).toBe(4);
    expect(neighbour(at, 2, 'ArrowLeft', all)).toBe(1);
  });

  it('is none where nothing lies in that direction', () => {
    expect(neighbour(at, 2, 'ArrowRight', all)).toBe(-1);
    expect(neighbour([0, 0], 0, 'ArrowUp', all)).toBe(-1);
  });

  it('passes over what is filtered out', () => {
    expect(neighbour(at, 0, 'ArrowRight', (i) => i !== 1)).toBe(2);
  });

  it('reaches every case of a cloud from the middle', () => {
    const n = 60;
    const cloud = Array.from({ length: n }, (_, i) => [
      Math.cos(i * 2.4) * Math.sqrt(i),
      Math.sin(i * 2.4) * Math.sqrt(i),
    ]);
    const seen = new Set([0]);
    const queue = [0];
    for (let i = queue.pop(); i !== undefined; i = queue.pop())
      for (const key of ['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown'] as const) {
        const to = neighbour(cloud.flat(), i, key, all);
        if (to >= 0 && !seen.has(to)) queue.push(to);
        if (to >= 0) seen.add(to);
      }
    expect(seen.size).toBe(n);
  });
});

describe('the next by rank', () => {
  it('passes over what is filtered out and stops at the ends', () => {
    expect(byRank(5, 1, 1, all)).toBe(2);
    expect(byRank(5, 1, 1, (i) => i !== 2)).toBe(3);
    expect(byRank(5, 4, 1, all)).toBe(4);
    expect(byRank(5, 1, -1, all)).toBe(0);
    expect(byRank(5, 3, -1, (i) => i === 3)).toBe(3);
  });
});

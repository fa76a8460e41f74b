/* Answers and pictures without a node: cases in a few clumps, as a repository of several diseases gives. */
import type { GraphData, GraphNode, Status } from '../src/graph';

/** The same numbers for the same seed (mulberry32). */
export function generator(seed: number): () => number {
  let a = seed;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const STATUS: Status[] = ['present', 'present', 'none', 'unknown'];

/** An answer with `cases` cases. */
export function answer(cases: number, seed = 1, equal = false): GraphData {
  const random = generator(seed);
  const distances = Array.from({ length: cases }, () => (equal ? 0.2 : 0.02 + 0.3 * (1 - (1 - random()) ** 2.2)));
  distances.sort((a, b) => a - b);
  const clumps = Array.from({ length: 4 }, () => random() * 2 * Math.PI - Math.PI);
  const nodes: GraphNode[] = [
    { id: 'query', rank: 0, similarity: 1, distance: 0, angle: 0, status: 'unknown', label: 'Query' },
  ];
  distances.forEach((distance, k) => {
    const clump = Math.floor(random() * random() * 4);
    const angle = clumps[clump]! + (random() + random() + random() - 1.5) * 0.9;
    const status = STATUS[Math.floor(random() * 4)]!;
    const similarity = 1 - distance;
    nodes.push({
      id: `c${seed}-${k}`,
      rank: k + 1,
      similarity,
      distance,
      angle,
      status,
      label: `#${k + 1} · ${similarity.toFixed(3)} · CT chest`,
    });
  });
  return { nodes, edges: nearest(nodes), calibrated: true };
}

function nearest(nodes: GraphNode[]): [number, number, number][] {
  const found = new Map<string, [number, number, number]>();
  const apart = (a: GraphNode, b: GraphNode) =>
    Math.hypot(
      a.distance * Math.cos(a.angle) - b.distance * Math.cos(b.angle),
      a.distance * Math.sin(a.angle) - b.distance * Math.sin(b.angle),
    );
  for (let i = 1; i < nodes.length; i++) {
    const order = nodes
      .map((_, j) => j)
      .slice(1)
      .filter((j) => j !== i);
    const d = order.map((j) => [j, apart(nodes[i]!, nodes[j]!)] as const).sort((a, b) => a[1] - b[1]);
    for (const [j, far] of d.slice(0, 3))
      found.set(`${Math.min(i, j)},${Math.max(i, j)}`, [Math.min(i, j), Math.max(i, j), far]);
  }
  return [...found.values()];
}

/** A picture that looks like a slice of a chest from afar. */
export async function picture(seed: number, side = 64): Promise<ImageBitmap> {
  const random = generator(seed + 99);
  const canvas = new OffscreenCanvas(side, side);
  const to = canvas.getContext('2d')!;
  const oval = (x: number, y: number, rx: number, ry: number, grey: number) => {
    to.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    to.beginPath();
    to.ellipse(x * side, y * side, rx * side, ry * side, 0, 0, 7);
    to.fill();
  };
  to.fillStyle = '#000';
  to.fillRect(0, 0, side, side);
  oval(0.5, 0.52, 0.44, 0.32 + random() * 0.05, 120 + random() * 60);
  oval(0.31, 0.5, 0.13 + random() * 0.03, 0.2, 20 + random() * 30);
  oval(0.69, 0.5, 0.13 + random() * 0.03, 0.2, 20 + random() * 30);
  oval(0.5, 0.76, 0.05, 0.05, 230);
  for (let k = 0; k < 6; k++) oval(0.25 + random() * 0.5, 0.38 + random() * 0.25, 0.03, 0.02, 60 + random() * 120);
  return createImageBitmap(canvas);
}

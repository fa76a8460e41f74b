/* ForceAtlas2 on the answer: every case is tied to the query, and to the cases it is most alike. */
import Graph from 'graphology';
import forceAtlas2 from 'graphology-layout-forceatlas2';

/** Barnes and Hut's approximation pays from here on. */
const MANY = 150;
const WEAKEST = 0.02;
/** Radius round the query that is kept free. */
const CLEAR = 0.13;
const APART_ROUNDS = 40;

/** Strength of a tie: (nearest / distance) squared, within [0.02, 1]. */
export function weight(nearest: number, distance: number): number {
  return distance <= nearest ? 1 : Math.max(WEAKEST, (nearest / distance) ** 2);
}

/** Rounds until positions hardly change; fewer for many nodes, where each round moves all of them more. */
export function rounds(count: number): number {
  return count > 400 ? 160 : 320;
}

/** Positions in units of the drawing's radius, node 0 at (0, 0); the same input gives the same output. */
export function forceLayout(
  start: Float64Array,
  distances: Float64Array,
  edges: readonly (readonly [number, number, number])[],
  size: number,
): Float64Array {
  const n = distances.length;
  const spread = 10 * Math.sqrt(n);
  const graph = new Graph({ type: 'undirected' });
  for (let i = 0; i < n; i++)
    graph.addNode(i, { x: start[2 * i]! * spread, y: start[2 * i + 1]! * spread, fixed: i === 0 });
  const nearest = Math.max(1e-6, Math.min(...distances.subarray(1)));
  const closest = Math.max(1e-6, edges.length ? Math.min(...edges.map((e) => e[2])) : 1);
  for (let i = 1; i < n; i++) graph.addEdge(0, i, { weight: weight(nearest, distances[i]!) });
  for (const [a, b, d] of edges) if (a && b && a !== b) graph.mergeEdge(a, b, { weight: weight(closest, d) });
  const found = forceAtlas2(graph, {
    iterations: rounds(n),
    getEdgeWeight: 'weight',
    settings: { ...forceAtlas2.inferSettings(graph), barnesHutOptimize: n > MANY, barnesHutTheta: 0.8 },
  });
  const at = new Float64Array(2 * n);
  let far = 0;
  for (let i = 0; i < n; i++) {
    const { x, y } = found[i]!;
    at[2 * i] = x! - found[0]!.x!;
    at[2 * i + 1] = y! - found[0]!.y!;
    far = Math.max(far, Math.hypot(at[2 * i]!, at[2 * i + 1]!));
  }
  if (!far) return start.slice();
  for (let i = 1; i < n; i++) {
    const r = Math.hypot(at[2 * i]!, at[2 * i + 1]!) || 1;
    // outwards by the same step, so that the query's picture hides none
    const scale = (CLEAR + ((1 - CLEAR) * r) / far) / r;
    at[2 * i]! *= scale;
    at[2 * i + 1]! *= scale;
  }
  separate(at, size * 1.15);
  return at;
}

/** Push squares of side `size` apart where they overlap, along the shorter way; the query stays. */
function separate(at: Float64Array, size: number): void {
  for (let round = 0; round < APART_ROUNDS; round++) {
    for (let i = 2; i < at.length; i += 2) {
      for (let j = i + 2; j < at.length; j += 2) {
        const dx = at[i]! - at[j]!;
        const dy = at[i + 1]! - at[j + 1]!;
        const x = size - Math.abs(dx);
        const y = size - Math.abs(dy);
        if (x <= 0 || y <= 0) continue;
        const axis = x < y ? 0 : 1;
        const step = 0.3 * (axis ? y : x) * ((axis ? dy : dx) < 0 ? -1 : 1);
        at[i + axis]! += step;
        at[j + axis]! -= step;
      }
    }
  }
}

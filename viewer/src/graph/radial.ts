/*
 * The radial layout: a case's distance from the centre of the picture is its distance from the query, exactly and
 * always; only its direction is free. Positions are in units of the outer ring's radius, the centre at (0, 0).
 */
import type { GraphNode } from './types';

/** Radius of the nearest case, at least; large pictures need more beside the query's. */
const INNER = 0.16;
/** Radius where cases lie when all distances are equal: a few near the centre, many on the outer ring. */
const only = (count: number): number => (count > 14 ? 1 : 0.58);
/** How far directions are evened out: 0 keeps clumps as they are, 1 spreads all evenly. Their order never changes. */
const evening = (count: number, circle: boolean): number => (circle ? 1 : Math.min(0.9, 0.58 + count / 2500));
/** Rings are as many as fit below this number. */
const RINGS = 6;
/** Rounds of pushing cases apart: many cases gain little from the later ones, and each costs more. */
const rounds = (count: number): number => Math.min(160, Math.max(40, Math.round(40_000 / Math.max(1, count))));
/** Side of a case's square where there is room: findings must be recognisable. */
const LARGEST = 0.22;
const SMALLEST = 0.02;
/** Pictures of up to MANY cases become at most this much smaller for want of room. */
const SHRUNK = 0.6;
/** Nearest cases lie this much farther out than just beside the query, so that there is room for several. */
const ROUND = 1.2;
/** Up to this number of cases have the largest pictures; four times as many have what an even spread allows. */
const FEW = 20;
const MANY = 120;
/** Pictures of up to MANY cases are made smaller until no more than this share of them overlap. */
const OVERLAPPING = 0.04;
/** Side of the query's square, at least, and the room round it. */
export const CENTRE = 0.135;
/** How much larger than a case the query is drawn, at least. */
export const LARGER = 1.28;
const GAP = 0.03;
/** Cases are kept this many sides apart. */
const APART = 1.08;
/** Squares side by side on a circle need their side at the top and their diagonal at the corners. */
const ROOM = 1.35;
const TURN = 2 * Math.PI;

export interface Ring {
  radius: number;
  similarity: number;
  digits: number;
}

/** Radius of a distance, in units of the outer ring; cases of side `size` at all radii lie outside the query's square. */
function radiusOf(nodes: readonly GraphNode[], size: number): (distance: number) => number {
  const [nearest, farthest] = range(nodes);
  const inner = Math.max(INNER, beyondQuery(size) * ROUND);
  const span = farthest - nearest;
  return span > 0 ? (d) => inner + ((1 - inner) * (d - nearest)) / span : () => only(nodes.length - 1);
}

/** How far right, left, above or below the query a case of side `size` is beside it. */
const beyondQuery = (size: number): number => (Math.max(size * LARGER, CENTRE) + size) / 2 + GAP;

function range(nodes: readonly GraphNode[]): [number, number] {
  let nearest = Infinity;
  let farthest = -Infinity;
  for (let i = 1; i < nodes.length; i++) {
    nearest = Math.min(nearest, nodes[i]!.distance);
    farthest = Math.max(farthest, nodes[i]!.distance);
  }
  return [nearest, farthest];
}

/** Side of a case's square that an even spread allows. */
const spread = (count: number): number => 0.64 / Math.sqrt(Math.max(1, count));

/** Side to begin with: fewer cases, larger pictures. */
function wanted(count: number): number {
  if (count <= FEW) return LARGEST;
  const share = Math.min(1, Math.log(count / FEW) / Math.log(4));
  return LARGEST ** (1 - share) * Math.min(LARGEST, spread(count)) ** share;
}

/** How many cases lie in rings, one square wide, that hold more squares than fit side by side. */
function crowded(radius: Float64Array, size: number): number {
  let count = 0;
  for (let first = 0, next = 0; first < radius.length; first = next) {
    while (next < radius.length && radius[next]! < radius[first]! + size) next++;
    if ((next - first) * size * ROOM > TURN * radius[first]!) count += next - first;
  }
  return count;
}

export interface Layout {
  /** x, y of every node: `[x0, y0, x1, y1, ...]`; node 0 at the centre. */
  at: Float64Array;
  /** Side of a case's square. */
  size: number;
}

/** Every case at its distance, in a direction near its own, as large as there is room. */
export function radialLayout(nodes: readonly GraphNode[]): Layout {
  const count = nodes.length - 1;
  let size = wanted(count);
  if (count > MANY) {
    const order = byDistance(nodes);
    const radius = radiusOf(nodes, size);
    const r = Float64Array.from(order, (i) => radius(nodes[i]!.distance));
    while (size > SMALLEST && crowded(r, size) > count / 3) size = Math.max(SMALLEST, size * 0.9);
    return { at: place(nodes, size, false), size };
  }
  const least = SHRUNK * size;
  for (;;) {
    for (const even of [false, true]) {
      const at = place(nodes, size, even);
      if (size <= least || overlapping(at, size) <= OVERLAPPING) return { at, size };
    }
    size = Math.max(least, size * 0.92);
  }
}

function byDistance(nodes: readonly GraphNode[]): number[] {
  const order = nodes.map((_, i) => i).slice(1);
  return order.sort((a, b) => nodes[a]!.distance - nodes[b]!.distance || a - b);
}

/** Where cases of side `size` lie; `even`: round the query evenly, where their own directions leave too little room. */
function place(nodes: readonly GraphNode[], size: number, even: boolean): Float64Array {
  const at = new Float64Array(2 * nodes.length);
  const order = byDistance(nodes);
  const radius = radiusOf(nodes, size);
  const r = Float64Array.from(order, (i) => radius(nodes[i]!.distance));
  const [nearest, farthest] = range(nodes);
  const angle = evened(
    order.map((i) => nodes[i]!.angle),
    even || nearest === farthest,
  );
  separate(r, angle, size * APART);
  order.forEach((i, k) => {
    at[2 * i] = r[k]! * Math.cos(angle[k]!);
    at[2 * i + 1] = r[k]! * Math.sin(angle[k]!);
  });
  return at;
}

/** Share of the cases whose square of side `size` overlaps another's. */
export function overlapping(at: ArrayLike<number>, size: number): number {
  const n = at.length / 2;
  const over = new Set<number>();
  for (let i = 1; i < n; i++)
    for (let j = i + 1; j < n; j++)
      if (Math.abs(at[2 * i]! - at[2 * j]!) < size && Math.abs(at[2 * i + 1]! - at[2 * j + 1]!) < size)
        over.add(i).add(j);
  return over.size / Math.max(1, n - 1);
}

/** Directions spread more evenly round the circle, in the same order round it; quite evenly where all lie on one. */
function evened(angles: readonly number[], circle: boolean): Float64Array {
  const n = angles.length;
  const turned = angles.map((a) => (Number.isFinite(a) ? ((a % TURN) + TURN) % TURN : 0));
  const order = turned.map((_, i) => i).sort((a, b) => turned[a]! - turned[b]! || a - b);
  // The even circle is turned to where it moves the given directions least.
  const shift = order.reduce((sum, i, k) => sum + turned[i]! - (TURN * k) / n, 0) / Math.max(1, n);
  const out = new Float64Array(n);
  const share = evening(n, circle);
  // Linear between two monotone sequences on the unrolled circle stays monotone: the order holds.
  order.forEach((i, k) => {
    const even = shift + (TURN * k) / n;
    out[i] = turned[i]! + share * (even - turned[i]!);
  });
  return out;
}

/** Push squares of side `size` apart along their circles; `radius` is sorted and never changed. */
function separate(radius: Float64Array, angle: Float64Array, size: number): void {
  const n = radius.length;
  const reach = size * Math.SQRT2;
  const free = beyondQuery(size / APART);
  const most = rounds(n);
  for (let round = 0; round < most; round++) {
    let moved = false;
    for (let i = 0; i < n; i++) {
      const ri = radius[i]!;
      for (let j = i + 1; j < n && radius[j]! - ri < reach; j++) {
        const gap = radius[j]! - ri;
        const mean = Math.max((radius[j]! + ri) / 2, INNER / 2);
        const need = Math.min(Math.PI, Math.sqrt(reach * reach - gap * gap) / mean);
        let apart = angle[i]! - angle[j]!;
        apart -= TURN * Math.round(apart / TURN);
        if (Math.abs(apart) >= need) continue;
        const step = (need - Math.abs(apart)) * 0.26 * (apart < 0 ? -1 : 1);
        angle[i]! += step;
        angle[j]! -= step;
        moved ||= Math.abs(step) > 1e-4;
      }
      angle[i] = beside(angle[i]!, ri, free);
    }
    if (!moved) return;
  }
}

/** The direction turned off the diagonal just so far that a case at `radius` lies beside the query's square. */
function beside(angle: number, radius: number, free: number): number {
  if (radius * Math.SQRT1_2 >= free) return angle;
  const quarter = TURN / 4;
  const axis = Math.round(angle / quarter) * quarter;
  const most = Math.acos(Math.min(1, free / radius));
  return axis + Math.max(-most, Math.min(most, angle - axis));
}

/** Rings at round similarities between the farthest and the nearest case; one where all are equally far. */
export function rings(nodes: readonly GraphNode[], size: number): Ring[] {
  if (nodes.length < 2) return [];
  const [nearest, farthest] = range(nodes);
  const radius = radiusOf(nodes, size);
  const high = 1 - nearest;
  const low = 1 - farthest;
  const span = high - low;
  if (span < 1e-9) return [{ radius: radius(nearest), similarity: high, digits: 3 }];
  const steps = (step: number) => Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1;
  const power = 10 ** Math.floor(Math.log10(span / RINGS));
  const times = [1, 2, 2.5, 5, 10].find((m) => steps(m * power) <= RINGS) ?? 10;
  const step = times * power;
  const digits = Math.min(6, Math.max(2, Math.ceil(-Math.log10(power) - 1e-9) + (times === 2.5 ? 1 : 0)));
  const found: Ring[] = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9; k++) {
    const ring = radius(1 - k * step);
    found.push({ radius: ring, similarity: k * step, digits });
  }
  return found.sort((a, b) => a.radius - b.radius);
}

/** Pairs of cases drawn in another order from the centre than their distances have; one in a million of a pixel is equal. */
export function inversions(distances: readonly number[], at: ArrayLike<number>, tolerance = 1e-6): number {
  let count = 0;
  const radius = distances.map((_, i) => Math.hypot(at[2 * i]! - at[0]!, at[2 * i + 1]! - at[1]!));
  for (let i = 1; i < distances.length; i++)
    for (let j = i + 1; j < distances.length; j++) {
      const true_ = distances[i]! - distances[j]!;
      const drawn = radius[i]! - radius[j]!;
      if ((true_ < 0 && drawn > tolerance) || (true_ > 0 && drawn < -tolerance)) count++;
    }
  return count;
}

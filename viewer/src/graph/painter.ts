/* Draws one picture of the graph. Canvas 2D only: it works on a remote desktop without a graphics card. */
import type { Camera } from './camera';
import { BACKGROUND, BAND, EDGE, EDGE_NEAR, RING, RING_TEXT, SELECTION, TEXT } from './colours';
import type { Ring } from './radial';
import { freePlace, type Label } from './ringlabels';
import { Sprites } from './sprites';
import { drawTile, font, margin } from './tile';
import type { GraphNode } from './types';

/** From here on tiles are copied from the sheet instead of drawn one by one. */
const MANY = 160;
/** Ranks are written beside pictures of this side in pixels, when no more than MANY are in view. */
const RANKED = 26;
const FADED = 0.13;
/** Cases joined to the centre by a line. */
const SPOKES = 12;
const LONGEST = 300;

export interface Scene {
  nodes: readonly GraphNode[];
  edges: readonly (readonly [number, number, number])[];
  /** x, y in layout units, now. */
  at: Float64Array;
  shown: Uint8Array;
  pictures: readonly (ImageBitmap | undefined)[];
  rings: readonly Ring[];
  /** 0 to 1: rings fade in and out when the layout changes. */
  ringAlpha: number;
  /** Direction in which rings are labelled. */
  ringAngle: number;
  selected: number;
  hover: number;
  focused: boolean;
  similarity(value: number, digits: number): string;
}

export class Painter {
  readonly to: CanvasRenderingContext2D;
  readonly sprites = new Sprites();
  background = BACKGROUND;
  private base = [11, 13, 16];
  private sx = new Float64Array(0);
  private sy = new Float64Array(0);

  constructor(canvas: HTMLCanvasElement) {
    const context = canvas.getContext('2d', { alpha: false });
    if (!context) throw new Error('this browser draws no canvas');
    this.to = context;
  }

  /** Draw on this colour, as the browser computes it: `rgb(r, g, b)`. */
  setBackground(computed: string): void {
    const parts = computed.match(/[\d.]+/g)?.map(Number) ?? [];
    if (!computed.startsWith('rgb') || parts.length < 3 || parts[3] === 0) return;
    this.base = parts.slice(0, 3);
    this.background = this.shade(0);
  }

  draw(scene: Scene, camera: Camera): void {
    const { to } = this;
    to.setTransform(camera.ratio, 0, 0, camera.ratio, 0, 0);
    to.fillStyle = this.background;
    to.fillRect(0, 0, camera.width, camera.height);
    const n = scene.nodes.length;
    if (!n) return;
    if (this.sx.length !== n) {
      this.sx = new Float64Array(n);
      this.sy = new Float64Array(n);
    }
    for (let i = 0; i < n; i++) {
      this.sx[i] = camera.px(scene.at[2 * i]!);
      this.sy[i] = camera.py(scene.at[2 * i + 1]!);
    }
    this.drawRings(scene, camera);
    this.drawEdges(scene, camera);
    this.drawNodes(scene, camera);
    this.drawRingLabels(scene, camera);
    this.drawLabels(scene, camera);
    if (scene.focused) {
      to.strokeStyle = SELECTION;
      to.lineWidth = 2;
      to.strokeRect(2, 2, camera.width - 4, camera.height - 4);
    }
  }

  private drawRings(scene: Scene, camera: Camera): void {
    const { to } = this;
    if (!scene.ringAlpha) return;
    const r = (ring: Ring) => ring.radius * camera.scale * camera.k;
    // Opaque, from the outside in: see-through circles over each other cost much more.
    [...scene.rings].reverse().forEach((ring, k) => {
      to.fillStyle = this.shade((k + 1) * scene.ringAlpha);
      to.beginPath();
      to.arc(this.sx[0]!, this.sy[0]!, r(ring), 0, 7);
      to.fill();
    });
    to.globalAlpha = scene.ringAlpha;
    to.strokeStyle = RING;
    to.lineWidth = 1;
    for (const ring of scene.rings) {
      to.beginPath();
      to.arc(this.sx[0]!, this.sy[0]!, r(ring), 0, 7);
      to.stroke();
    }
    to.globalAlpha = 1;
  }

  /** The background inside `depth` rings. */
  private shade(depth: number): string {
    return `rgb(${this.base.map((c, k) => Math.round(c + BAND[k]! * depth)).join(' ')})`;
  }

  private drawRingLabels(scene: Scene, camera: Camera): void {
    const { to } = this;
    if (!scene.ringAlpha) return;
    to.globalAlpha = scene.ringAlpha;
    to.font = font(11, 600);
    to.textAlign = 'center';
    to.textBaseline = 'middle';
    const placed: Label[] = [{ x: this.sx[0]!, y: this.sy[0]!, w: camera.centreSize, h: camera.centreSize }];
    // Crowds of tiny pictures have no free place: there a label hides the fewest where all of them are.
    const crowd = camera.size < RANKED;
    for (const ring of scene.rings) {
      const r = ring.radius * camera.scale * camera.k;
      const text = scene.similarity(ring.similarity, ring.digits);
      const w = to.measureText(text).width + 10;
      const h = 16;
      const free = freePlace(scene.ringAngle, r, [w, h], crowd ? [this.sx[0]!] : this.sx, this.sy, camera.size, placed);
      if (free === null) continue;
      placed.push(free);
      const [x, y] = [camera.snap(free.x), camera.snap(free.y)];
      pill(to, x - w / 2, y - h / 2, w, h, this.background, RING);
      to.fillStyle = RING_TEXT;
      to.fillText(text, x, y + 0.5);
    }
    to.globalAlpha = 1;
  }

  private segment(a: number, b: number, camera: Camera): boolean {
    const x1 = this.sx[a]!;
    const y1 = this.sy[a]!;
    const x2 = this.sx[b]!;
    const y2 = this.sy[b]!;
    if ((x1 < 0 && x2 < 0) || (y1 < 0 && y2 < 0)) return false;
    if ((x1 > camera.width && x2 > camera.width) || (y1 > camera.height && y2 > camera.height)) return false;
    this.to.moveTo(x1, y1);
    this.to.lineTo(x2, y2);
    return true;
  }

  private drawEdges(scene: Scene, camera: Camera): void {
    const { to } = this;
    const { shown, selected, hover } = scene;
    const strokes = (colour: string, width: number, pairs: Iterable<readonly [number, number, ...number[]]>) => {
      to.strokeStyle = colour;
      to.lineWidth = width;
      // One path a line: the rasteriser's cost grows with the square of the crossings within one path.
      for (const [a, b] of pairs) {
        if (!shown[a] || !shown[b]) continue;
        to.beginPath();
        if (this.segment(a, b, camera)) to.stroke();
      }
    };
    strokes(EDGE, 1, scene.edges);
    const spokes: [number, number][] = [];
    for (let i = 1; i < Math.min(scene.nodes.length, SPOKES + 1); i++) spokes.push([0, i]);
    strokes(EDGE_NEAR, 1, spokes);
    const marked = new Set([selected, hover].filter((i) => i > 0));
    if (!marked.size) return;
    to.globalAlpha = 0.55;
    strokes(
      SELECTION,
      1,
      scene.edges.filter(([a, b]) => marked.has(a) || marked.has(b)),
    );
    to.globalAlpha = 1;
    strokes(
      SELECTION,
      2,
      [...marked].map((i) => [0, i] as const),
    );
  }

  private drawNodes(scene: Scene, camera: Camera): void {
    const { to } = this;
    const { nodes, shown, pictures, selected, hover } = scene;
    const size = camera.size;
    const reach = size / 2 + margin(size);
    const inView: number[] = [];
    for (let i = nodes.length - 1; i > 0; i--) {
      const x = this.sx[i]!;
      const y = this.sy[i]!;
      if (x > -reach && y > -reach && x < camera.width + reach && y < camera.height + reach) inView.push(i);
    }
    const many = inView.length > MANY;
    const onTop = (i: number) => i === selected || i === hover;
    if (many) {
      this.sprites.prepare(nodes.length, size * camera.ratio);
      for (const i of inView) this.sprites.make(i, nodes[i]!, pictures[i]);
      to.setTransform(1, 0, 0, 1, 0, 0);
    }
    const one = (i: number) => {
      const x = this.sx[i]!;
      const y = this.sy[i]!;
      if (many) this.sprites.copy(to, i, x * camera.ratio, y * camera.ratio, size * camera.ratio);
      else drawTile(to, nodes[i]!, pictures[i], camera.snap(x), camera.snap(y), size, false);
    };
    to.globalAlpha = FADED;
    for (const i of inView) if (!shown[i]) one(i);
    to.globalAlpha = 1;
    for (const i of inView) if (shown[i] && !onTop(i)) one(i);
    to.setTransform(camera.ratio, 0, 0, camera.ratio, 0, 0);
    if (!many && size >= RANKED) this.drawRanks(scene, camera, inView);
    drawTile(to, nodes[0]!, pictures[0], camera.snap(this.sx[0]!), camera.snap(this.sy[0]!), camera.centreSize, true);
    for (const i of [hover, selected]) {
      if (i < 0 || i >= nodes.length || !shown[i]) continue;
      if (i === 0 && i !== hover && !scene.focused) continue; // the query stands out as it is
      const side = camera.sizeOf(i);
      const x = camera.snap(this.sx[i]!);
      const y = camera.snap(this.sy[i]!);
      const out = side / 2 + (i ? 5 : Math.max(3, Math.min(5, side * 0.08)) + 3);
      to.strokeStyle = SELECTION;
      to.lineWidth = i === selected ? 2.5 : 1.5;
      to.strokeRect(x - out, y - out, 2 * out, 2 * out);
      if (i) drawTile(to, nodes[i]!, pictures[i], x, y, side, false);
    }
  }

  private drawRanks(scene: Scene, camera: Camera, inView: readonly number[]): void {
    const { to } = this;
    to.font = font(10.5, 600);
    to.textAlign = 'center';
    to.textBaseline = 'top';
    to.lineJoin = 'round';
    to.strokeStyle = this.background;
    to.lineWidth = 3;
    to.fillStyle = RING_TEXT;
    for (const i of inView) {
      if (!scene.shown[i] || i === scene.selected || i === scene.hover) continue;
      const text = String(scene.nodes[i]!.rank);
      const x = camera.snap(this.sx[i]!);
      const y = camera.snap(this.sy[i]! + camera.size / 2 + 4);
      to.strokeText(text, x, y);
      to.fillText(text, x, y);
    }
  }

  /** What the case under the pointer is, or the one the keyboard is on. */
  private drawLabels(scene: Scene, camera: Camera): void {
    const i = scene.hover >= 0 ? scene.hover : scene.focused ? scene.selected : -1;
    const label = scene.nodes[i]?.label;
    if (!label || !scene.shown[i]) return;
    const { to } = this;
    to.font = font(12, 500);
    const text = fitted(to, label);
    const w = to.measureText(text).width + 16;
    const side = camera.sizeOf(i) / 2;
    const x = Math.max(4, Math.min(camera.width - w - 4, camera.snap(this.sx[i]! - w / 2)));
    const above = this.sy[i]! - side - 36;
    const y = camera.snap(above > 4 ? above : this.sy[i]! + side + 22);
    pill(to, x, y, w, 24, '#1b2530', SELECTION);
    to.fillStyle = TEXT;
    to.textAlign = 'center';
    to.textBaseline = 'middle';
    to.fillText(text, x + w / 2, y + 12.5);
  }
}

function pill(
  to: CanvasRenderingContext2D,
  x: number,
  y: number,
  w: number,
  h: number,
  fill: string,
  line: string,
): void {
  to.beginPath();
  to.roundRect(x + 0.5, y + 0.5, w - 1, h - 1, h / 2);
  to.fillStyle = fill;
  to.fill();
  to.strokeStyle = line;
  to.lineWidth = 1;
  to.stroke();
}

/** At most LONGEST pixels of text, isolated from the writing direction round it. */
function fitted(to: CanvasRenderingContext2D, text: string): string {
  const isolated = (t: string) => `\u2068${t}\u2069`;
  let short = text.slice(0, 120);
  if (short === text && to.measureText(short).width <= LONGEST) return isolated(short);
  while (short.length > 1 && to.measureText(`${short}…`).width > LONGEST) short = short.slice(0, -1);
  return isolated(`${short}…`);
}

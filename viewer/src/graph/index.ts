/*
 * The graph of an answer on a canvas: what is where, what moves, and what is in view. It knows cases by number alone;
 * what a case is, and what happens when it is chosen, is the page's. painter.ts draws, input.ts reads pointer and keys.
 */
import { select } from 'd3-selection';
import { type D3ZoomEvent, type ZoomBehavior, type ZoomTransform, zoom, zoomIdentity, zoomTransform } from 'd3-zoom';
import 'd3-transition';
import { Camera } from './camera';
import { ForceLayout } from './force';
import { Input } from './input';
import { Painter } from './painter';
import { type Ring, radialLayout, rings } from './radial';
import { labelDirection } from './ringlabels';
import type { GraphData, GraphNode, GraphOptions, LayoutKind } from './types';

export type { GraphData, GraphNode, GraphOptions, LayoutKind, Status } from './types';

const MOVE_MS = 300;
const ZOOM_MS = 160;
const ZOOM_RANGE: [number, number] = [0.5, 24];

interface Move {
  from: Float64Array;
  to: Float64Array;
  began: number;
  ringsFrom: number;
  ringsTo: number;
  done(): void;
}

interface Probe {
  ready: boolean;
  layout: LayoutKind;
  query: { x: number; y: number } | null;
  nodes: { id: string; rank: number; similarity: number; x: number; y: number }[];
  /** How many nodes there are, and how many of them have their picture. */
  count: number;
  pictures: number;
}

declare global {
  interface Window {
    /** Where everything is, in CSS pixels of the window: for tests and measurements. */
    readonly __viewer: Probe;
  }
}

export class GraphView {
  /** True once what was asked for last is drawn and nothing moves. */
  ready = false;
  selected = 0;
  private kind: LayoutKind = 'radial';
  private data: GraphData = { nodes: [], edges: [], calibrated: false };
  private at: Float64Array = new Float64Array(0);
  private shown = new Uint8Array(0);
  private pictures: (ImageBitmap | undefined)[] = [];
  private byId = new Map<string, number>();
  private visible: (n: GraphNode) => boolean = () => true;
  private rings: Ring[] = [];
  private ringAlpha = 1;
  private ringAngle = -Math.PI / 2;
  private hover = -1;
  private keyboard = false;
  private move: Move | undefined;
  private request = 0;
  private frame = 0;
  private readonly camera = new Camera();
  private readonly painter: Painter;
  private readonly force = new ForceLayout();
  private readonly zoom: ZoomBehavior<HTMLCanvasElement, unknown>;
  private readonly resizes: ResizeObserver;
  private readonly words: HTMLElement;
  private readonly input: Input;

  constructor(
    readonly canvas: HTMLCanvasElement,
    private readonly options: GraphOptions,
  ) {
    this.painter = new Painter(canvas);
    if (!canvas.hasAttribute('tabindex')) canvas.tabIndex = 0;
    if (!canvas.hasAttribute('role')) canvas.setAttribute('role', 'application');
    this.words = canvas.appendChild(document.createElement('span'));
    this.words.id = `${canvas.id || 'graph'}-words`;
    if (!canvas.hasAttribute('aria-describedby')) canvas.setAttribute('aria-describedby', this.words.id);
    canvas.style.touchAction = 'none';
    canvas.style.cursor = 'grab';
    this.zoom = zoom<HTMLCanvasElement, unknown>()
      .scaleExtent(ZOOM_RANGE)
      .clickDistance(4)
      .on('start', () => this.point(-1))
      .on('zoom', ({ transform }: D3ZoomEvent<HTMLCanvasElement, unknown>) => this.look(transform));
    select(canvas).call(this.zoom).on('dblclick.zoom', null);
    this.resizes = new ResizeObserver(() => this.measure());
    this.resizes.observe(canvas);
    this.measure();
    this.input = this.listen();
    Object.defineProperty(window, '__viewer', { configurable: true, get: () => this.probe() });
  }

  get layout(): LayoutKind {
    return this.kind;
  }

  /** Whether distances in the picture are only approximate: the page says so. */
  get approximate(): boolean {
    return this.kind === 'force';
  }

  /** Show other cases; those that stay move to their new places. Resolves when nothing moves any more. */
  async setData(data: GraphData, keepView = false): Promise<void> {
    const old = this.byId;
    const before = this.at;
    const chosen = this.data.nodes[this.selected]?.id;
    const pictures = this.pictures;
    this.halt();
    this.ready = false;
    this.data = data;
    this.byId = new Map(data.nodes.map((n, i) => [n.id, i]));
    this.pictures = data.nodes.map((n) => pictures[old.get(n.id) ?? -1]);
    this.selected = (keepView && chosen !== undefined && this.byId.get(chosen)) || 0;
    this.hover = -1;
    this.at = new Float64Array(2 * data.nodes.length);
    data.nodes.forEach((n, i) => {
      const o = old.get(n.id);
      if (o === undefined) return; // new cases come from the centre
      this.at[2 * i] = before[2 * o]!;
      this.at[2 * i + 1] = before[2 * o + 1]!;
    });
    this.painter.sprites.forgetAll();
    this.applyFilter();
    this.describe();
    if (!keepView) this.fit();
    await this.arrange(before.length > 0);
  }

  /** Change the layout; the cases move to their new places. Resolves when nothing moves any more. */
  async setLayout(kind: LayoutKind): Promise<void> {
    if (kind === this.kind) return;
    this.kind = kind;
    this.ready = false;
    await this.arrange(true);
  }

  setThumbnail(id: string, bitmap: ImageBitmap): void {
    const i = this.byId.get(id);
    if (i === undefined) return;
    this.pictures[i] = bitmap;
    this.painter.sprites.forget(i);
    this.invalidate();
  }

  /** Cases for which `visible` is false are faded and cannot be reached. */
  setFilter(visible: (n: GraphNode) => boolean): void {
    this.visible = visible;
    this.applyFilter();
    this.invalidate();
  }

  /** Choose a case, tell the page, and bring it into view. */
  select(i: number): void {
    if (!this.data.nodes[i]) return;
    this.selected = i;
    this.describe();
    this.reveal(i);
    this.invalidate();
    this.options.onSelect(i);
  }

  fit(): void {
    this.go((s) => this.zoom.transform(s, zoomIdentity));
  }

  zoomBy(factor: number): void {
    this.go((s) => this.zoom.scaleBy(s, factor));
  }

  /** Where a case is, in CSS pixels of the window. */
  screen(i: number): { x: number; y: number } {
    return this.place(i, this.canvas.getBoundingClientRect());
  }

  destroy(): void {
    this.halt();
    cancelAnimationFrame(this.frame);
    this.input.destroy();
    this.resizes.disconnect();
    this.force.destroy();
    select(this.canvas).interrupt().on('.zoom', null);
    this.words.remove();
    Reflect.deleteProperty(window, '__viewer');
  }

  private async arrange(animated: boolean): Promise<void> {
    const request = ++this.request;
    const { data, kind } = this;
    const exact = radialLayout(data.nodes);
    const to = kind === 'radial' ? exact.at : await this.force.run(data, exact);
    if (request !== this.request) return; // something newer was asked for
    this.halt();
    this.camera.unit = exact.size;
    if (kind === 'radial') {
      this.rings = rings(data.nodes, exact.size);
      this.ringAngle = labelDirection(exact.at, this.rings, this.camera.unit);
    }
    const rest = () => {
      this.at = to;
      this.ringAlpha = kind === 'radial' ? 1 : 0;
      this.ready = true;
      this.invalidate();
    };
    if (!animated || still() || document.hidden) return rest();
    await new Promise<void>((resolve) => {
      this.move = {
        from: this.at,
        to,
        began: performance.now(),
        ringsFrom: this.ringAlpha,
        ringsTo: kind === 'radial' ? 1 : 0,
        done: resolve,
      };
      this.at = new Float64Array(this.at);
      this.invalidate();
    });
    if (request === this.request) rest();
  }

  private step(now: number): void {
    const { move } = this;
    if (!move) return;
    const t = Math.min(1, Math.max(0, (now - move.began) / MOVE_MS));
    const eased = 1 - (1 - t) ** 3;
    for (let k = 0; k < this.at.length; k++) this.at[k] = move.from[k]! + (move.to[k]! - move.from[k]!) * eased;
    this.ringAlpha = move.ringsFrom + (move.ringsTo - move.ringsFrom) * eased;
    if (t === 1) this.halt();
    else this.invalidate();
  }

  /** Stop moving, where it is now. */
  private halt(): void {
    const { move } = this;
    this.move = undefined;
    move?.done();
  }

  private invalidate(): void {
    this.frame ||= requestAnimationFrame((now) => {
      this.frame = 0;
      this.step(now);
      if (!this.camera.width || !this.camera.height) return;
      this.painter.draw(
        {
          nodes: this.data.nodes,
          edges: this.data.edges,
          at: this.at,
          shown: this.shown,
          pictures: this.pictures,
          rings: this.rings,
          ringAlpha: this.ringAlpha,
          ringAngle: this.ringAngle,
          selected: this.selected,
          hover: this.hover,
          focused: this.keyboard,
          similarity: (value, digits) => this.options.words?.similarity(value, digits) ?? value.toFixed(digits),
        },
        this.camera,
      );
    });
  }

  private measure(): void {
    const { camera, canvas } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    if (width === camera.width && height === camera.height && ratio === camera.ratio) return;
    const was = { width: camera.width, height: camera.height };
    Object.assign(camera, { width, height, ratio });
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    this.painter.setBackground(getComputedStyle(canvas).backgroundColor);
    this.zoom.extent([
      [0, 0],
      [width, height],
    ]);
    this.zoom.translateExtent([
      [-width * 0.6, -height * 0.6],
      [width * 1.6, height * 1.6],
    ]);
    if (was.width && camera.k !== 1) {
      const t = zoomTransform(canvas);
      const moved = zoomIdentity.translate((t.x * width) / was.width, (t.y * height) / was.height).scale(t.k);
      select(canvas).call(this.zoom.transform, moved);
    }
    this.invalidate();
  }

  private look(t: ZoomTransform): void {
    this.camera.k = t.k;
    this.camera.x = t.x;
    this.camera.y = t.y;
    this.invalidate();
  }

  /** A change of view, animated unless motion is unwanted. */
  // biome-ignore lint/suspicious/noExplicitAny: d3-zoom takes a selection or a transition, and types them apart
  private go(change: (to: any) => void): void {
    const canvas = select(this.canvas);
    change(still() || document.hidden || !this.data.nodes.length ? canvas : canvas.transition().duration(ZOOM_MS));
  }

  private reveal(i: number): void {
    const room = Math.min(48, this.camera.width / 4, this.camera.height / 4);
    const x = this.camera.px(this.at[2 * i]!);
    const y = this.camera.py(this.at[2 * i + 1]!);
    const dx = Math.max(room - x, 0) + Math.min(this.camera.width - room - x, 0);
    const dy = Math.max(room - y, 0) + Math.min(this.camera.height - room - y, 0);
    if (dx || dy) this.go((s) => this.zoom.translateBy(s, dx / this.camera.k, dy / this.camera.k));
  }

  private applyFilter(): void {
    this.shown = Uint8Array.from(this.data.nodes, (n, i) => (i === 0 || (!n.hidden && this.visible(n)) ? 1 : 0));
  }

  private describe(): void {
    this.words.textContent = this.data.nodes.length ? this.options.describe(this.selected) : '';
  }

  private point(i: number): void {
    if (i === this.hover) return;
    this.hover = i;
    this.canvas.style.cursor = i < 0 ? 'grab' : 'pointer';
    this.invalidate();
    this.options.onHover?.(i);
  }

  private listen(): Input {
    const view = this;
    return new Input(this.canvas, {
      get count() {
        return view.data.nodes.length;
      },
      get selected() {
        return view.selected;
      },
      get at() {
        return view.at;
      },
      shown: (i) => this.shown[i] === 1,
      square: (i) => ({
        x: this.camera.px(this.at[2 * i]!),
        y: this.camera.py(this.at[2 * i + 1]!),
        side: this.camera.sizeOf(i),
      }),
      select: (i) => this.select(i),
      open: (i) => this.options.onOpen(i),
      hover: (i) => this.point(i),
      zoomBy: (factor) => this.zoomBy(factor),
      fit: () => this.fit(),
      focus: (keyboard) => this.focused(keyboard),
    });
  }

  private focused(keyboard: boolean): void {
    if (keyboard === this.keyboard) return;
    this.keyboard = keyboard;
    this.invalidate();
  }

  private place(i: number, box: DOMRect): { x: number; y: number } {
    return {
      x: box.left + this.camera.px(this.at[2 * i] ?? 0),
      y: box.top + this.camera.py(this.at[2 * i + 1] ?? 0),
    };
  }

  /** Places are only worked out when they are read: tests look at each frame whether the graph is ready. */
  private probe(): Probe {
    const view = this;
    const box = () => this.canvas.getBoundingClientRect();
    return {
      ready: this.ready && !this.frame,
      layout: this.kind,
      get query() {
        return view.data.nodes.length ? view.place(0, box()) : null;
      },
      get nodes() {
        const at = box();
        return view.data.nodes.map(({ id, rank, similarity }, i) => ({ id, rank, similarity, ...view.place(i, at) }));
      },
      count: this.data.nodes.length,
      pictures: this.pictures.reduce((count, picture) => count + (picture ? 1 : 0), 0),
    };
  }
}

function still(): boolean {
  return matchMedia('(prefers-reduced-motion: reduce)').matches;
}

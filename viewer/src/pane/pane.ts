/* One picture: a slice on a canvas, its window, colours and outlines over it, and the ways to move. No WebGL. */

import type { Series } from '../api';
import { fill, h, svg } from '../dom';
import { t } from '../i18n';
import { greys, heat, paint, type Window } from './lut';
import { type Masks, OUTLINES, type Outline, type Place, placed, trace } from './outline';
import { moved, WHOLE, ZOOM_STEP, type Zoom, zoomed } from './zoom';

export interface PaneActions {
  /** Go to a frame. */
  move(frame: number): void;
  /** Centre and width changed by hand. */
  window(window: Window): void;
  /** Window and zoom as they were at first. */
  reset(): void;
  /** Another part of the picture is to be seen. */
  zoom(zoom: Zoom): void;
}

const TOUCH_STEP = 14; // pixels of a finger's way for one slice
const PAGE = 10;
const KEY_WAY = 0.1; // share of the stage that Shift and an arrow move by

export class Pane {
  readonly root: HTMLElement;
  private readonly stage: HTMLElement;
  private readonly canvas = h('canvas', { class: 'pane-image', 'aria-hidden': 'true' });
  private readonly overlay = h('canvas', { class: 'pane-heat', 'aria-hidden': 'true' });
  private readonly outlines = svg('svg', { class: 'pane-outlines', 'aria-hidden': 'true', focusable: 'false' });
  private readonly traced = new Map<Outline, string>();
  private masks: Masks | null = null;
  private readonly slider = h('input', { type: 'range', min: 0, step: 1, value: 0 });
  private readonly place = h('span', { class: 'pane-place' });
  private readonly told = h('span', { class: 'pane-window' });
  /** Said in the picture itself, for whoever sees no more of the page. */
  private readonly label = h('span', { class: 'pane-label', hidden: true }, t('outline.label'));
  private readonly message = h('p', { class: 'pane-message', role: 'status' });
  private series: Series | null = null;
  private frame: Int16Array | null = null;
  private n = 0;
  private window: Window = { center: 40, width: 400 };
  private table: Uint32Array | null = null;
  private wheel = 0;
  private zoom = WHOLE;
  private readonly pointers = new Map<number, { x: number; y: number }>();
  /** Dragging moves the picture instead of changing its window. */
  moving = false;

  constructor(
    private readonly name: string,
    readonly title: HTMLElement,
    private readonly actions: PaneActions,
  ) {
    this.stage = h(
      'div',
      { class: 'pane-stage', tabindex: 0, role: 'group', 'aria-label': name },
      this.canvas,
      this.overlay,
      this.outlines,
      this.place,
      this.told,
      this.label,
      this.message,
    );
    this.slider.className = 'pane-slider';
    this.slider.setAttribute('aria-label', t('compare.slice')); // a pane without a series has a name too
    this.root = h('div', { class: 'pane' }, title, this.stage, this.slider);
    this.listen();
  }

  /** The series to move through; null where there is none. */
  setSeries(series: Series | null): void {
    this.series = series;
    this.frame = null;
    this.slider.max = String(Math.max(0, (series?.frames ?? 1) - 1));
    this.slider.disabled = series === null || series.frames < 2;
    this.clearHeat();
    this.clearOutlines();
    if (series === null) this.say(t('compare.no_images'));
  }

  /** Where in the series; before its picture is there, the last one stays. */
  setPlace(n: number): void {
    const total = this.series?.frames ?? 0;
    this.stage.toggleAttribute('data-waiting', true); // what lies over a picture is of no other
    this.n = n;
    this.slider.value = String(n);
    this.place.textContent = total ? t('compare.slice_of', { n: n + 1, total }) : '';
    const words = t('compare.pane_label', { name: this.name, n: n + 1, total });
    this.stage.setAttribute('aria-label', total ? words : this.name);
    this.slider.setAttribute('aria-label', `${this.name}: ${t('compare.slice')}`);
    this.slider.setAttribute('aria-valuetext', t('compare.slice_of', { n: n + 1, total }));
  }

  setWindow(window: Window): void {
    this.window = window;
    this.table = null;
    this.told.textContent = t('compare.window_value', {
      center: Math.round(window.center),
      width: Math.round(window.width),
    });
    this.draw();
  }

  /** Show this part of the picture. */
  setZoom(zoom: Zoom): void {
    this.zoom = zoom;
    const transform =
      zoom.scale === 1 ? '' : `translate(${100 * zoom.x}%, ${100 * zoom.y}%) scale(${zoom.scale.toFixed(4)})`;
    this.canvas.style.transform = transform;
    this.overlay.style.transform = transform;
    this.outlines.style.transform = transform;
    this.outlines.style.setProperty('--zoom', String(zoom.scale));
    this.stage.dataset.zoom = zoom.scale.toFixed(2);
  }

  /** Larger or smaller around the middle of what is in view. */
  zoomBy(factor: number): void {
    this.actions.zoom(zoomed(this.zoom, factor));
  }

  setMoving(moving: boolean): void {
    this.moving = moving;
    this.stage.classList.toggle('moving', moving);
  }

  setFrame(frame: Int16Array): void {
    this.frame = frame;
    this.stage.toggleAttribute('data-waiting', false);
    this.say('');
    this.draw();
  }

  say(words: string): void {
    this.message.textContent = words;
    this.message.hidden = words === '';
  }

  /** Lay the effects over the part of the picture that they are of. */
  setHeat(effects: number[][], highest: number, opacity: number, place: Place): void {
    const source = h('canvas');
    const image = heat(effects, highest);
    source.width = image.width;
    source.height = image.height;
    source.getContext('2d')?.putImageData(image, 0, 0);
    this.overlay.width = this.canvas.width;
    this.overlay.height = this.canvas.height;
    const ink = this.overlay.getContext('2d');
    if (ink === null) return;
    ink.imageSmoothingEnabled = true;
    ink.imageSmoothingQuality = 'high';
    ink.drawImage(source, ...placed(place, this.overlay.width, this.overlay.height));
    this.overlay.style.opacity = String(opacity);
    this.overlay.hidden = false;
  }

  setOpacity(opacity: number): void {
    this.overlay.style.opacity = String(opacity);
  }

  clearHeat(): void {
    this.overlay.hidden = true;
  }

  /** Draw the edges of masks over the picture. */
  setOutlines(masks: Masks, wanted: Outline[]): void {
    const { series } = this;
    if (series === null) return;
    const [width, height] = [series.columns, shownHeight(series)];
    if (masks !== this.masks) this.traced.clear();
    this.masks = masks;
    this.outlines.setAttribute('viewBox', `0 0 ${width} ${height}`);
    const drawn = OUTLINES.filter((which) => wanted.includes(which)).map((which) => {
      const way = this.traced.get(which) ?? trace(masks, which, width, height);
      this.traced.set(which, way);
      if (way === '') return null;
      return svg(
        'g',
        { class: `outline outline-${which}` },
        svg('path', { d: way, class: 'outline-halo' }),
        svg('path', { d: way, class: `outline-line outline-line-${which}` }),
      );
    });
    fill(this.outlines, ...drawn);
    this.label.hidden = !wanted.some((which) => this.outlined(which));
  }

  /** Whether the network has outlined that in the slice on show. */
  outlined(which: Outline): boolean {
    return (this.traced.get(which) ?? '') !== '';
  }

  clearOutlines(): void {
    this.traced.clear();
    this.masks = null;
    fill(this.outlines);
    this.label.hidden = true;
  }

  private draw(): void {
    const { series, frame } = this;
    if (series === null || frame === null || frame.length < series.rows * series.columns) return;
    this.table ??= greys(this.window, series.monochrome1);
    const image = new ImageData(series.columns, series.rows);
    paint(frame, this.table, new Uint32Array(image.data.buffer));
    const height = shownHeight(series);
    if (this.canvas.width !== series.columns || this.canvas.height !== height) {
      this.canvas.width = series.columns;
      this.canvas.height = height;
    }
    const ink = this.canvas.getContext('2d');
    if (ink === null) return;
    if (height === series.rows) ink.putImageData(image, 0, 0);
    else {
      const square = new OffscreenCanvas(series.columns, series.rows);
      square.getContext('2d')?.putImageData(image, 0, 0);
      ink.drawImage(square, 0, 0, series.columns, height);
    }
  }

  private listen(): void {
    this.slider.addEventListener('input', () => this.actions.move(Number(this.slider.value)));
    this.stage.addEventListener('keydown', (event) => this.key(event));
    this.stage.addEventListener('dblclick', () => this.actions.reset());
    this.stage.addEventListener(
      'wheel',
      (event) => {
        event.preventDefault();
        if (event.ctrlKey) {
          // a pinch on a touchpad comes as this, too
          const [px, py] = this.share(event);
          this.actions.zoom(zoomed(this.zoom, Math.exp(-event.deltaY / 300), px, py));
          return;
        }
        this.wheel += event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY / 40 : event.deltaY;
        const steps = Math.trunc(this.wheel);
        if (steps !== 0) {
          this.wheel -= steps;
          this.actions.move(this.n + Math.sign(steps) * Math.min(3, Math.abs(steps)));
        }
      },
      { passive: false },
    );
    this.stage.addEventListener('pointerdown', (event) => this.press(event));
    this.stage.addEventListener('pointermove', (event) => this.drag(event));
    for (const end of ['pointerup', 'pointercancel'] as const) {
      this.stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
  }

  private press(event: PointerEvent): void {
    if (event.button > 1) return;
    if (event.button === 1) event.preventDefault(); // no automatic scrolling
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.stage.setPointerCapture(event.pointerId);
  }

  private drag(event: PointerEvent): void {
    const last = this.pointers.get(event.pointerId);
    if (last === undefined) return;
    const now = { x: event.clientX, y: event.clientY };
    const [dx, dy] = [now.x - last.x, now.y - last.y];
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    const { width, height } = this.stage.getBoundingClientRect();
    if (other) {
      // two fingers: their distance zooms around the middle between them, their way moves
      this.pointers.set(event.pointerId, now);
      const before = Math.hypot(last.x - other.x, last.y - other.y);
      const factor = before > 0 ? Math.hypot(now.x - other.x, now.y - other.y) / before : 1;
      const [px, py] = this.share({ clientX: (now.x + other.x) / 2, clientY: (now.y + other.y) / 2 });
      this.actions.zoom(moved(zoomed(this.zoom, factor, px, py), dx / 2 / width, dy / 2 / height));
    } else if (this.moving || (event.buttons & 4) !== 0) {
      this.pointers.set(event.pointerId, now);
      this.actions.zoom(moved(this.zoom, dx / width, dy / height));
    } else if (event.pointerType === 'touch') {
      const steps = Math.trunc(dy / TOUCH_STEP);
      if (steps === 0) return;
      this.pointers.set(event.pointerId, { x: now.x, y: last.y + steps * TOUCH_STEP });
      this.actions.move(this.n + steps);
    } else {
      this.pointers.set(event.pointerId, now);
      const scale = Math.max(0.5, this.window.width / 400);
      this.actions.window({
        center: this.window.center + dy * scale,
        width: Math.max(1, this.window.width + dx * scale * 1.5),
      });
    }
  }

  /** Where on the stage, in its shares from the middle. */
  private share(at: { clientX: number; clientY: number }): [number, number] {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    return [(at.clientX - left) / width - 0.5, (at.clientY - top) / height - 0.5];
  }

  private key(event: KeyboardEvent): void {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (this.zoomKey(event)) {
      event.preventDefault();
      return;
    }
    const total = this.series?.frames ?? 1;
    const places: Record<string, number> = {
      ArrowUp: this.n - 1,
      ArrowLeft: this.n - 1,
      ArrowDown: this.n + 1,
      ArrowRight: this.n + 1,
      PageUp: this.n - PAGE,
      PageDown: this.n + PAGE,
      Home: 0,
      End: total - 1,
    };
    const place = places[event.key];
    if (place === undefined) return;
    event.preventDefault();
    this.actions.move(place);
  }

  /** +, - and 0; with Shift the arrows move the enlarged picture. */
  private zoomKey(event: KeyboardEvent): boolean {
    const arrows: Record<string, [number, number]> = {
      ArrowUp: [0, KEY_WAY],
      ArrowDown: [0, -KEY_WAY],
      ArrowLeft: [KEY_WAY, 0],
      ArrowRight: [-KEY_WAY, 0],
    };
    const way = event.shiftKey ? arrows[event.key] : undefined;
    if (way) this.actions.zoom(moved(this.zoom, ...way));
    else if (event.key === '+' || event.key === '=') this.zoomBy(ZOOM_STEP);
    else if (event.key === '-') this.zoomBy(1 / ZOOM_STEP);
    else if (event.key === '0') this.actions.zoom(WHOLE);
    else return false;
    return true;
  }
}

/** Rows of the picture with square pixels. */
function shownHeight(series: Series): number {
  const [down, across] = series.spacing ?? [1, 1];
  return Math.max(1, Math.round((series.rows * down) / (across || 1)));
}

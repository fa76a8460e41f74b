/* The pointer and the keys on the graph: which case is meant, and what is wanted of it. */
import { byRank, isDirection, neighbour } from './neighbour';

const KEY_ZOOM = 1.3;
/** Two clicks on a case within this time open it. */
const DOUBLE_MS = 400;
/** Fingers are wider than pixels. */
const SLACK_PX = 4;
const SLACK_TOUCH_PX = 14;

export interface Target {
  readonly count: number;
  readonly selected: number;
  readonly at: ArrayLike<number>;
  shown(i: number): boolean;
  /** Centre and side of a case's square, in pixels of the canvas. */
  square(i: number): { x: number; y: number; side: number };
  select(i: number): void;
  open(i: number): void;
  hover(i: number): void;
  zoomBy(factor: number): void;
  fit(): void;
  /** Whether the keyboard is on the graph. */
  focus(keyboard: boolean): void;
}

export class Input {
  private readonly listeners = new AbortController();
  private last = { i: -1, time: 0 };
  private touched = false;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly target: Target,
  ) {
    const on = <K extends keyof HTMLElementEventMap>(name: K, act: (e: HTMLElementEventMap[K]) => void) =>
      canvas.addEventListener(name, act, { signal: this.listeners.signal });
    on('pointermove', (e) => {
      if (!e.buttons && e.pointerType !== 'touch') target.hover(this.hit(e.offsetX, e.offsetY, SLACK_PX));
    });
    on('pointerleave', () => target.hover(-1));
    on('pointerdown', (e) => {
      this.touched = e.pointerType === 'touch';
      target.focus(false);
    });
    on('click', (e) => this.click(e));
    on('keydown', (e) => this.key(e));
    on('focus', () => target.focus(canvas.matches(':focus-visible')));
    on('blur', () => target.focus(false));
  }

  destroy(): void {
    this.listeners.abort();
  }

  /** The case at a point: the one drawn on top, else the nearest within `slack`; -1: none. */
  private hit(x: number, y: number, slack: number): number {
    const { target } = this;
    let best = -1;
    let least = slack;
    for (let i = 0; i < target.count; i++) {
      if (!target.shown(i)) continue;
      const square = target.square(i);
      const out = Math.max(Math.abs(square.x - x), Math.abs(square.y - y)) - square.side / 2 - 2;
      if (out <= 0) return i; // nearer cases are drawn over farther ones, and the query over all
      if (out < least) {
        least = out;
        best = i;
      }
    }
    return best;
  }

  private click(event: MouseEvent): void {
    this.canvas.focus({ preventScroll: true });
    this.target.focus(false);
    const i = this.hit(event.offsetX, event.offsetY, this.touched ? SLACK_TOUCH_PX : SLACK_PX);
    const again = i === this.last.i && event.timeStamp - this.last.time < DOUBLE_MS;
    this.last = { i: again ? -1 : i, time: event.timeStamp };
    if (i < 0) return;
    if (!again) this.target.select(i);
    else if (i > 0) this.target.open(i);
  }

  private key(event: KeyboardEvent): void {
    const { target } = this;
    if (event.ctrlKey || event.metaKey || event.altKey || !target.count || !this.act(event.key)) return;
    event.preventDefault();
    target.focus(true);
  }

  /** Whether the key means something here. */
  private act(key: string): boolean {
    const { target } = this;
    const { count, selected } = target;
    const shown = (i: number) => target.shown(i);
    const go = (i: number) => i >= 0 && i !== selected && target.select(i);
    if (isDirection(key)) go(neighbour(target.at, selected, key, shown));
    else if (key === 'n') go(byRank(count, selected, 1, shown));
    else if (key === 'p') go(byRank(count, selected, -1, shown));
    else if (key === 'Home') go(0);
    else if (key === 'Enter') selected > 0 && target.open(selected);
    else if (key === '+' || key === '=') target.zoomBy(KEY_ZOOM);
    else if (key === '-') target.zoomBy(1 / KEY_ZOOM);
    else if (key === '0') target.fit();
    else return false;
    return true;
  }
}

/* Lungs and infection as the network itself outlines them, over both slices. Off until asked for; each by itself. */

import { isAbort, type Series } from '../api';
import type { Context } from '../context';
import { fill, h, svg } from '../dom';
import { type Key, number, t } from '../i18n';
import { icon } from '../icons';
import type { Side } from '../pane/follow';
import { type Masks, masks, OUTLINES, type Outline } from '../pane/outline';
import type { Pane } from '../pane/pane';

const REST_MS = 150; // asked for when scrolling rests: it costs the node a moment
const KEPT = 64; // masks of slices, 250 kB each for 512 x 512, at most 1 MB
const SIDES: Side[] = ['query', 'case'];

/** A slice on show: whose, of which series, which one. */
export interface Shown {
  id: string;
  series: Series;
  frame: number;
}

type State = 'loading' | 'failed' | 'other' | Masks;

export class OutlineLayer {
  readonly buttons = h('div', { class: 'outline-buttons', role: 'group', 'aria-label': t('outline.group') });
  readonly root = h('section', { class: 'outlines', hidden: true, 'aria-label': t('outline.group') });
  private readonly toggles = new Map<Outline, HTMLButtonElement>();
  private readonly legend = h('ul', { class: 'outline-legend' });
  private readonly told = h('p', { class: 'outline-state', role: 'status' });
  private readonly known = new Map<string, Masks>();
  private states: Record<Side, State | null> = { query: null, case: null };
  private stop = new AbortController();
  private timer = 0;

  constructor(
    private readonly context: Context,
    private readonly panes: Record<Side, Pane>,
    private readonly names: Record<Side, string>,
    private readonly shown: (side: Side) => Shown | null,
  ) {
    for (const which of OUTLINES) {
      const words = t(`outline.show_${which}` as Key);
      const button = h('button', { type: 'button', class: 'button', id: `outline-${which}` }, icon('outline'), words);
      button.addEventListener('click', () => this.toggle(which));
      this.toggles.set(which, button);
      this.buttons.append(button);
    }
    fill(this.root, this.legend, this.told, h('p', { class: 'note' }, t('outline.text')));
    this.update();
  }

  /** Dice by mask; null where the model that answered outlines nothing. */
  private get offered(): Record<Outline, number | null> | null {
    return this.context.data.result?.outlines ?? null;
  }

  private get wanted(): Outline[] {
    return this.offered === null ? [] : this.context.store.view.outlines;
  }

  toggle(which: Outline): void {
    if (this.offered === null) return;
    const { outlines } = this.context.store.view;
    const on = !outlines.includes(which);
    this.context.store.set({ outlines: OUTLINES.filter((one) => (one === which ? on : outlines.includes(one))) });
    this.update();
    this.moved();
  }

  /** Other slices are shown, or other outlines asked for. */
  moved(): void {
    clearTimeout(this.timer);
    this.stop.abort();
    this.stop = new AbortController();
    const missing: [Side, Shown][] = [];
    for (const side of SIDES) {
      const shown = this.shown(side);
      this.states[side] = null;
      if (this.wanted.length === 0 || shown === null) continue;
      if (!shown.series.outlined) this.states[side] = 'other';
      else {
        this.states[side] = this.known.get(key(shown)) ?? 'loading';
        if (this.states[side] === 'loading') missing.push([side, shown]);
      }
    }
    this.draw();
    const { signal } = this.stop;
    if (missing.length === 0) return;
    this.timer = window.setTimeout(() => {
      for (const [side, shown] of missing) this.fetch(side, shown, signal);
    }, REST_MS);
  }

  private async fetch(side: Side, shown: Shown, signal: AbortSignal): Promise<void> {
    try {
      const found = masks(await this.context.api.masks(shown.id, shown.series.index, shown.frame, signal));
      this.known.set(key(shown), found);
      for (const [oldest] of this.known) {
        if (this.known.size <= KEPT) break;
        this.known.delete(oldest);
      }
      if (signal.aborted) return;
      this.states[side] = found;
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      this.states[side] = 'failed';
    }
    this.draw();
  }

  private draw(): void {
    for (const side of SIDES) {
      const state = this.states[side];
      if (typeof state === 'object' && state !== null) this.panes[side].setOutlines(state, this.wanted);
      else this.panes[side].clearOutlines();
    }
    this.say();
  }

  private say(): void {
    const states = SIDES.map((side) => this.states[side]);
    const loading = states.includes('loading');
    this.root.setAttribute('aria-busy', String(loading));
    const words = loading ? [t('outline.loading')] : SIDES.map((side) => this.words(side)).filter(Boolean);
    this.told.textContent = words.join(' ');
    this.told.hidden = words.length === 0;
  }

  /** What there is to say of a slice besides what is drawn. */
  private words(side: Side): string {
    const state = this.states[side];
    const name = this.names[side];
    if (state === 'failed') return t('outline.failed', { name });
    if (state === 'other') return t('outline.other', { name });
    if (state === null || state === 'loading') return '';
    const nothing = this.wanted.filter((which) => !this.panes[side].outlined(which));
    return nothing.map((which) => t(`outline.no_${which}` as Key, { name })).join(' ');
  }

  private update(): void {
    const { wanted, offered } = this;
    for (const [which, button] of this.toggles) {
      button.setAttribute('aria-pressed', String(wanted.includes(which)));
    }
    this.buttons.hidden = offered === null;
    this.root.hidden = wanted.length === 0;
    fill(
      this.legend,
      ...wanted.map((which) => {
        const dice = offered?.[which] ?? null;
        const measured = dice === null ? t('outline.no_dice') : t('outline.dice', { dice: number(dice, 2) });
        return h(
          'li',
          {},
          sample(which),
          h('span', {}, t(`outline.${which}` as Key)),
          h('span', { class: 'outline-dice' }, measured),
        );
      }),
    );
  }
}

function key(shown: Shown): string {
  return `${shown.id}/${shown.series.index}/${shown.frame}`;
}

/** The line as it is drawn. */
function sample(which: Outline): SVGElement {
  return svg(
    'svg',
    { viewBox: '0 0 40 16', width: 40, height: 16, class: 'outline-sample', 'aria-hidden': 'true', focusable: 'false' },
    svg('path', { d: 'M2 13C8 2 14 2 20 8S34 14 38 3', class: 'outline-halo' }),
    svg('path', { d: 'M2 13C8 2 14 2 20 8S34 14 38 3', class: `outline-line outline-line-${which}` }),
  );
}

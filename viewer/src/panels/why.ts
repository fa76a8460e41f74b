/* The "why" layer: which regions make two slices alike, laid over both. Off until asked for; fetched for the pair shown. */

import { isAbort, type Match, type Why } from '../api';
import { type Context, QUERY } from '../context';
import { fill, h } from '../dom';
import { number, t } from '../i18n';
import { icon } from '../icons';
import type { Side } from '../pane/follow';
import { viridis } from '../pane/lut';
import type { Pane } from '../pane/pane';

const REST_MS = 500; // asked for when scrolling rests: it costs the node seconds
const OPACITY = 0.6;

export class WhyLayer {
  readonly button = h(
    'button',
    { type: 'button', class: 'button', id: 'why', title: t('compare.why_hint') },
    icon('heat'),
    t('compare.why'),
  );
  readonly root = h('section', { class: 'why', hidden: true });
  private readonly known = new Map<string, Why>();
  private readonly told = h('p', { class: 'why-state', role: 'status' });
  private readonly legend = h('div', { class: 'why-legend' });
  private readonly opacity = h('input', {
    type: 'range',
    class: 'range',
    min: 0.1,
    max: 1,
    step: 0.05,
    value: OPACITY,
    id: 'why-opacity',
  });
  private stop = new AbortController();
  private timer = 0;

  constructor(
    private readonly context: Context,
    private readonly panes: Record<Side, Pane>,
    private readonly match: () => Match | null,
  ) {
    this.button.addEventListener('click', () => this.toggle());
    this.opacity.addEventListener('input', () => {
      for (const pane of Object.values(this.panes)) pane.setOpacity(Number(this.opacity.value));
    });
    fill(
      this.root,
      this.told,
      this.legend,
      h('label', { class: 'why-opacity' }, h('span', {}, t('compare.opacity')), this.opacity),
      h('p', { class: 'note' }, t('compare.why_text')),
    );
    this.update();
  }

  /** The model that answered is no longer on the node: it cannot say why. */
  private get gone(): boolean {
    return this.context.data.result?.explains === false;
  }

  toggle(): void {
    if (this.gone) return;
    this.context.store.set({ why: !this.context.store.view.why });
    this.update();
    this.moved();
  }

  /** Other slices are shown: what lies over them no longer belongs to them. */
  moved(): void {
    clearTimeout(this.timer);
    this.stop.abort();
    for (const pane of Object.values(this.panes)) pane.clearHeat();
    const match = this.match();
    if (this.gone || !this.context.store.view.why || match === null) return;
    const id = this.context.store.view.selected;
    if (id === null || id === QUERY) return;
    const key = JSON.stringify([id, match]);
    const known = this.known.get(key);
    if (known) {
      this.show(known);
      return;
    }
    this.say(t('compare.why_loading'), true);
    this.timer = window.setTimeout(() => this.fetch(id, match, key), REST_MS);
  }

  private async fetch(id: string, match: Match, key: string): Promise<void> {
    this.stop = new AbortController();
    const { signal } = this.stop;
    try {
      const why = await this.context.api.why(id, match, signal);
      this.known.set(key, why);
      if (!signal.aborted) this.show(why);
    } catch (error) {
      if (!isAbort(error) && !signal.aborted) this.say(t('compare.why_failed'), false);
    }
  }

  private show(why: Why): void {
    const highest = Math.max(0, ...why.case.flat(), ...why.query.flat());
    this.panes.case.setHeat(why.case, highest, Number(this.opacity.value), why.case_place);
    this.panes.query.setHeat(why.query, highest, Number(this.opacity.value), why.query_place);
    this.say('', false);
    const scale = h('canvas', { width: 128, height: 1, class: 'why-scale', 'aria-hidden': 'true' });
    const image = new ImageData(128, 1);
    for (let x = 0; x < 128; x++) image.data.set([...viridis(x / 127), 255], 4 * x);
    scale.getContext('2d')?.putImageData(image, 0, 0);
    fill(
      this.legend,
      h('span', {}, t('compare.why_low')),
      scale,
      h('span', {}, t('compare.why_high', { x: number(highest, 3) })),
    );
  }

  private say(words: string, busy: boolean): void {
    this.told.textContent = words;
    this.told.hidden = words === '';
    this.root.setAttribute('aria-busy', String(busy));
    if (words) fill(this.legend);
  }

  private update(): void {
    const { why } = this.context.store.view;
    this.button.setAttribute('aria-pressed', String(why));
    this.button.hidden = this.gone;
    this.root.hidden = !why || this.gone;
  }
}

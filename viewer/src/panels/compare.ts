/* A case beside the image in question: both series in step, one window, why they are alike and what is outlined. */

import { type CaseDetail, isAbort, type Match, type Series } from '../api';
import { type Context, QUERY } from '../context';
import { fill, foreign, h } from '../dom';
import { has, number, t } from '../i18n';
import { icon } from '../icons';
import { Follow, type Side } from '../pane/follow';
import { Frames } from '../pane/frames';
import type { Window } from '../pane/lut';
import type { Outline } from '../pane/outline';
import { Pane } from '../pane/pane';
import { WHOLE, ZOOM_STEP, type Zoom } from '../pane/zoom';
import type { Place } from '../state';
import { OutlineLayer, type Shown } from './outlines';
import { WhyLayer } from './why';

const PLACE_MS = 400; // the address is written when scrolling rests: browsers limit how often it may change
const SIDES: Side[] = ['query', 'case'];
// Usual CT windows, for a node that names none: centre and width in HU.
const CT_PRESETS: Record<string, Window> = {
  lung: { center: -600, width: 1500 },
  mediastinum: { center: 40, width: 400 },
  bone: { center: 400, width: 1800 },
};

export class ComparePanel {
  readonly root = h('div', { class: 'compare' });
  private readonly frames: Frames;
  private readonly follow = new Follow();
  private shown = '';
  private details: Record<Side, CaseDetail> | null = null;
  private series: Record<Side, Series | null> = { query: null, case: null };
  private windows: Record<Side, Window> = {
    query: CT_PRESETS.mediastinum as Window,
    case: CT_PRESETS.mediastinum as Window,
  };
  private panes: Record<Side, Pane> | null = null;
  private why: WhyLayer | null = null;
  private outlines: OutlineLayer | null = null;
  private bestList = h('ol', { class: 'best-list' });
  private presets = h('div', { class: 'segments', role: 'group', 'aria-label': t('compare.window') });
  private sliders: { center: HTMLInputElement; width: HTMLInputElement } | null = null;
  private timer = 0;

  constructor(private readonly context: Context) {
    this.frames = new Frames(context.api);
  }

  /** Show the selected case beside the query; nothing is fetched while the tab is closed. */
  update(force = false): void {
    const { store, data } = this.context;
    if (store.view.tab !== 'compare') return;
    const id = store.view.selected;
    const chosen = id !== null && id !== QUERY ? id : null;
    if (chosen === null) {
      this.shown = '';
      fill(this.root, h('p', { class: 'empty-note' }, t('compare.none')));
      return;
    }
    if (!force && this.shown === chosen) {
      const { place } = store.view;
      if (place && this.details && !same(place, this.place())) this.goto(place);
      return;
    }
    if (data.graph === null) return;
    this.shown = chosen;
    fill(
      this.root,
      h(
        'div',
        { class: 'panes' },
        h('div', { class: 'pane skeleton pane-skeleton' }),
        h('div', { class: 'pane skeleton pane-skeleton' }),
      ),
    );
    Promise.all([this.context.detail(QUERY), this.context.detail(chosen)])
      .then(([query, other]) => {
        if (this.shown === chosen) this.build({ query, case: other });
      })
      .catch((error: unknown) => {
        if (isAbort(error) || this.shown !== chosen) return;
        this.shown = '';
        fill(this.root, h('p', { class: 'problem', role: 'status' }, t('case.failed')));
      });
  }

  toggleWhy(): void {
    this.why?.toggle();
  }

  toggleOutline(which: Outline): void {
    this.outlines?.toggle(which);
  }

  private build(details: Record<Side, CaseDetail>): void {
    this.details = details;
    const rank = this.context.data.node(details.case.id)?.rank ?? details.case.rank;
    const names: Record<Side, string> = {
      query: t('compare.query'),
      case: rank ? t('compare.case', { rank }) : t('case.centre'),
    };
    const pane = (side: Side): Pane =>
      new Pane(names[side], this.head(side, names[side]), {
        move: (frame) => this.move(side, frame),
        window: (window) => this.setWindow(side, window),
        reset: () => {
          this.defaults();
          this.setZoom(WHOLE);
        },
        zoom: (zoom) => this.setZoom(zoom),
      });
    this.panes = { query: pane('query'), case: pane('case') };
    this.why = new WhyLayer(this.context, this.panes, () => this.match());
    this.outlines = new OutlineLayer(this.context, this.panes, names, (side) => this.slice(side));
    const sync = h(
      'button',
      { type: 'button', class: 'button', 'aria-pressed': String(this.follow.together) },
      icon('link'),
      t('compare.sync'),
    );
    sync.addEventListener('click', () => {
      this.follow.setTogether(!this.follow.together);
      sync.setAttribute('aria-pressed', String(this.follow.together));
    });
    fill(
      this.root,
      h('h2', { class: 'hidden-text' }, t('tab.compare')),
      h('div', { class: 'panes' }, this.panes.query.root, this.panes.case.root),
      h(
        'div',
        { class: 'compare-tools' },
        this.presets,
        this.zoomTools(),
        sync,
        this.why.button,
        this.outlines.buttons,
      ),
      this.windowSliders(),
      this.outlines.root,
      this.why.root,
      details.case.best.length > 0 &&
        h(
          'section',
          { class: 'block' },
          h('h3', {}, t('compare.best')),
          this.bestList,
          h('p', { class: 'note' }, t('compare.best_note')),
        ),
      h('p', { class: 'note' }, t('compare.hint')),
    );
    this.start(this.context.store.view.place);
  }

  private start(place: Place | null): void {
    const best = this.details?.case.best[0];
    if (place && this.findSeries('case', place.series) && this.findSeries('query', place.querySeries)) this.goto(place);
    else if (best) this.goto(placeOf(best));
    else {
      const first = (side: Side) => this.details?.[side].series[0];
      this.goto({
        series: first('case')?.index ?? 0,
        frame: middle(first('case')),
        querySeries: first('query')?.index ?? 0,
        queryFrame: middle(first('query')),
      });
    }
  }

  /** Go to a pair of slices, which from now on scroll together from there. */
  private goto(place: Place): void {
    this.setSeries('query', place.querySeries);
    this.setSeries('case', place.series);
    this.follow.align(this.totals(), { query: place.queryFrame, case: place.frame });
    this.show(0);
  }

  private setSeries(side: Side, index: number): void {
    const found = this.findSeries(side, index) ?? this.details?.[side].series[0] ?? null;
    if (found === this.series[side] && this.panes?.[side].root.dataset.ready) return;
    this.series[side] = found;
    const pane = this.panes?.[side];
    if (!pane) return;
    pane.root.dataset.ready = 'true';
    pane.setSeries(found);
    const choice = pane.title.querySelector('select');
    if (choice && found) choice.value = String(found.index);
    if (side === 'case' && this.shared()) this.setWindow('query', this.windows.query);
    else this.ownWindow(side);
    this.drawPresets();
  }

  private move(side: Side, frame: number): void {
    const before = this.follow.at[side];
    this.follow.move(side, frame);
    this.show(Math.sign(this.follow.at[side] - before));
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.context.store.set({ place: this.place() }, true), PLACE_MS);
  }

  private show(direction: number): void {
    for (const side of SIDES) this.showSide(side, direction);
    this.markBest();
    this.why?.moved();
    this.outlines?.moved();
  }

  private showSide(side: Side, direction: number): void {
    const pane = this.panes?.[side];
    const series = this.series[side];
    const id = this.details?.[side].id;
    if (!pane || !series || !id) return;
    const n = this.follow.at[side];
    pane.setPlace(n);
    const here = this.frames.have(id, series.index, n);
    if (here) {
      pane.setFrame(here);
      this.frames.ahead(id, series.index, n, series.frames, direction);
      return;
    }
    pane.say(t('compare.loading'));
    const current = () => this.panes?.[side] === pane && this.series[side] === series && this.follow.at[side] === n;
    this.frames.get(id, series.index, n).then(
      (frame) => {
        if (!current()) return;
        pane.setFrame(frame);
        this.frames.ahead(id, series.index, n, series.frames, direction);
      },
      () => current() && pane.say(t('compare.failed')),
    );
  }

  private head(side: Side, name: string): HTMLElement {
    const series = this.details?.[side].series ?? [];
    const head = h('div', { class: 'pane-head' }, h('h3', { class: `pane-title pane-title-${side}` }, name));
    if (series.length > 1) {
      const choice = h('select', { class: 'select', 'aria-label': `${name}: ${t('compare.series')}` });
      for (const [i, one] of series.entries()) choice.append(h('option', { value: one.index }, seriesName(one, i)));
      choice.addEventListener('change', () => {
        this.setSeries(side, Number(choice.value));
        const at = { ...this.follow.at, [side]: middle(this.series[side] ?? undefined) };
        this.follow.align(this.totals(), at);
        this.show(0);
        this.context.store.set({ place: this.place() }, true);
      });
      head.append(choice);
    } else if (series[0]) head.append(foreign(seriesName(series[0], 0), 'pane-series'));
    return head;
  }

  private drawPresets(): void {
    const { query, case: other } = this.series;
    const ct = [query, other].some((series) => series?.modality === 'CT');
    const named = other?.presets?.length ? other.presets : query?.presets;
    const windows: [string, Window][] = named?.length
      ? named.map((preset) => [preset.name, preset])
      : ct
        ? Object.entries(CT_PRESETS)
        : [];
    const button = (name: string, act: () => void) => {
      const key = `compare.${name}`;
      const one = h('button', { type: 'button', class: 'segment' }, has(key) ? t(key) : name);
      one.addEventListener('click', act);
      return one;
    };
    fill(
      this.presets,
      button('default', () => this.defaults()),
      ...windows.map(([name, window]) => button(name, () => this.setWindow('case', window))),
    );
  }

  private windowSliders(): HTMLElement {
    const slider = (key: 'center' | 'width', min: number, max: number) => {
      const input = h('input', { type: 'range', class: 'range', min, max, step: 1, id: `window-${key}` });
      input.addEventListener('input', () =>
        this.setWindow('case', { ...this.windows.case, [key]: Number(input.value) }),
      );
      return input;
    };
    this.sliders = { center: slider('center', -1200, 3000), width: slider('width', 1, 4000) };
    return h(
      'div',
      { class: 'window-sliders' },
      h('label', {}, h('span', {}, t('compare.center')), this.sliders.center),
      h('label', {}, h('span', {}, t('compare.width')), this.sliders.width),
    );
  }

  /** Hounsfield units mean the same in both panes; other values have no common window. */
  private shared(): boolean {
    return this.series.query?.modality === 'CT' && this.series.case?.modality === 'CT';
  }

  /** The window that a series brings along; where the window is shared, that of the image in question. */
  private ownWindow(side: Side): void {
    const own = this.series[this.shared() ? 'query' : side]?.window;
    this.setWindow(side, own ? { center: own[0], width: own[1] } : this.windows[side]);
  }

  private setWindow(side: Side, window: Window): void {
    for (const one of this.shared() ? SIDES : [side]) {
      this.windows[one] = { center: window.center, width: window.width };
      this.panes?.[one].setWindow(this.windows[one]);
    }
    this.showSliders();
  }

  /** Both panes show the same part. */
  private setZoom(zoom: Zoom): void {
    for (const side of SIDES) this.panes?.[side].setZoom(zoom);
  }

  /** The same by buttons, for those without a wheel, a second finger or a middle button. */
  private zoomTools(): HTMLElement {
    const button = (key: 'minus' | 'plus' | 'move', words: string, act: (one: HTMLButtonElement) => void) => {
      const one = h('button', { type: 'button', class: 'segment', 'aria-label': words, title: words }, icon(key));
      one.addEventListener('click', () => act(one));
      return one;
    };
    const move = button('move', t('compare.move'), (one) => {
      const moving = !this.panes?.case.moving;
      for (const side of SIDES) this.panes?.[side].setMoving(moving);
      one.setAttribute('aria-pressed', String(moving));
    });
    move.id = 'pane-move';
    move.setAttribute('aria-pressed', 'false');
    return h(
      'div',
      { class: 'segments', role: 'group', 'aria-label': t('compare.zoom') },
      button('minus', t('graph.zoom_out'), () => this.panes?.case.zoomBy(1 / ZOOM_STEP)),
      button('plus', t('graph.zoom_in'), () => this.panes?.case.zoomBy(ZOOM_STEP)),
      move,
    );
  }

  private defaults(): void {
    for (const side of SIDES) this.ownWindow(side);
  }

  private showSliders(): void {
    if (!this.sliders) return;
    this.sliders.center.value = String(Math.round(this.windows.case.center));
    this.sliders.width.value = String(Math.round(this.windows.case.width));
  }

  private markBest(): void {
    const best = this.details?.case.best ?? [];
    const now = this.place();
    fill(
      this.bestList,
      ...best.map((match) => {
        const values = {
          query: (match.query_frame ?? 0) + 1,
          case: match.frame + 1,
          similarity: number(match.similarity, 3),
        };
        const button = h(
          'button',
          {
            type: 'button',
            class: 'best',
            'aria-pressed': String(same(placeOf(match), now)),
          },
          h('span', { class: 'hidden-text' }, t('compare.best_item', values)),
          h('span', { 'aria-hidden': 'true' }, t('compare.best_short', values)),
          h('span', { class: 'best-score', 'aria-hidden': 'true' }, values.similarity),
        );
        button.addEventListener('click', () => {
          this.goto(placeOf(match));
          this.context.store.set({ place: this.place() }, true);
          this.bestList.querySelector<HTMLElement>('[aria-pressed=true]')?.focus();
        });
        return h('li', {}, button);
      }),
    );
    this.showSliders();
  }

  private place(): Place {
    return {
      series: this.series.case?.index ?? 0,
      frame: this.follow.at.case,
      querySeries: this.series.query?.index ?? 0,
      queryFrame: this.follow.at.query,
    };
  }

  /** The pair of slices on show, as the node is asked why they are alike. */
  private match(): Match | null {
    if (!this.series.case || !this.series.query) return null;
    const { series, frame, querySeries, queryFrame } = this.place();
    return { series, frame, query_series: querySeries, query_frame: queryFrame, similarity: 0 };
  }

  private slice(side: Side): Shown | null {
    const [series, id] = [this.series[side], this.details?.[side].id];
    return series && id ? { id, series, frame: this.follow.at[side] } : null;
  }

  private totals(): Record<Side, number> {
    return { query: this.series.query?.frames ?? 1, case: this.series.case?.frames ?? 1 };
  }

  private findSeries(side: Side, index: number): Series | undefined {
    return this.details?.[side].series.find((series) => series.index === index);
  }
}

function placeOf(match: Match): Place {
  return {
    series: match.series,
    frame: match.frame,
    querySeries: match.query_series ?? 0,
    queryFrame: match.query_frame ?? 0,
  };
}

function same(a: Place, b: Place): boolean {
  return (
    a.series === b.series && a.frame === b.frame && a.querySeries === b.querySeries && a.queryFrame === b.queryFrame
  );
}

function middle(series: Series | undefined): number {
  return Math.floor((series?.frames ?? 1) / 2);
}

function seriesName(series: Series, i: number): string {
  const n = i + 1;
  return series.description
    ? t('compare.series_name', { n, description: series.description })
    : t('compare.series_plain', { n });
}

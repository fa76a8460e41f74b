/* The view of a result: loads it, keeps graph, panels and address in step. Knows the API and the view, draws nothing. */

import { type Api, ApiError, type CaseDetail, type GraphNode, isAbort } from './api';
import { asking, type Context, Data, describe, keywordOf, passes, QUERY, verdictWords } from './context';
import { fill, h } from './dom';
import { GraphView } from './graph';
import { date, type Key, language, number, setLanguage, similarity, t, tn } from './i18n';
import { icon } from './icons';
import { mayAsk } from './panels/account';
import { Bar, type BarActions } from './panels/bar';
import { CasePanel } from './panels/case';
import { ComparePanel } from './panels/compare';
import { help } from './panels/help';
import { Legend } from './panels/legend';
import { ListPanel } from './panels/list';
import { QueryPanel } from './panels/query';
import { type Banner, kindOf, messagePage } from './panels/states';
import { isPhone, Tabs } from './panels/tabs';
import type { Store, View } from './state';
import { Thumbnails } from './thumbnails';

interface Parts {
  bar: Bar;
  tabs: Tabs;
  legend: Legend;
  cases: CasePanel;
  compare: ComparePanel;
  list: ListPanel;
  query: QueryPanel;
  graph: GraphView;
  area: HTMLElement;
  crumb: HTMLElement;
  caption: HTMLElement;
  over: HTMLElement;
  line: HTMLElement;
  help: HTMLDialogElement;
}

const RANK = /^\d{1,4}$/;
const ASKED: (keyof View)[] = ['k', 'text', 'from'];

export class ResultApp implements Context {
  readonly data = new Data();
  readonly thumbnails: Thumbnails;
  private readonly details = new Map<string, Promise<CaseDetail>>();
  private parts: Parts | null = null;
  private stop = new AbortController();
  private loading = false;
  private said = '';
  /** Draws the page of a fault again, once there is one. */
  private failed: (() => void) | null = null;

  constructor(
    private readonly root: HTMLElement,
    readonly api: Api,
    readonly store: Store,
    private readonly banner: Banner,
    private readonly announce: (words: string) => void,
  ) {
    this.thumbnails = new Thumbnails(api, (id, bitmap) => {
      this.parts?.graph.setThumbnail(id, bitmap);
      this.parts?.list.picture(id, bitmap);
    });
    store.subscribe((view, before) => this.changed(view, before));
    addEventListener('keydown', (event) => this.key(event));
  }

  /** Ask for the result and its graph at once, and show both as they come. */
  async start(): Promise<void> {
    this.mount();
    await Promise.all([this.loadResult(), this.loadGraph(), this.loadSession()]);
  }

  detail(id: string): Promise<CaseDetail> {
    const known = this.details.get(id);
    if (known) return known;
    const asked = this.api.case(id);
    this.details.set(id, asked);
    asked.catch(() => this.details.delete(id));
    return asked;
  }

  select(id: string): void {
    this.store.set({ selected: id, place: id === this.store.view.selected ? this.store.view.place : null });
  }

  open(id: string): void {
    this.store.set({ selected: id, tab: 'case', place: null });
    if (isPhone()) document.getElementById('tab-case')?.focus();
  }

  compare(id: string): void {
    this.store.set({ selected: id, tab: 'compare' });
    document.getElementById('tab-compare')?.focus();
  }

  more(id: string): void {
    const { data, store } = this;
    const k = store.view.k ?? (data.result ? Math.max(5, data.result.k) : null);
    const change: Partial<View> = { from: id, selected: id, k, text: '', hidden: [], findings: [], place: null };
    store.set(isPhone() ? { ...change, tab: 'graph' } : change);
  }

  say(words: string): void {
    this.said = words;
    this.announce(words);
    this.line();
    setTimeout(() => {
      if (this.said !== words) return;
      this.said = '';
      this.line();
    }, 5000);
  }

  /** Who looks: without knowing, the page offers nothing that only some may do. */
  private async loadSession(): Promise<void> {
    try {
      this.data.session = await this.api.session();
      this.refresh();
      this.failed?.();
    } catch (error) {
      console.warn('who is signed in is not known', String(error));
    }
  }

  private async loadResult(): Promise<void> {
    try {
      this.data.result = await this.api.about();
      this.refresh();
      this.parts?.query.update();
    } catch (error) {
      this.fail(error);
    }
  }

  private async loadGraph(): Promise<void> {
    this.stop.abort();
    this.stop = new AbortController();
    const { signal } = this.stop;
    const { k, text, from } = this.store.view;
    const asked = new URLSearchParams();
    if (k !== null) asked.set('k', String(k));
    if (text) asked.set('text', text);
    if (from) asked.set('from', from);
    this.busy(true);
    try {
      const graph = await this.api.graph(asked, signal);
      this.data.graph = graph;
      this.busy(false);
      this.showGraph();
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      this.busy(false);
      if (asked.size > 0 && error instanceof ApiError && [404, 409, 422].includes(error.status)) {
        this.say(t('state.not_live'));
        this.store.set({ k: null, text: '', from: null, selected: null, place: null }, true);
        return;
      }
      if (this.data.graph === null || kindOf(error) === 'expired') this.fail(error);
      else this.say(t(`state.${kindOf(error)}_text` as Key));
    }
  }

  /** Cases to the graph, pictures after them, then every panel. */
  private showGraph(): void {
    const { graph } = this.data;
    const { parts, store } = this;
    if (graph === null || parts === null) return;
    if (store.view.selected !== null && this.data.node(store.view.selected) === null) {
      store.set({ selected: this.ranked(store.view.selected), place: null }, true);
    }
    const nodes = graph.nodes.map((node) => ({
      id: node.id,
      rank: node.rank,
      similarity: node.similarity,
      distance: node.distance,
      angle: node.angle,
      status: node.status,
      label: describe(node, this.data),
    }));
    parts.graph.setFilter((one) => this.shown(one.id));
    void parts.graph.setLayout(store.view.layout);
    void parts.graph.setData({ nodes, edges: graph.edges, calibrated: graph.calibrated });
    for (const node of graph.nodes) {
      const bitmap = this.thumbnails.get(node.id);
      if (bitmap) parts.graph.setThumbnail(node.id, bitmap);
    }
    this.selectInGraph();
    void this.thumbnails.load(graph.nodes.filter((node) => node.has_picture).map((node) => node.id));
    this.refresh();
    parts.cases.update(true);
    parts.compare.update();
    parts.list.update();
    parts.query.update();
    const words = verdictWords(this.data, store.view.text);
    if (words) this.announce(words.title);
  }

  /** The report's own links name a case by its rank, and the next one may be followed while a view is open. */
  private ranked(name: string): string | null {
    const found = RANK.test(name) ? this.data.cases.find((node) => node.rank === Number(name)) : undefined;
    return found?.id ?? null;
  }

  private shown(id: string): boolean {
    const node = this.data.node(id);
    return node === null || passes(node, this.store.view);
  }

  private changed(view: View, before: View): void {
    const { parts } = this;
    const asks = ASKED.some((key) => view[key] !== before[key]);
    if (this.data.graph !== null && !asks && view.selected !== null && this.data.node(view.selected) === null) {
      view = this.store.settle({ selected: this.ranked(view.selected) });
    }
    if (view.language !== before.language && view.language !== null && view.language !== language()) {
      this.mount();
      return;
    }
    if (parts === null) return;
    if (view.layout !== before.layout) void parts.graph.setLayout(view.layout);
    if (view.hidden.join() !== before.hidden.join() || view.findings.join() !== before.findings.join()) {
      parts.graph.setFilter((one) => this.shown(one.id));
      parts.list.update();
    }
    if (view.selected !== before.selected) {
      this.selectInGraph();
      parts.list.select();
    }
    parts.tabs.update();
    parts.list.opened();
    parts.cases.update();
    parts.compare.update();
    this.refresh();
    if (asks) void this.loadGraph();
  }

  /** The small parts that tell of everything: bar, legend, captions, status line. */
  private refresh(): void {
    const { parts, store, data } = this;
    if (parts === null) return;
    parts.bar.update();
    parts.legend.update();
    const words = verdictWords(data, store.view.text);
    parts.caption.textContent = words && data.cases.length > 0 ? words.why : '';
    parts.crumb.hidden = store.view.from === null;
    this.overlay(words);
    this.line();
  }

  /** What lies over the graph when there is no case to see. */
  private overlay(words: { title: string; why: string } | null): void {
    const { over, graph } = this.parts as Parts;
    const { data, store } = this;
    graph.canvas.classList.toggle('behind', data.graph === null);
    const hidden = data.cases.filter((node) => !passes(node, store.view)).length;
    if (data.graph === null) {
      fill(over, h('div', { class: 'rings', 'aria-hidden': 'true' }, h('span', {}), h('span', {}), h('span', {})));
    } else if (words && data.cases.length === 0) {
      const clear = h('button', { type: 'button', class: 'button' }, t('keyword.back'));
      clear.addEventListener('click', () => store.set(asking(data.result, store.view, { text: '' })));
      fill(
        over,
        h(
          'div',
          { class: 'over-box' },
          h('h2', {}, words.title),
          h('p', {}, words.why),
          keywordOf(data.result, store.view) !== '' && clear,
        ),
      );
    } else if (hidden > 0 && hidden === data.cases.length) {
      const all = h('button', { type: 'button', class: 'button' }, t('filters.reset'));
      all.addEventListener('click', () => store.set({ hidden: [], findings: [] }));
      fill(over, h('div', { class: 'over-box over-low' }, h('p', {}, t('filters.none')), all));
    } else fill(over);
  }

  private line(): void {
    const { parts, data, store } = this;
    if (parts === null) return;
    const told: string[] = [];
    if (this.said) told.push(this.said);
    else if (data.graph) {
      const shown = data.cases.filter((node) => passes(node, store.view)).length;
      told.push(tn('line.cases', shown));
      const hidden = data.cases.length - shown;
      if (hidden > 0) told.push(tn('line.hidden', hidden));
      told.push(
        t('line.searched', { n: number(data.graph.searched) }),
        t(data.graph.live ? 'line.live' : 'line.stored'),
      );
      told.push(t(store.view.layout === 'force' ? 'line.approximate' : 'line.exact'));
      if (data.result?.expires) told.push(t('line.expires', { date: date(data.result.expires) }));
    }
    const node = data.node(store.view.selected);
    const open = node && node.rank > 0 ? this.peek(node) : null;
    fill(parts.line, open, h('span', { class: 'line-text' }, told.join(' · ')));
  }

  /** On a phone: the selected case in a line, which opens it. */
  private peek(node: GraphNode): HTMLElement {
    const button = h(
      'button',
      { type: 'button', class: 'peek' },
      h('span', { class: 'hidden-text' }, t('line.open', { rank: node.rank })),
      h('span', { class: 'peek-text' }, describe(node, this.data)),
      icon('next'),
    );
    button.addEventListener('click', () => this.open(node.id));
    return button;
  }

  private selectInGraph(): void {
    const { graph } = this.data;
    if (graph === null || this.parts === null) return;
    const at = graph.nodes.findIndex((node) => node.id === this.store.view.selected);
    if (this.parts.graph.selected !== Math.max(0, at)) this.parts.graph.select(Math.max(0, at));
  }

  private chose(i: number): void {
    const node = this.data.graph?.nodes[i];
    if (!node) return;
    this.announce(describe(node, this.data));
    const current = this.store.view.selected ?? this.data.centre?.id;
    if (node.id !== current) this.select(node.id);
  }

  private busy(loading: boolean): void {
    this.loading = loading;
    this.parts?.area.setAttribute('aria-busy', String(loading));
    this.parts?.area.classList.toggle('loading', loading);
  }

  private fail(error: unknown): void {
    if (isAbort(error)) return;
    this.parts?.graph.destroy();
    this.parts = null;
    const page = () =>
      messagePage(
        kindOf(error),
        () => location.reload(),
        (chosen) => {
          this.store.set({ language: chosen }, true);
          setLanguage(chosen);
          fill(this.root, page());
        },
        mayAsk(this.data.session),
      );
    this.failed = () => fill(this.root, page());
    this.root.className = '';
    this.failed();
  }

  private mount(): void {
    setLanguage(this.store.view.language ?? language());
    this.parts?.graph.destroy();
    this.parts = null;
    this.banner.build();
    const actions: BarActions = {
      setLanguage: (chosen) => {
        this.store.set({ language: chosen }, true);
        document.getElementById('language')?.focus();
      },
      help: () => this.parts?.help.showModal(),
    };
    const canvas = h('canvas', {
      id: 'graph',
      class: 'graph',
      tabindex: 0,
      role: 'application',
      'aria-label': t('graph.label'),
      'aria-describedby': 'graph-keys',
    });
    const cases = new CasePanel(this);
    const compare = new ComparePanel(this);
    const list = new ListPanel(this);
    const query = new QueryPanel(this);
    const legend = new Legend(this);
    const tabs = new Tabs(this, { case: cases.root, compare: compare.root, list: list.root, query: query.root });
    const bar = new Bar(this, actions);
    const back = h('button', { type: 'button', class: 'button', id: 'back' }, icon('back'), t('graph.back'));
    back.addEventListener('click', () => {
      const { data, store } = this;
      const text = store.view.text || (data.result?.text ?? '');
      const asked = asking(data.result, { ...store.view, from: null }, { text });
      store.set({ ...asked, from: null, selected: null, place: null, hidden: [], findings: [] });
    });
    const crumb = h(
      'nav',
      { class: 'crumb', 'aria-label': t('graph.from'), hidden: true },
      back,
      h('span', {}, t('graph.from')),
    );
    const caption = h('p', { class: 'caption' });
    const over = h('div', { class: 'over' });
    const line = h('footer', { class: 'line' });
    const area = h(
      'section',
      { class: 'area', id: 'graph-area', 'aria-label': t('graph.label') },
      canvas,
      over,
      h('div', { class: 'area-top' }, crumb, caption),
      legend.root,
      this.zoomButtons(() => this.parts?.graph),
      h('p', { class: 'hidden-text', id: 'graph-keys' }, t('graph.keys')),
    );
    const dialog = help();
    const skip = h('a', { class: 'skip', href: '#panel-list' }, t('app.skip'));
    skip.addEventListener('click', (event) => {
      event.preventDefault();
      this.store.set({ tab: 'list' });
      document.getElementById('tab-list')?.focus();
    });
    this.root.className = 'app';
    const main = h('main', { class: 'main' }, area, tabs.bar, tabs.panel);
    fill(this.root, skip, bar.root, this.banner.root, main, line, dialog);
    const graph = new GraphView(canvas, {
      onSelect: (i) => this.chose(i),
      onOpen: (i) => {
        const node = this.data.graph?.nodes[i];
        if (node) this.open(node.id);
      },
      describe: (i) => {
        const node = this.data.graph?.nodes[i];
        return node ? describe(node, this.data) : '';
      },
      words: { similarity: (x, digits) => similarity(x, this.data.calibrated, digits) },
    });
    this.parts = {
      bar,
      tabs,
      legend,
      cases,
      compare,
      list,
      query,
      graph,
      area,
      crumb,
      caption,
      over,
      line,
      help: dialog,
    };
    this.busy(this.loading);
    this.showGraph();
    this.refresh();
    cases.update(true);
    query.update();
  }

  private zoomButtons(graph: () => GraphView | undefined): HTMLElement {
    const button = (name: 'zoom_in' | 'zoom_out' | 'fit', sign: 'plus' | 'minus' | 'fit', act: () => void) => {
      const one = h('button', { type: 'button', class: 'button', 'aria-label': t(`graph.${name}`) }, icon(sign));
      one.addEventListener('click', act);
      return one;
    };
    return h(
      'div',
      { class: 'zoom' },
      button('zoom_in', 'plus', () => graph()?.zoomBy(1.4)),
      button('zoom_out', 'minus', () => graph()?.zoomBy(1 / 1.4)),
      button('fit', 'fit', () => graph()?.fit()),
    );
  }

  /** Keys that work anywhere but in a field. */
  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || this.parts === null) return;
    if (target.matches('input:not([type=range]), select, textarea') || this.parts.help.open) return;
    const { selected } = this.store.view;
    const chosen = selected !== null && selected !== QUERY && selected !== this.store.view.from ? selected : null;
    const acts: Record<string, () => void> = {
      '/': () => this.parts?.bar.focusKeyword(),
      '?': () => this.parts?.help.showModal(),
      c: () => chosen && this.compare(chosen),
      m: () => chosen && this.more(chosen),
      h: () => this.store.view.tab === 'compare' && this.parts?.compare.toggleWhy(),
      l: () => this.store.view.tab === 'compare' && this.parts?.compare.toggleOutline('lungs'),
      i: () => this.store.view.tab === 'compare' && this.parts?.compare.toggleOutline('infection'),
    };
    const act = acts[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

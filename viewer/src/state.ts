/* What is being looked at, and its place in the address: a copied link opens the same view, back and forward work. */

import type { LayoutKind } from './graph/types';
import { OUTLINES, type Outline } from './pane/outline';

export type Tab = 'graph' | 'case' | 'compare' | 'list' | 'query';
export type Language = 'en' | 'es';

/** Where compare stands: series and frame of the case and of the query. */
export interface Place {
  series: number;
  frame: number;
  querySeries: number;
  queryFrame: number;
}

export interface View {
  layout: LayoutKind;
  /** null: the answer as it was stored. */
  k: number | null;
  text: string;
  /** Statuses that the legend hides. */
  hidden: string[];
  /** Findings (system and code) of which a case must have one; none: all cases. */
  findings: string[];
  from: string | null;
  selected: string | null;
  tab: Tab;
  place: Place | null;
  why: boolean;
  /** What the network outlines and is to be seen. */
  outlines: Outline[];
  language: Language | null;
}

export const START: View = {
  layout: 'radial',
  k: null,
  text: '',
  hidden: [],
  findings: [],
  from: null,
  selected: null,
  tab: 'graph',
  place: null,
  why: false,
  outlines: [],
  language: null,
};

export const K_MIN = 5;
export const K_MAX = 200;
const TABS: Tab[] = ['graph', 'case', 'compare', 'list', 'query'];
const STATUSES = ['present', 'none', 'unknown'];
const HANDLE = /^[A-Za-z0-9_-]{1,200}$/;

/** The view that an address tells; what it cannot mean is left at its start. */
export function parse(hash: string): View {
  const given = new URLSearchParams(hash.replace(/^#/, ''));
  const view: View = { ...START };
  if (given.get('layout') === 'force') view.layout = 'force';
  const k = Number(given.get('k'));
  if (given.has('k') && Number.isInteger(k)) view.k = Math.min(K_MAX, Math.max(K_MIN, k));
  view.text = (given.get('text') ?? '').slice(0, 200);
  view.hidden = list(given.get('hide')).filter((status) => STATUSES.includes(status));
  view.findings = given.getAll('finding').slice(0, 50);
  view.from = handle(given.get('from'));
  view.selected = handle(given.get('case'));
  view.tab = TABS.find((tab) => tab === given.get('tab')) ?? START.tab;
  view.place = place(given.get('at'));
  view.why = given.get('why') === '1';
  const outlines = list(given.get('outline'));
  view.outlines = OUTLINES.filter((which) => outlines.includes(which));
  const language = given.get('lang');
  if (language === 'en' || language === 'es') view.language = language;
  return view;
}

/** The address of a view: only what differs from the start. */
export function format(view: View): string {
  const told = new URLSearchParams();
  if (view.layout !== START.layout) told.set('layout', view.layout);
  if (view.k !== null) told.set('k', String(view.k));
  if (view.text) told.set('text', view.text);
  if (view.hidden.length) told.set('hide', view.hidden.join(','));
  for (const finding of view.findings) told.append('finding', finding);
  if (view.from) told.set('from', view.from);
  if (view.selected) told.set('case', view.selected);
  if (view.tab !== START.tab) told.set('tab', view.tab);
  if (view.place) {
    const { series, frame, querySeries, queryFrame } = view.place;
    told.set('at', [series, frame, querySeries, queryFrame].join('.'));
  }
  if (view.why) told.set('why', '1');
  if (view.outlines.length) told.set('outline', view.outlines.join(','));
  if (view.language) told.set('lang', view.language);
  const text = told.toString();
  return text ? `#${text}` : '';
}

function list(text: string | null): string[] {
  return text ? text.split(',') : [];
}

function handle(text: string | null): string | null {
  return text !== null && HANDLE.test(text) ? text : null;
}

function place(text: string | null): Place | null {
  const found = /^(\d{1,6})\.(\d{1,6})\.(\d{1,6})\.(\d{1,6})$/.exec(text ?? '');
  if (found === null) return null;
  const [series, frame, querySeries, queryFrame] = found.slice(1).map(Number) as [number, number, number, number];
  return { series, frame, querySeries, queryFrame };
}

type Changed = (view: View, before: View) => void;
/** What makes a step that "back" undoes; all else changes the present entry. */
const STEPS: (keyof View)[] = ['from', 'k', 'text', 'layout', 'tab'];

export class Store {
  private listeners: Changed[] = [];
  view: View;

  constructor() {
    this.view = parse(location.hash);
    addEventListener('popstate', () => this.replace(parse(location.hash)));
    addEventListener('hashchange', () => this.replace(parse(location.hash)));
  }

  subscribe(listener: Changed): void {
    this.listeners.push(listener);
  }

  set(change: Partial<View>, quietly = false): void {
    const view = { ...this.view, ...change };
    const address = format(view);
    if (address === format(this.view)) {
      this.view = view;
      return;
    }
    const step = !quietly && STEPS.some((key) => key in change && change[key] !== this.view[key]);
    const url = location.pathname + location.search + address;
    if (step) history.pushState(null, '', url);
    else history.replaceState(null, '', url);
    this.replace(view);
  }

  /** The same view in other words: the present entry and address, of which nobody is told. */
  settle(change: Partial<View>): View {
    this.view = { ...this.view, ...change };
    history.replaceState(null, '', location.pathname + location.search + format(this.view));
    return this.view;
  }

  private replace(view: View): void {
    const before = this.view;
    if (format(view) === format(before)) return;
    this.view = view;
    for (const listener of this.listeners) listener(view, before);
  }
}

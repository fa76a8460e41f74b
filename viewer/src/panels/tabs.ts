/* The tabs beside the graph (on a phone at the foot, the graph being one of them). ARIA authoring practices: tabs. */

import type { Context } from '../context';
import { h } from '../dom';
import { t } from '../i18n';
import { icon } from '../icons';
import type { Tab } from '../state';

const TABS: Tab[] = ['graph', 'case', 'compare', 'list', 'query'];

export class Tabs {
  readonly bar: HTMLElement;
  readonly panel: HTMLElement;
  private readonly buttons = new Map<Tab, HTMLButtonElement>();
  private readonly bodies = new Map<Tab, HTMLElement>();

  constructor(
    private readonly context: Context,
    contents: Partial<Record<Tab, HTMLElement>>,
  ) {
    const tablist = h('div', { class: 'tablist', role: 'tablist', 'aria-label': t('tabs.label') });
    this.bar = h('nav', { class: 'tabs', 'aria-label': t('tabs.label') }, tablist);
    this.panel = h('aside', { class: 'panel', 'aria-label': t('tabs.label') });
    for (const tab of TABS) {
      const controls = tab === 'graph' ? 'graph-area' : `panel-${tab}`;
      const button = h(
        'button',
        { type: 'button', role: 'tab', id: `tab-${tab}`, class: `tab tab-${tab}`, 'aria-controls': controls },
        icon(tab, 20),
        h('span', {}, t(`tab.${tab}`)),
      );
      button.addEventListener('click', () => context.store.set({ tab }));
      button.addEventListener('keydown', (event) => this.key(event, tab));
      this.buttons.set(tab, button);
      tablist.append(button);
      const content = contents[tab];
      if (!content) continue;
      const body = h(
        'div',
        { role: 'tabpanel', id: `panel-${tab}`, class: 'tab-body', 'aria-labelledby': `tab-${tab}`, tabindex: -1 },
        content,
      );
      this.bodies.set(tab, body);
      this.panel.append(body);
    }
    this.update();
  }

  /** The tab on show: beside a graph in full view, "graph" stands for the case. */
  private current(): Tab {
    const { tab } = this.context.store.view;
    return tab === 'graph' && !isPhone() ? 'case' : tab;
  }

  update(): void {
    const current = this.current();
    for (const [tab, button] of this.buttons) {
      button.setAttribute('aria-selected', String(tab === current));
      button.tabIndex = tab === current ? 0 : -1;
    }
    for (const [tab, body] of this.bodies) body.hidden = tab !== current;
    document.body.dataset.tab = current;
  }

  private key(event: KeyboardEvent, tab: Tab): void {
    const shown = TABS.filter((one) => one !== 'graph' || isPhone());
    const at = shown.indexOf(tab);
    const places: Record<string, number> = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: shown.length - 1 };
    const place = places[event.key];
    if (place === undefined) return;
    event.preventDefault();
    const next = shown[(place + shown.length) % shown.length] as Tab;
    this.context.store.set({ tab: next });
    this.buttons.get(next)?.focus();
  }
}

export function isPhone(): boolean {
  return matchMedia('(max-width: 700px)').matches;
}

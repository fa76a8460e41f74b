/* The legend: what each symbol means; its status and finding entries are buttons that show and hide those cases. */

import type { Finding, Status } from '../api';
import { type Context, findingKey, statusWords } from '../context';
import { fill, foreign, h } from '../dom';
import { number, t } from '../i18n';
import { symbol } from '../icons';

const STATUSES: Status[] = ['present', 'none', 'unknown'];
const FINDINGS_SHOWN = 8;
const ROOMY = 1700; // pixels of the window from which nothing need be folded

export class Legend {
  readonly root: HTMLElement;
  private readonly body = h('div', { class: 'legend-body' });
  private readonly details: HTMLDetailsElement;
  private findingsOpen = innerWidth >= ROOMY;
  private narrow = false;

  constructor(private readonly context: Context) {
    this.details = h('details', { class: 'legend', open: innerWidth > 900 });
    this.details.append(h('summary', { class: 'legend-title', title: t('legend.hint') }, t('legend.title')), this.body);
    this.root = this.details;
  }

  update(): void {
    const { data, store } = this.context;
    const { hidden, findings } = store.view;
    this.fold();
    const focused = (document.activeElement as HTMLElement | null)?.dataset.filter;
    const entries: HTMLElement[] = [
      h('li', { class: 'legend-entry' }, symbol('query'), h('span', {}, t('legend.query'))),
      h('li', { class: 'legend-entry' }, symbol('selected'), h('span', {}, t('legend.selected'))),
    ];
    for (const status of STATUSES) {
      const n = data.cases.filter((node) => node.status === status).length;
      if (n === 0 && data.graph) continue;
      const shown = !hidden.includes(status);
      const button = toggle(
        shown,
        `status ${status}`,
        symbol(status),
        h('span', {}, statusWords(status)),
        data.graph ? n : null,
      );
      button.addEventListener('click', () => {
        store.set({ hidden: shown ? [...hidden, status] : hidden.filter((other) => other !== status) });
      });
      entries.push(h('li', {}, button));
    }
    const counted = [...this.tally().values()].sort((a, b) => b.n - a.n).slice(0, FINDINGS_SHOWN);
    const chosen: HTMLElement[] = counted.map(({ finding, n }) => {
      const key = findingKey(finding);
      const on = findings.includes(key);
      const button = toggle(on, `finding ${key}`, null, foreign(finding.display || finding.code, 'cut'), n);
      button.addEventListener('click', () => {
        store.set({ findings: on ? findings.filter((other) => other !== key) : [...findings, key] });
      });
      return h('li', {}, button);
    });
    const all = h('button', { type: 'button', class: 'button-plain legend-all' }, t('legend.all'));
    all.addEventListener('click', () => store.set({ hidden: [], findings: [] }));
    fill(
      this.body,
      h('ul', { class: 'legend-list' }, ...entries),
      chosen.length > 0 && this.findings(chosen, findings.length > 0),
      (hidden.length > 0 || findings.length > 0) && all,
    );
    if (focused) {
      for (const button of this.body.querySelectorAll('button')) {
        if (button.dataset.filter === focused) button.focus();
      }
    }
  }

  /** Beside a wide panel the graph is small: the legend folds, and unfolds when there is room again. */
  private fold(): void {
    const { tab } = this.context.store.view;
    const narrow = tab === 'compare' || (tab === 'list' && innerWidth < ROOMY);
    if (narrow !== this.narrow && innerWidth > 900) this.details.open = !narrow;
    this.narrow = narrow;
  }

  private findings(entries: HTMLElement[], filtered: boolean): HTMLElement {
    const part = h('details', { class: 'legend-findings', open: this.findingsOpen || filtered });
    part.append(
      h(
        'summary',
        { class: 'legend-sub' },
        t('legend.findings'),
        h('span', { class: 'legend-n' }, number(entries.length)),
      ),
      h('ul', { class: 'legend-list' }, ...entries),
    );
    part.addEventListener('toggle', () => {
      this.findingsOpen = part.open;
    });
    return part;
  }

  private tally(): Map<string, { finding: Finding; n: number }> {
    const counts = new Map<string, { finding: Finding; n: number }>();
    for (const node of this.context.data.cases) {
      for (const [key, finding] of new Map(node.findings.map((f) => [findingKey(f), f]))) {
        const known = counts.get(key);
        if (known) known.n++;
        else counts.set(key, { finding, n: 1 });
      }
    }
    return counts;
  }
}

function toggle(
  pressed: boolean,
  filter: string,
  mark: SVGElement | null,
  label: HTMLElement,
  n: number | null,
): HTMLButtonElement {
  const button = h(
    'button',
    { type: 'button', class: 'legend-entry legend-toggle', 'aria-pressed': String(pressed) },
    mark ?? h('span', { class: 'legend-box', 'aria-hidden': 'true' }),
    label,
    h('span', { class: 'legend-n' }, n === null ? '' : number(n)),
  );
  button.dataset.filter = filter;
  return button;
}

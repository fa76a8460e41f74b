/* The query itself: of it only modality, number of slices and what was found; never who it is of. */

import { type Context, methodWords, verdictWords } from '../context';
import { fill, foreign, h } from '../dom';
import { date, language, number, t } from '../i18n';
import { icon, symbol } from '../icons';

const TALLY = 6;
const MODEL_SHOWN = 12;

export class QueryPanel {
  readonly root = h('div', { class: 'query' });

  constructor(private readonly context: Context) {}

  update(): void {
    const { data, api, store } = this.context;
    const { result, graph } = data;
    if (result === null) {
      fill(this.root, h('span', { class: 'skeleton skeleton-title', 'aria-hidden': 'true' }));
      return;
    }
    const words = verdictWords(data, store.view.text);
    const { modality, slices } = result.query;
    const p = graph?.p ?? result.p;
    const facts: [string, string | HTMLElement, string?][] = [
      [
        t('query.compared'),
        slices === 1
          ? t('query.compared_one', { modality })
          : t('query.compared_value', { modality, slices: number(slices) }),
      ],
      [t('query.searched'), number(graph?.searched ?? result.searched)],
    ];
    if (result.text) facts.push([t('query.text'), foreign(result.text)]);
    if (p !== null) facts.push([t('query.p'), number(p, 3), t('query.p_note')]);
    if (result.organisation) facts.push([t('query.organisation'), foreign(result.organisation)]);
    facts.push([t('query.model'), h('code', {}, result.model_id.replace(/^sha256:/, '').slice(0, MODEL_SHOWN))]);
    const list = h('dl', { class: 'facts' });
    for (const [name, value, note] of facts) {
      list.append(h('dt', {}, name), h('dd', {}, value, note ? h('span', { class: 'note' }, note) : null));
    }
    fill(
      this.root,
      h('h2', { class: 'case-title' }, t('query.title')),
      words && h('p', { class: 'soft' }, words.why),
      h('section', { class: 'block' }, list),
      this.tally(),
      data.cases.length > 0 &&
        result.kind === 'answer' &&
        h(
          'section',
          { class: 'block' },
          h('h3', {}, t('query.sheets')),
          h(
            'div',
            { class: 'case-buttons' },
            h(
              'a',
              { class: 'button', href: api.contactSheet('png', language()), target: '_blank', rel: 'noopener' },
              icon('download'),
              t('query.sheet_png'),
            ),
            h(
              'a',
              { class: 'button', href: api.contactSheet('pdf', language()), target: '_blank', rel: 'noopener' },
              icon('download'),
              t('query.sheet_pdf'),
            ),
          ),
        ),
      h(
        'section',
        { class: 'block' },
        h('h3', {}, t('query.about')),
        h('p', { class: 'soft' }, methodWords(result)),
        result.expires !== null && h('p', { class: 'note' }, t('line.expires', { date: date(result.expires) })),
      ),
    );
  }

  private tally(): HTMLElement | null {
    const { cases } = this.context.data;
    if (cases.length === 0) return null;
    const counts = new Map<string, number>();
    for (const node of cases) {
      for (const name of new Set(node.findings.map((f) => f.display || f.code))) {
        counts.set(name, (counts.get(name) ?? 0) + 1);
      }
    }
    const rows = [...counts]
      .sort((a, b) => b[1] - a[1])
      .slice(0, TALLY)
      .map(([name, n]) => this.bar(foreign(name), 'present', n));
    for (const status of ['none', 'unknown'] as const) {
      const n = cases.filter((node) => node.status === status).length;
      if (n > 0) rows.push(this.bar(h('span', {}, t(`status.${status}`)), status, n));
    }
    return h(
      'section',
      { class: 'block' },
      h('h3', {}, t('query.tally')),
      h('ul', { class: 'tally' }, ...rows),
      h('p', { class: 'note' }, t('query.tally_note')),
    );
  }

  private bar(name: HTMLElement, status: 'present' | 'none' | 'unknown', n: number): HTMLElement {
    const total = this.context.data.cases.length;
    const fillBar = h('span', { class: `tally-fill tally-${status}` });
    fillBar.style.width = `${Math.round((100 * n) / total)}%`;
    return h(
      'li',
      {},
      h('span', { class: 'tally-name' }, symbol(status), name),
      h('span', { class: 'figure' }, t('query.tally_of', { n: number(n), total: number(total) })),
      h('span', { class: 'tally-bar', 'aria-hidden': 'true' }, fillBar),
    );
  }
}

/* What is known about the selected case. What is not known is said to be so. */

import { type CaseDetail, type Finding, type GraphNode, isAbort } from '../api';
import { type Context, QUERY, statusWords } from '../context';
import { fill, foreign, h } from '../dom';
import { has, t } from '../i18n';
import { icon, symbol } from '../icons';
import { slices } from './slices';

const PICTURE = 256;

export class CasePanel {
  readonly root = h('div', { class: 'case' });
  private shown = '';

  constructor(private readonly context: Context) {}

  /** Show the selected node; its details follow when they have come. */
  update(force = false): void {
    const { data, store } = this.context;
    const id = store.view.selected ?? data.centre?.id ?? QUERY;
    const node = data.node(id);
    const key = `${id} ${node?.rank ?? ''} ${node?.similarity ?? ''}`;
    if (!force && key === this.shown) return;
    this.shown = key;
    if (data.graph === null) {
      fill(this.root, skeleton());
      return;
    }
    this.show(id, node, null);
    this.context
      .detail(id)
      .then((detail) => {
        if (this.shown === key) this.show(id, node, detail);
      })
      .catch((error: unknown) => {
        if (!isAbort(error) && this.shown === key) {
          this.root.append(h('p', { class: 'problem', role: 'status' }, t('case.failed')));
        }
      });
  }

  private show(id: string, node: GraphNode | null, detail: CaseDetail | null): void {
    const { data } = this.context;
    const isQuery = id === QUERY;
    const rank = node?.rank ?? detail?.rank ?? null;
    const title = isQuery ? t('case.query') : rank ? t('case.title', { rank }) : t('case.centre');
    const modality = node?.modality ?? detail?.modality ?? '';
    const below = rank !== 0 && data.verdict !== 'similar';
    const facts = [node && rank !== 0 && score(this.context, node, below), rank !== 0 && node && status(node)];
    const focused = (document.activeElement as HTMLElement | null)?.id ?? '';
    if (isQuery) {
      fill(
        this.root,
        h(
          'div',
          { class: 'query-head' },
          h('div', { class: 'case-name' }, h('h2', { class: 'case-title' }, title), this.steps(node)),
          (detail && slices(this.context.api, detail, title)) ?? this.picture(id, node, title, modality),
        ),
        data.cases.length > 0 && h('p', { class: 'soft' }, t('case.none')),
        details(detail, node, isQuery),
      );
      if (focused && this.root.querySelector(`#${CSS.escape(focused)}`)) document.getElementById(focused)?.focus();
      return;
    }
    fill(
      this.root,
      h(
        'div',
        { class: 'case-head' },
        this.picture(id, node, title, modality),
        h(
          'div',
          { class: 'case-facts' },
          h('div', { class: 'case-name' }, h('h2', { class: 'case-title' }, title), this.steps(node)),
          ...facts,
        ),
      ),
      this.buttons(id, rank),
      findings(node, detail),
      details(detail, node, isQuery),
    );
    if (focused && this.root.querySelector(`#${CSS.escape(focused)}`)) document.getElementById(focused)?.focus();
  }

  private picture(id: string, node: GraphNode | null, title: string, modality: string): HTMLElement {
    const frame = h('div', { class: 'picture', 'data-status': id === QUERY ? 'query' : (node?.status ?? '') });
    const none = h('span', { class: 'no-picture' }, t('case.no_picture'));
    if (node !== null && !node.has_picture) {
      frame.append(none);
      return frame;
    }
    const alt =
      id === QUERY
        ? t('case.alt_query', { modality })
        : node?.rank
          ? t('case.alt', { rank: node.rank, modality })
          : title;
    const image = h('img', {
      src: this.context.api.picture(id, PICTURE),
      alt,
      width: PICTURE,
      height: PICTURE,
      decoding: 'async',
    });
    image.addEventListener('error', () => fill(frame, none));
    frame.append(image);
    return frame;
  }

  private steps(node: GraphNode | null): HTMLElement | null {
    const { cases } = this.context.data;
    if (cases.length === 0) return null;
    const at = node ? cases.findIndex((other) => other.id === node.id) : -1;
    const step = (id: string, name: 'previous' | 'next', target: GraphNode | undefined) => {
      const button = h(
        'button',
        { type: 'button', class: 'button-plain', id, 'aria-label': t(`case.${name}`), disabled: target === undefined },
        icon(name),
      );
      if (target) button.addEventListener('click', () => this.context.select(target.id));
      return button;
    };
    return h(
      'div',
      { class: 'case-steps' },
      step('case-previous', 'previous', at > 0 ? cases[at - 1] : undefined),
      step('case-next', 'next', cases[at + 1]),
    );
  }

  private buttons(id: string, rank: number | null): HTMLElement {
    const compare = h(
      'button',
      { type: 'button', class: 'button button-strong', id: 'case-compare' },
      icon('compare'),
      t('case.compare'),
    );
    compare.addEventListener('click', () => this.context.compare(id));
    const more = h('button', { type: 'button', class: 'button', id: 'case-more' }, icon('graph'), t('case.more'));
    more.addEventListener('click', () => this.context.more(id));
    return h('div', { class: 'case-buttons' }, compare, rank !== 0 && more);
  }
}

function score(context: Context, node: GraphNode, below: boolean): HTMLElement {
  const { data } = context;
  const bar = h('span', { class: 'score-bar', 'aria-hidden': 'true' }, h('span', { class: 'score-fill' }));
  (bar.firstChild as HTMLElement).style.width = `${Math.round(100 * Math.max(0, Math.min(1, node.similarity)))}%`;
  return h(
    'div',
    { class: 'score' },
    h(
      'p',
      { class: 'score-line' },
      h('span', { class: 'score-name' }, t('case.similarity')),
      h('strong', {}, data.score(node)),
      below && h('span', { class: 'tag' }, t('case.below')),
    ),
    bar,
    h('p', { class: 'note' }, t(data.calibrated ? 'case.percent_note' : 'case.score_note')),
  );
}

function status(node: GraphNode): HTMLElement {
  return h('p', { class: 'case-status' }, symbol(node.status), statusWords(node.status));
}

function findings(node: GraphNode | null, detail: CaseDetail | null): HTMLElement {
  const known: Finding[] = detail?.findings ?? node?.findings ?? [];
  const state = detail?.status ?? node?.status ?? 'unknown';
  const items = known.map((finding) =>
    h(
      'li',
      { class: 'finding' },
      foreign(finding.display || finding.code, 'finding-name'),
      h('span', { class: 'finding-code' }, foreign(`${finding.system} ${finding.code}`)),
      finding.source
        ? h('span', { class: 'finding-source' }, t('case.told_by', { source: '' }), foreign(finding.source))
        : null,
    ),
  );
  const empty = state === 'none' ? t('case.no_findings') : state === 'unknown' ? t('case.unknown_findings') : '';
  return h(
    'section',
    { class: 'block' },
    h('h3', {}, t('case.findings')),
    items.length > 0
      ? h('ul', { class: 'findings' }, ...items)
      : h('p', { class: 'soft' }, empty || t('case.unknown_findings')),
  );
}

function details(detail: CaseDetail | null, node: GraphNode | null, isQuery: boolean): HTMLElement {
  const sex = detail?.sex ?? '';
  const source = detail?.source ?? '';
  const told: [string, string | null][] = [
    [t('case.modality'), detail?.modality ?? node?.modality ?? null],
    [t('case.body_part'), detail?.body_part ?? node?.body_part ?? null],
  ];
  if (!isQuery) {
    told.push(
      [t('case.manufacturer'), detail?.manufacturer ?? null],
      [t('case.organisation'), detail?.organisation ?? null],
      [t('case.age_band'), detail?.age_band ?? null],
      [t('case.sex'), has(`sex.${sex}`) ? t(`sex.${sex}` as 'sex.M') : detail ? sex : null],
      [t('case.subject'), detail?.subject ?? node?.subject ?? null],
      [t('case.source'), has(`source.${source}`) ? t(`source.${source}` as 'source.received') : detail ? source : null],
    );
  }
  const list = h('dl', { class: 'facts' });
  for (const [name, value] of told) {
    const shown =
      value === null && detail === null
        ? h('span', { class: 'skeleton skeleton-word' })
        : value
          ? foreign(value)
          : h('span', { class: 'unknown' }, t('case.unknown'));
    list.append(h('dt', {}, name), h('dd', {}, shown));
  }
  return h('section', { class: 'block' }, list);
}

function skeleton(): HTMLElement {
  return h(
    'div',
    { class: 'case-head', 'aria-hidden': 'true' },
    h('div', { class: 'picture skeleton' }),
    h(
      'div',
      { class: 'case-facts' },
      h('span', { class: 'skeleton skeleton-title' }),
      h('span', { class: 'skeleton skeleton-word' }),
      h('span', { class: 'skeleton skeleton-word' }),
    ),
  );
}

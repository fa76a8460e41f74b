/* The same cases as a table: for screen readers, for the keyboard, and for a file. */

import type { GraphNode } from '../api';
import { type Context, findingNames, passes, statusWords } from '../context';
import { csv } from '../csv';
import { fill, foreign, h } from '../dom';
import { t } from '../i18n';
import { icon, symbol } from '../icons';

const PICTURE = 40;

export class ListPanel {
  readonly root = h('div', { class: 'list' });
  private rows = new Map<string, HTMLTableRowElement>();
  private pictures = new Map<string, HTMLCanvasElement>();
  private descending = false;
  private stale = true;

  constructor(private readonly context: Context) {}

  /** The picture of a case has come. */
  picture(id: string, bitmap: ImageBitmap): void {
    const canvas = this.pictures.get(id);
    if (canvas) draw(canvas, bitmap);
  }

  /** Cases in the order of the table: those the graph shows. */
  private cases(): GraphNode[] {
    const { data, store } = this.context;
    const shown = data.cases.filter((node) => passes(node, store.view));
    return this.descending ? shown.reverse() : shown;
  }

  /** The tab has been opened, perhaps: rows that were left unmade are made now. */
  opened(): void {
    if (this.stale) this.update();
  }

  /** Rows cost nothing while the tab is closed. */
  update(): void {
    this.stale = this.context.store.view.tab !== 'list';
    if (this.stale) return;
    this.rows.clear();
    this.pictures.clear();
    const cases = this.cases();
    const order = t(this.descending ? 'list.descending' : 'list.ascending');
    const sort = h(
      'button',
      { type: 'button', class: 'button-plain sort', 'aria-label': t('list.sort', { order }) },
      t('list.rank'),
      h('span', { 'aria-hidden': 'true' }, this.descending ? ' ↓' : ' ↑'),
    );
    sort.addEventListener('click', () => {
      this.descending = !this.descending;
      this.update();
      this.root.querySelector<HTMLElement>('.sort')?.focus();
    });
    const body = h('tbody');
    for (const node of cases) body.append(this.row(node));
    const save = h(
      'button',
      { type: 'button', class: 'button', disabled: cases.length === 0 },
      icon('download'),
      t('list.csv'),
    );
    save.addEventListener('click', () => this.save());
    fill(
      this.root,
      h('div', { class: 'list-top' }, save),
      h(
        'div',
        { class: 'table-scroll', tabindex: 0, role: 'region', 'aria-label': t('list.scroll') },
        h(
          'table',
          {},
          h('caption', { class: 'hidden-text' }, t('list.caption')),
          h(
            'thead',
            {},
            h(
              'tr',
              {},
              h('th', { scope: 'col', 'aria-sort': this.descending ? 'descending' : 'ascending' }, sort),
              h('th', { scope: 'col' }, h('span', { class: 'hidden-text' }, t('list.picture'))),
              h('th', { scope: 'col', class: 'right' }, t('list.similarity')),
              h('th', { scope: 'col' }, t('list.findings')),
              h('th', { scope: 'col', class: 'list-part' }, t('list.modality')),
              h('th', { scope: 'col', class: 'list-part' }, t('list.body_part')),
            ),
          ),
          body,
        ),
      ),
      cases.length === 0 && h('p', { class: 'soft' }, t('list.empty')),
    );
    this.select();
  }

  /** Mark the selected case; no row is made anew, so the focus stays. */
  select(): void {
    const { selected } = this.context.store.view;
    for (const [id, row] of this.rows) {
      if (id === selected) row.setAttribute('aria-current', 'true');
      else row.removeAttribute('aria-current');
    }
    if (selected) this.rows.get(selected)?.scrollIntoView({ block: 'nearest' });
  }

  private row(node: GraphNode): HTMLTableRowElement {
    const { data, thumbnails } = this.context;
    const open = h(
      'button',
      { type: 'button', class: 'button-plain row-open', 'aria-label': t('line.open', { rank: node.rank }) },
      String(node.rank),
    );
    const canvas = h('canvas', {
      width: 2 * PICTURE,
      height: 2 * PICTURE,
      class: 'row-picture',
      'aria-hidden': 'true',
    });
    const bitmap = thumbnails.get(node.id);
    if (bitmap) draw(canvas, bitmap);
    const findings = findingNames(node.findings).join(', ');
    const told =
      node.status === 'present' && findings
        ? foreign(findings, 'clamp')
        : h('span', { class: 'soft' }, statusWords(node.status));
    const row = h(
      'tr',
      {},
      h('th', { scope: 'row' }, open),
      h('td', {}, canvas),
      h('td', { class: 'right figure' }, data.score(node)),
      h('td', {}, h('span', { class: 'row-findings' }, symbol(node.status), told)),
      h(
        'td',
        { class: 'list-part' },
        node.modality ? foreign(node.modality) : h('span', { class: 'unknown' }, t('case.unknown')),
      ),
      h(
        'td',
        { class: 'list-part' },
        node.body_part ? foreign(node.body_part) : h('span', { class: 'unknown' }, t('case.unknown')),
      ),
    );
    open.addEventListener('click', (event) => {
      event.stopPropagation();
      this.context.open(node.id);
    });
    row.addEventListener('click', () => this.context.select(node.id));
    this.rows.set(node.id, row);
    this.pictures.set(node.id, canvas);
    return row;
  }

  private save(): void {
    const head = [
      t('list.rank'),
      t('list.similarity'),
      t('csv.status'),
      t('list.findings'),
      t('list.modality'),
      t('list.body_part'),
      t('csv.subject'),
    ];
    const rows = this.cases().map((node) => [
      node.rank,
      node.similarity,
      statusWords(node.status),
      node.findings.map((f) => `${f.system} ${f.code} ${f.display}`).join('; '),
      node.modality,
      node.body_part,
      node.subject,
    ]);
    const address = URL.createObjectURL(new Blob([csv([head, ...rows])], { type: 'text/csv;charset=utf-8' }));
    const link = h('a', { href: address, download: 'similar-cases.csv' });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }
}

function draw(canvas: HTMLCanvasElement, bitmap: ImageBitmap): void {
  canvas.getContext('2d')?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

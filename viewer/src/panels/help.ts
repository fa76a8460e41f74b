/* Keys, symbols and limits, in a dialog. */

import { h } from '../dom';
import { type Key, t } from '../i18n';
import { icon, symbol } from '../icons';

const KEYS: [string[], Key][] = [
  [['←', '→', '↑', '↓'], 'help.arrows'],
  [['N', 'P'], 'help.np'],
  [['Enter'], 'help.enter'],
  [['M'], 'help.more'],
  [['C'], 'help.compare'],
  [['H'], 'help.heat'],
  [['L', 'I'], 'help.outlines'],
  [['+', '−', '0'], 'help.zoom'],
  [['Home', 'End'], 'help.home'],
  [['/'], 'help.slash'],
  [['?'], 'help.question'],
];

/** In a picture; what the mouse does is in words of the language. */
const PICTURE: [(string | { words: Key })[], Key][] = [
  [[{ words: 'help.wheel' }], 'help.slices'],
  [[{ words: 'help.drag' }], 'help.window'],
  [['Ctrl', { words: 'help.wheel' }], 'help.zoomed'],
  [['Shift', '←', '→', '↑', '↓'], 'help.moved'],
  [[{ words: 'help.double' }], 'help.first'],
];

export function help(): HTMLDialogElement {
  const close = h('button', { type: 'button', class: 'button', 'aria-label': t('help.close') }, icon('close'));
  const symbols = h('ul', { class: 'help-symbols' });
  const drawn: [Parameters<typeof symbol>[0], Key][] = [
    ['query', 'legend.query'],
    ['selected', 'legend.selected'],
    ['present', 'status.present'],
    ['none', 'status.none'],
    ['unknown', 'status.unknown'],
  ];
  for (const [kind, words] of drawn) symbols.append(h('li', {}, symbol(kind), t(words)));
  const dialog = h(
    'dialog',
    { class: 'help', 'aria-labelledby': 'help-title' },
    h('div', { class: 'help-head' }, h('h2', { id: 'help-title' }, t('help.title')), close),
    h(
      'div',
      { class: 'help-columns' },
      h('section', {}, h('h3', {}, t('help.keys')), list(KEYS), h('h3', {}, t('help.picture')), list(PICTURE)),
      h(
        'section',
        {},
        h('h3', {}, t('help.symbols')),
        symbols,
        h('h3', {}, t('help.reading')),
        h('p', {}, t('help.radial')),
        h('p', {}, t('help.force')),
        h('p', {}, t('help.unknown')),
        h('p', {}, t('help.limits')),
      ),
    ),
  );
  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close();
  });
  return dialog;
}

function list(rows: typeof PICTURE): HTMLElement {
  const keys = h('dl', { class: 'keys' });
  for (const [names, words] of rows) {
    const named = names.map((name) => h('kbd', {}, typeof name === 'string' ? name : t(name.words)));
    keys.append(h('dt', {}, ...named), h('dd', {}, t(words)));
  }
  return keys;
}

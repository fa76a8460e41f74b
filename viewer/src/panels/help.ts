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
  [['+', '−', '0'], 'help.zoom'],
  [['Home', 'End'], 'help.home'],
  [['/'], 'help.slash'],
  [['?'], 'help.question'],
];

export function help(): HTMLDialogElement {
  const close = h('button', { type: 'button', class: 'button', 'aria-label': t('help.close') }, icon('close'));
  const keys = h('dl', { class: 'keys' });
  for (const [names, words] of KEYS) {
    keys.append(h('dt', {}, ...names.map((name) => h('kbd', {}, name))), h('dd', {}, t(words)));
  }
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
      h('section', {}, h('h3', {}, t('help.keys')), keys),
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

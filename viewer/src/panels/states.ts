/* States without a graph: a link that leads nowhere or has expired, a fault, and the banner of a node that is gone. */

import { ApiError } from '../api';
import { h } from '../dom';
import { type Key, type Language, t } from '../i18n';
import { icon } from '../icons';
import { brand, languageSwitch, notice } from './bar';

type Kind = 'unknown' | 'expired' | 'error' | 'busy';

export function kindOf(error: unknown): Kind {
  if (!(error instanceof ApiError)) return 'error';
  if (error.status === 404) return 'unknown';
  if (error.status === 410) return 'expired';
  return error.status === 429 ? 'busy' : 'error';
}

/** A page that says one thing, and what can be done. */
export function messagePage(
  kind: Kind,
  retry: () => void,
  setLanguage: (language: Language) => void,
  ask: boolean,
): HTMLElement {
  document.title = `${t(`state.${kind}` as Key)} · dicomnode`;
  const again = h('button', { type: 'button', class: 'button button-strong' }, t('state.retry'));
  again.addEventListener('click', retry);
  return h(
    'div',
    { class: 'message-page' },
    h(
      'header',
      { class: 'bar bar-short' },
      brand(),
      h('div', { class: 'head' }, notice()),
      h('div', { class: 'actions' }, languageSwitch({ setLanguage })),
    ),
    h(
      'main',
      { class: 'message', id: 'main' },
      icon('warning', 40),
      h('h1', {}, t(`state.${kind}` as Key)),
      h('p', {}, t(`state.${kind}_text` as Key)),
      h(
        'div',
        { class: 'case-buttons' },
        (kind === 'error' || kind === 'busy') && again,
        ask && h('a', { class: 'button', href: '/v/' }, icon('upload'), t('state.upload')),
      ),
    ),
  );
}

/** The banner over everything while the node does not answer; what is shown stays. */
export class Banner {
  readonly root = h('section', { class: 'banner', hidden: true });
  private readonly text = h('span', {});
  private timer = 0;
  private gone = false;

  constructor(private readonly tryNow: () => void) {
    this.build();
  }

  /** Its words again, in another language. */
  build(): void {
    const now = h('button', { type: 'button', class: 'button' }, t('gone.now'));
    now.addEventListener('click', () => this.tryNow());
    this.root.setAttribute('aria-label', t('gone.title'));
    this.root.replaceChildren(icon('warning'), h('strong', { role: 'alert' }, t('gone.title')), this.text, now);
  }

  lost(seconds: number): void {
    this.gone = true;
    this.root.hidden = false;
    clearInterval(this.timer);
    let left = seconds;
    const tell = () => {
      this.text.textContent = t('gone.text', { n: Math.max(1, left--) });
    };
    tell();
    this.timer = window.setInterval(tell, 1000);
  }

  /** Whether it had been gone. */
  back(): boolean {
    clearInterval(this.timer);
    const was = this.gone;
    this.gone = false;
    this.root.hidden = true;
    return was;
  }
}

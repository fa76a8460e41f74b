/* The top of the page: the product, the verdict in words, the notice that never leaves the view, and the controls. */

import type { Session } from '../api';
import { asking, type Context, keywordOf, verdictWords } from '../context';
import { fill, h } from '../dom';
import { LANGUAGES, type Language, language, number, t } from '../i18n';
import { brandMark, icon } from '../icons';
import { K_MAX, K_MIN } from '../state';
import { account, mayAsk } from './account';

export interface BarActions {
  setLanguage(language: Language): void;
  help(): void;
}

const TYPING_MS = 350;
const KEYWORD_MS = 700; // a keyword is longer than a number: asked once it is left alone this long

export function notice(): HTMLElement {
  return h('p', { class: 'notice', role: 'note' }, icon('warning', 16), h('span', {}, t('notice')));
}

export function languageSwitch(actions: Pick<BarActions, 'setLanguage'>): HTMLElement {
  const choose = h('select', { class: 'select', 'aria-label': t('bar.language'), id: 'language' });
  for (const [code, name] of Object.entries(LANGUAGES)) {
    choose.append(h('option', { value: code, lang: code, selected: code === language() }, name));
  }
  choose.addEventListener('change', () => actions.setLanguage(choose.value as Language));
  return choose;
}

export function brand(): HTMLElement {
  return h('span', { class: 'brand' }, brandMark(), h('span', { class: 'brand-name' }, 'dicomnode'));
}

/** The head of a result. `update` when data or view have changed. */
export class Bar {
  readonly root: HTMLElement;
  private readonly title = h('h1', { class: 'verdict' });
  private readonly keyword = h('input', {
    type: 'search',
    id: 'keyword',
    class: 'input',
    maxlength: 200,
    autocomplete: 'off',
    spellcheck: 'false',
    dir: 'auto',
    placeholder: t('bar.keyword_hint'),
  });
  private readonly clear = h(
    'button',
    { type: 'button', class: 'button-plain keyword-clear', 'aria-label': t('bar.clear') },
    icon('close', 14),
  );
  private readonly k = h('input', { type: 'range', id: 'k', min: K_MIN, max: K_MAX, step: 1, class: 'range' });
  private readonly kShown = h('output', { for: 'k', class: 'k-shown' });
  private readonly layouts: Record<'radial' | 'force', HTMLButtonElement>;
  private readonly fresh: HTMLElement;
  private readonly account = h('span', { class: 'account-place' });
  private accountOf: Session | null = null;
  private timer = 0;
  private typing = 0;

  constructor(
    private readonly context: Context,
    actions: BarActions,
  ) {
    this.layouts = { radial: this.layoutButton('radial'), force: this.layoutButton('force') };
    const copy = h(
      'button',
      { type: 'button', class: 'button', id: 'copy-link' },
      icon('link'),
      h('span', { class: 'wide-only' }, t('bar.copy')),
    );
    copy.setAttribute('aria-label', t('bar.copy'));
    copy.addEventListener('click', () => this.copy());
    const help = h('button', { type: 'button', class: 'button', 'aria-label': t('bar.help') }, icon('help'));
    help.addEventListener('click', () => actions.help());
    this.fresh = h(
      'a',
      { class: 'button', href: '/v/', hidden: true, 'aria-label': t('bar.new') },
      icon('upload'),
      h('span', { class: 'wide-only' }, t('bar.new')),
    );
    const tools = this.tools();
    const unfold = h(
      'button',
      {
        type: 'button',
        class: 'button unfold',
        'aria-label': t('bar.filters'),
        'aria-expanded': 'false',
        'aria-controls': 'tools',
      },
      icon('sliders'),
    );
    unfold.addEventListener('click', () => {
      unfold.setAttribute('aria-expanded', String(tools.classList.toggle('open')));
    });
    this.root = h(
      'header',
      { class: 'bar' },
      brand(),
      h('div', { class: 'head' }, this.title, notice()),
      h('div', { class: 'actions' }, unfold, this.fresh, copy, languageSwitch(actions), help, this.account),
      tools,
    );
    this.update();
  }

  focusKeyword(): void {
    this.root.querySelector('.tools')?.classList.add('open');
    this.keyword.focus();
    this.keyword.select();
  }

  update(): void {
    const { data, store, api } = this.context;
    this.fresh.hidden = !mayAsk(data.session);
    if (data.session !== this.accountOf) {
      this.accountOf = data.session;
      fill(
        this.account,
        account(api, data.session, (words) => this.context.say(words)),
      );
    }
    const words = verdictWords(data, store.view.text);
    if (words === null) {
      fill(
        this.title,
        h('span', { class: 'skeleton skeleton-title', 'aria-hidden': 'true' }),
        h('span', { class: 'hidden-text' }, t('app.loading')),
      );
    } else {
      this.title.textContent = words.title;
      this.title.dataset.kind = words.kind;
    }
    document.title = `${words?.title ?? t('app.title')} · dicomnode`;
    if (document.activeElement !== this.keyword) this.keyword.value = keywordOf(data.result, store.view);
    this.clear.hidden = this.keyword.value === '';
    const k = Math.min(K_MAX, Math.max(K_MIN, store.view.k ?? data.result?.k ?? 10));
    if (document.activeElement !== this.k || this.timer === 0) this.showK(k);
    for (const [kind, button] of Object.entries(this.layouts)) {
      button.setAttribute('aria-pressed', String(store.view.layout === kind));
    }
  }

  private showK(k: number): void {
    this.k.value = String(k);
    this.kShown.textContent = number(k);
    this.k.style.setProperty('--share', String((k - K_MIN) / (K_MAX - K_MIN)));
  }

  private layoutButton(kind: 'radial' | 'force'): HTMLButtonElement {
    const button = h('button', { type: 'button', class: 'segment' }, t(`bar.${kind}`));
    button.addEventListener('click', () => this.context.store.set({ layout: kind }));
    return button;
  }

  private tools(): HTMLElement {
    const form = h(
      'form',
      { class: 'keyword', role: 'search' },
      h('label', { for: 'keyword' }, t('bar.keyword')),
      h('span', { class: 'keyword-box' }, icon('search', 16), this.keyword, this.clear),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      clearTimeout(this.typing);
      this.ask(this.keyword.value.trim());
    });
    this.keyword.addEventListener('input', () => {
      this.clear.hidden = this.keyword.value === '';
      clearTimeout(this.typing);
      if (this.keyword.value === '') this.ask('');
      else this.typing = window.setTimeout(() => this.ask(this.keyword.value.trim()), KEYWORD_MS);
    });
    this.clear.addEventListener('click', () => {
      clearTimeout(this.typing);
      this.keyword.value = '';
      this.keyword.focus();
      this.ask('');
    });
    this.k.addEventListener('input', () => {
      this.showK(Number(this.k.value));
      clearTimeout(this.timer);
      this.timer = window.setTimeout(() => {
        this.timer = 0;
        this.choose(Number(this.k.value));
      }, TYPING_MS);
    });
    return h(
      'div',
      { class: 'tools', id: 'tools' },
      form,
      h('div', { class: 'k' }, h('label', { for: 'k' }, t('bar.k')), this.k, this.kShown),
      h(
        'div',
        { class: 'segments', role: 'group', 'aria-label': t('bar.layout') },
        this.layouts.radial,
        this.layouts.force,
      ),
    );
  }

  private choose(k: number): void {
    const { store, data } = this.context;
    store.set(asking(data.result, store.view, { k }));
  }

  private ask(text: string): void {
    const { store, data } = this.context;
    store.set(asking(data.result, store.view, { text }));
  }

  private async copy(): Promise<void> {
    try {
      await navigator.clipboard.writeText(location.href);
      this.context.say(t('bar.copied'));
    } catch {
      this.context.say(t('bar.not_copied'));
    }
  }
}

/* Ask with an image: choose, drop or paste it; follow its way by stages; then its result. Nothing is kept by the page. */

import { type Api, ApiError, isAbort, type QueryState, type Session, type Stage } from './api';
import { fill, foreign, h } from './dom';
import { failure } from './failure';
import { collect } from './files';
import { type Key, type Language, number, setLanguage, size, t, tn } from './i18n';
import { icon } from './icons';
import { account, mayAsk } from './panels/account';
import { brand, languageSwitch, notice } from './panels/bar';
import type { Banner } from './panels/states';
import { K_MAX, K_MIN, type Store } from './state';

const STAGES: Stage[] = ['received', 'de-identified', 'embedded', 'searched', 'done'];
const POLL_MS = 700;
const K_DEFAULT = 20;

export class UploadPage {
  private session: Session | null = null;
  private files: File[] = [];
  private k = K_DEFAULT;
  private text = '';
  private stop = new AbortController();
  private running: string | null = null;
  private view: () => void = () => this.chooser();
  private readonly body = h('main', { class: 'upload', id: 'main' });

  constructor(
    private readonly root: HTMLElement,
    private readonly api: Api,
    private readonly store: Store,
    private readonly banner: Banner,
    private readonly announce: (words: string) => void,
  ) {}

  start(): void {
    this.mount();
    this.api.session().then(
      (session) => {
        this.session = session;
        if (session.mode === 'users' && this.running === null) this.mount();
      },
      () => undefined, // asked again when the files are sent, and told there
    );
    addEventListener('paste', (event) => {
      const pasted = [...(event.clipboardData?.files ?? [])];
      if (pasted.length > 0 && this.running === null) this.choose(pasted);
    });
    addEventListener('dragover', (event) => event.preventDefault());
    addEventListener('drop', (event) => event.preventDefault());
  }

  private mount(): void {
    document.title = `${t('app.upload_title')} · dicomnode`;
    this.banner.build();
    const chosen = (language: Language) => {
      this.store.set({ language }, true);
      setLanguage(language);
      this.mount();
      document.getElementById('language')?.focus();
    };
    this.root.className = 'upload-page';
    fill(
      this.root,
      h(
        'header',
        { class: 'bar bar-short' },
        brand(),
        h('div', { class: 'head' }, notice()),
        h(
          'div',
          { class: 'actions' },
          languageSwitch({ setLanguage: chosen }),
          account(this.api, this.session, (words) => this.announce(words)),
        ),
      ),
      this.banner.root,
      this.body,
    );
    this.view();
  }

  private show(view: () => void): void {
    this.view = view;
    view();
  }

  private chooser(problem = ''): void {
    if (this.session !== null && !mayAsk(this.session)) {
      fill(this.body, h('h1', {}, t('upload.title')), h('p', { class: 'problem' }, t('upload.failed.403')));
      return;
    }
    const pick = h('input', { type: 'file', multiple: true, hidden: true, id: 'pick-files' });
    const folder = h('input', { type: 'file', webkitdirectory: true, hidden: true, id: 'pick-folder' });
    for (const input of [pick, folder]) {
      input.addEventListener('change', () => this.choose([...(input.files ?? [])]));
    }
    const chooseFiles = h(
      'button',
      { type: 'button', class: 'button button-strong', id: 'choose-files' },
      icon('file'),
      t('upload.files'),
    );
    chooseFiles.addEventListener('click', () => pick.click());
    const chooseFolder = h(
      'button',
      { type: 'button', class: 'button', id: 'choose-folder' },
      icon('folder'),
      t('upload.folder'),
    );
    chooseFolder.addEventListener('click', () => folder.click());
    const zone = h(
      'div',
      { class: 'drop' },
      icon('upload', 44),
      h('p', { class: 'drop-lead' }, t('upload.lead')),
      h('p', { class: 'soft' }, t('upload.kinds')),
      h('div', { class: 'case-buttons' }, chooseFiles, chooseFolder),
      pick,
      folder,
    );
    zone.addEventListener('dragover', (event) => {
      event.preventDefault();
      zone.classList.add('over');
    });
    zone.addEventListener('dragleave', () => zone.classList.remove('over'));
    zone.addEventListener('drop', (event) => void this.dropped(event, zone));
    fill(
      this.body,
      h('h1', {}, t('upload.title')),
      problem && h('p', { class: 'problem', role: 'alert' }, problem),
      zone,
      this.files.length > 0 && this.form(),
      h('p', { class: 'privacy' }, icon('shield', 22), h('span', {}, t('upload.privacy'))),
    );
  }

  private async dropped(event: DragEvent, zone: HTMLElement): Promise<void> {
    event.preventDefault();
    zone.classList.remove('over');
    if (event.dataTransfer === null) return;
    const collecting = collect(event.dataTransfer);
    this.announce(t('upload.reading'));
    const found = await collecting;
    if (found.length === 0) this.chooser(t('upload.empty'));
    else this.choose(found);
  }

  private choose(files: File[]): void {
    if (files.length === 0 || (this.session !== null && !mayAsk(this.session))) return;
    this.files = files;
    this.show(() => this.chooser());
    this.announce(this.chosenWords());
    document.getElementById('start')?.focus();
  }

  private chosenWords(): string {
    const bytes = this.files.reduce((sum, file) => sum + file.size, 0);
    return tn('upload.chosen', this.files.length, { size: size(bytes) });
  }

  private form(): HTMLElement {
    const shown = h('output', { for: 'upload-k', class: 'k-shown' }, number(this.k));
    const k = h('input', {
      type: 'range',
      id: 'upload-k',
      class: 'range',
      min: K_MIN,
      max: K_MAX,
      step: 1,
      value: this.k,
    });
    k.addEventListener('input', () => {
      this.k = Number(k.value);
      shown.textContent = number(this.k);
    });
    const text = h('input', {
      type: 'text',
      id: 'upload-text',
      class: 'input',
      maxlength: 200,
      dir: 'auto',
      autocomplete: 'off',
      value: this.text,
      'aria-describedby': 'upload-text-hint',
    });
    text.addEventListener('input', () => {
      this.text = text.value;
    });
    const clear = h('button', { type: 'button', class: 'button' }, t('upload.clear'));
    clear.addEventListener('click', () => {
      this.files = [];
      this.chooser();
      document.getElementById('choose-files')?.focus();
    });
    const first = this.files[0];
    const form = h(
      'form',
      { class: 'upload-form' },
      h(
        'p',
        { class: 'chosen' },
        icon('check'),
        h('strong', {}, this.chosenWords()),
        this.files.length === 1 && first ? foreign(first.name, 'cut soft') : null,
      ),
      h('div', { class: 'field' }, h('label', { for: 'upload-k' }, t('upload.k')), h('div', { class: 'k' }, k, shown)),
      h(
        'div',
        { class: 'field' },
        h('label', { for: 'upload-text' }, t('upload.text')),
        text,
        h('p', { class: 'note', id: 'upload-text-hint' }, t('upload.text_hint')),
      ),
      h(
        'div',
        { class: 'case-buttons' },
        h('button', { type: 'submit', class: 'button button-strong', id: 'start' }, icon('search'), t('upload.start')),
        clear,
      ),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      void this.send();
    });
    return form;
  }

  private async send(): Promise<void> {
    this.stop = new AbortController();
    const { signal } = this.stop;
    this.running = '';
    this.show(() => this.progress(null, 0));
    try {
      this.session ??= await this.api.session();
      const body = new FormData();
      body.append('k', String(this.k));
      if (this.text.trim()) body.append('text', this.text.trim());
      for (const file of this.files) body.append('file', file, 'image'); // names of files may hold names of patients
      const state = await this.api.send(body, this.session.csrf, (share) => this.sent(share), signal);
      this.running = state.id;
      await this.follow(state, signal);
    } catch (error) {
      this.running = null;
      if (isAbort(error) || signal.aborted) this.show(() => this.chooser(t('upload.cancelled')));
      else this.show(() => this.failed(error));
    }
  }

  private sent(share: number): void {
    const meter = document.getElementById('meter') as HTMLProgressElement | null;
    if (meter && this.running === '') meter.value = share * 0.2;
  }

  /** Follow the stages by events; where those do not come through, by asking again and again. */
  private async follow(first: QueryState, signal: AbortSignal): Promise<void> {
    this.show(() => this.progress(first, first.progress));
    const last = await this.byEvents(first, signal).catch((error: unknown) => {
      if (signal.aborted) throw error;
      return this.byAsking(first, signal);
    });
    if (last.state === 'failed') {
      throw new ApiError(422, last.error?.code ?? 'failed', last.error?.detail ?? '');
    }
    location.assign(`/v/q/${encodeURIComponent(last.id)}${this.hash()}`);
  }

  /** The language stays when the page of the result is opened. */
  private hash(): string {
    const { language } = this.store.view;
    return language ? `#lang=${language}` : '';
  }

  private byEvents(first: QueryState, signal: AbortSignal): Promise<QueryState> {
    return new Promise((resolve, reject) => {
      if (first.state === 'done' || first.state === 'failed') {
        resolve(first);
        return;
      }
      const events = this.api.events(first.id);
      const end = (act: () => void) => {
        events.close();
        act();
      };
      events.addEventListener('state', (event) => {
        const state = JSON.parse((event as MessageEvent<string>).data) as QueryState;
        this.show(() => this.progress(state, state.progress));
        if (state.state === 'done' || state.state === 'failed') end(() => resolve(state));
      });
      events.addEventListener('error', () => end(() => reject(new Error('no events'))));
      signal.addEventListener('abort', () => end(() => reject(signal.reason)));
    });
  }

  private async byAsking(first: QueryState, signal: AbortSignal): Promise<QueryState> {
    for (;;) {
      const state = await this.api.query(first.id, signal);
      this.show(() => this.progress(state, state.progress));
      if (state.state === 'done' || state.state === 'failed') return state;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      signal.throwIfAborted();
    }
  }

  private progress(state: QueryState | null, share: number): void {
    const reached = state === null ? -1 : STAGES.indexOf(state.stage);
    const steps = STAGES.map((stage, i) => {
      const done = i <= reached;
      const now = i === reached + 1;
      const step = h('li', {
        class: done ? 'step step-done' : now ? 'step step-now' : 'step',
        'aria-current': now ? 'step' : null,
      });
      step.append(
        h('span', { class: 'step-mark', 'aria-hidden': 'true' }, done ? icon('check', 16) : null),
        t(`upload.stage.${stage}` as Key),
      );
      return step;
    });
    const words =
      state === null
        ? t('upload.sending')
        : state.state === 'queued'
          ? t('upload.waiting')
          : t(`upload.stage.${state.stage}` as Key);
    const value = state === null ? share : 0.2 + 0.8 * share;
    const cancel = h('button', { type: 'button', class: 'button', id: 'cancel' }, t('upload.cancel'));
    cancel.addEventListener('click', () => this.cancel());
    const hadFocus = document.activeElement?.id === 'cancel' || document.activeElement === document.body;
    fill(
      this.body,
      h('h1', {}, t('upload.title')),
      h(
        'section',
        { class: 'progress' },
        h('p', { class: 'progress-words' }, words),
        h('progress', { id: 'meter', max: 1, value, 'aria-label': t('upload.progress') }),
        h('ol', { class: 'steps' }, ...steps),
        cancel,
      ),
      h('p', { class: 'privacy' }, icon('shield', 22), h('span', {}, t('upload.privacy'))),
    );
    if (hadFocus) cancel.focus();
    this.announce(words);
  }

  private cancel(): void {
    const { running, session } = this;
    this.stop.abort(new DOMException('cancelled', 'AbortError'));
    if (running && session) this.api.cancel(running, session.csrf).catch(() => undefined); // it expires by itself
    this.running = null;
  }

  private failed(error: unknown): void {
    const { title, words, detail } = failure(error);
    this.announce(`${title}. ${words}`); // in the place of the last stage
    const again = h('button', { type: 'button', class: 'button button-strong', id: 'again' }, t('upload.again'));
    again.addEventListener('click', () => {
      this.files = [];
      this.show(() => this.chooser());
      document.getElementById('choose-files')?.focus();
    });
    const retry = h('button', { type: 'button', class: 'button' }, t('state.retry'));
    retry.addEventListener('click', () => void this.send());
    fill(
      this.body,
      h(
        'section',
        { class: 'message' },
        icon('warning', 40),
        h('h1', {}, title),
        h('p', {}, words),
        detail ? h('p', { class: 'soft' }, foreign(detail)) : null,
      ),
      h('div', { class: 'case-buttons middle' }, again, retry),
    );
    again.focus();
  }
}

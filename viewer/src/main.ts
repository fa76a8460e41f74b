/* Where the page begins: the address tells whether a result is shown or one is asked for. */

import { Api } from './api';
import { ResultApp } from './app';
import { byId } from './dom';
import { preferred, setLanguage, t } from './i18n';
import { Banner } from './panels/states';
import { Store } from './state';
import { UploadPage } from './upload';

const RESULT = /^\/v\/(?:r|q)\/([A-Za-z0-9_-]{16,64})\/?$/;

function resultId(): string | null {
  return RESULT.exec(location.pathname)?.[1] ?? null;
}

function begin(): void {
  const root = byId('app');
  const store = new Store();
  setLanguage(store.view.language ?? preferred());
  const announcer = byId('say');
  const announce = (words: string) => {
    announcer.textContent = words;
  };
  const id = resultId();
  let api: Api | null = null;
  let app: ResultApp | null = null;
  const banner = new Banner(() => api?.tryNow());
  api = new Api(id ?? '', {
    lost: (seconds) => banner.lost(seconds),
    back: () => {
      if (!banner.back()) return;
      if (app) app.say(t('gone.back'));
      else announce(t('gone.back'));
    },
    busy: (seconds) => app?.say(t('line.busy', { n: seconds })),
    signedOut: () => {
      const next = encodeURIComponent(location.pathname + location.search + location.hash);
      location.assign(`/sign-in?next=${next}`);
    },
  });
  if (id === null) {
    new UploadPage(root, api, store, banner, announce).start();
    return;
  }
  app = new ResultApp(root, api, store, banner, announce);
  void app.start();
}

begin();

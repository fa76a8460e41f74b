/* Who is signed in, and the way out. Without sign-in and for the holder of one link there is nothing to show. */

import type { Api, Session } from '../api';
import { foreign, h } from '../dom';
import { t } from '../i18n';
import { icon } from '../icons';

export function account(api: Api, session: Session | null, say: (words: string) => void): HTMLElement | null {
  if (session === null || session.mode !== 'users' || session.user === null) return null;
  const words = t('bar.sign_out');
  const out = h(
    'button',
    { type: 'button', class: 'button', id: 'sign-out', 'aria-label': words, title: words },
    icon('leave'),
  );
  out.addEventListener('click', async () => {
    out.disabled = true;
    if (await api.signOut(session.csrf)) {
      location.assign('/sign-in');
      return;
    }
    out.disabled = false;
    say(t('state.error'));
  });
  const name = foreign(session.user, 'account-name cut wide-only');
  name.setAttribute('aria-label', t('bar.user', { name: session.user }));
  name.setAttribute('role', 'note');
  return h('div', { class: 'account' }, name, out);
}

/** Whether one may ask with images of one's own: the holder of one link may not. */
export function mayAsk(session: Session | null): boolean {
  return session !== null && session.scope === null;
}

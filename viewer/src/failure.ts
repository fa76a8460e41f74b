/* Why an upload was not searched, in words, with what to do. */

import { ApiError } from './api';
import { has, type Key, t } from './i18n';

/** Files that are not of one study, patient or picture: nothing is wrong with them, but one must be chosen. */
const CHOOSE: Record<string, Key> = {
  'several-studies': 'upload.choose.several-studies',
  'several-pictures': 'upload.choose.several-pictures',
  'mixed-patients': 'upload.choose.mixed-patients',
};

export interface Failure {
  title: string;
  words: string;
  /** The node's own line, where the words above do not say it already. */
  detail: string;
}

export function failure(error: unknown): Failure {
  const known = error instanceof ApiError ? error : new ApiError(-1, 'error', '');
  const choose = CHOOSE[known.code];
  if (choose) {
    const n = /\d+/.exec(known.detail)?.[0] ?? t('upload.choose.several');
    return { title: t('upload.choose'), words: t(choose, { n }), detail: '' };
  }
  const key = known.status === 404 || known.status === 410 ? 'upload.failed.gone' : `upload.failed.${known.status}`;
  const words = has(key) ? t(key, { n: known.retryAfter ?? 60 }) : t('state.error_text');
  return { title: t('upload.failed'), words, detail: known.detail };
}

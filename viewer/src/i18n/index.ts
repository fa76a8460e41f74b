/* Words and numbers in the language of the page. */

import { en } from './en';
import { es } from './es';

export type Key = keyof typeof en;
export type Language = 'en' | 'es';
type Values = Record<string, string | number>;

export const LANGUAGES: Record<Language, string> = { en: 'English', es: 'Español' };
const WORDS: Record<Language, Record<Key, string>> = { en, es };
const PLURALS = new Set<string>(Object.keys(en).filter((key) => key.endsWith('_one')));

let current: Language = 'en';

export function setLanguage(language: Language): void {
  current = language;
  document.documentElement.lang = language;
}

export function language(): Language {
  return current;
}

/** The language of the browser's first preference that the page has. */
export function preferred(): Language {
  for (const tag of navigator.languages) {
    const base = tag.toLowerCase().split('-')[0];
    if (base === 'en' || base === 'es') return base;
  }
  return 'en';
}

/** The words of a key with its values put in. */
export function t(key: Key, values: Values = {}): string {
  return WORDS[current][key].replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** The same with `n`, singular where n is 1. */
export function tn(key: Key, n: number, values: Values = {}): string {
  const one = `${key}_one`;
  return t(n === 1 && PLURALS.has(one) ? (one as Key) : key, { n: number(n), ...values });
}

/** Whether there is such a key: for words that depend on what the node sends. */
export function has(key: string): key is Key {
  return key in en;
}

export function number(value: number, digits = 0): string {
  return new Intl.NumberFormat(current, {
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
  }).format(value);
}

/** Similarity as the node tells it: in per cent only where it was calibrated. `digits` after the point of 0..1. */
export function similarity(value: number, calibrated: boolean, digits?: number): string {
  if (!calibrated) return number(value, digits ?? 3);
  const percent = Math.max(0, (digits ?? 2) - 2);
  return `${number(value * 100, percent)} %`;
}

export function date(epochSeconds: number): string {
  return new Intl.DateTimeFormat(current, { dateStyle: 'medium', timeStyle: 'short' }).format(epochSeconds * 1000);
}

export function size(bytes: number): string {
  const mega = bytes / 1e6;
  return mega >= 0.1 ? `${number(mega, mega < 10 ? 1 : 0)} MB` : `${number(Math.ceil(bytes / 1e3))} kB`;
}

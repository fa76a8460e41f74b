import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { en } from '../src/i18n/en';
import { es } from '../src/i18n/es';

const SOURCE = join(import.meta.dirname, '..', 'src');
/** Names, signs and words that both languages write alike. */
const SAME = ['bar.force', 'compare.abdomen', 'compare.best_short'];
const keys = Object.keys(en) as (keyof typeof en)[];

function sources(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return sources(path);
    return /\.ts$/.test(path) && !/i18n\/(en|es)\.ts$/.test(path) ? [readFileSync(path, 'utf8')] : [];
  });
}

function places(text: string): string[] {
  return [...text.matchAll(/\{(\w+)\}/g)].map((found) => found[1] as string).sort();
}

const code = sources(SOURCE).join('\n');
const literals = new Set([...code.matchAll(/['"]([\w.-]+)['"]/g)].map((found) => found[1] as string));
/** Beginnings of keys that are put together: `status.${...}`. */
const beginnings = [...code.matchAll(/`([\w.]+[._])\$\{/g)].map((found) => found[1] as string);

describe('the words', () => {
  test('are complete in Spanish, and Spanish has none besides', () => {
    expect(Object.keys(es).sort()).toEqual([...keys].sort());
  });

  test.each(keys)('have the same places for values in both languages: %s', (key) => {
    expect(places(es[key])).toEqual(places(en[key]));
  });

  test('are nowhere empty, and differ but for names and signs', () => {
    const same = keys.filter((key) => en[key] === es[key]);
    expect(keys.filter((key) => en[key].trim() === '' || es[key].trim() === '')).toEqual([]);
    expect(same.sort()).toEqual(SAME);
  });

  test('are all used', () => {
    const used = (key: string) =>
      literals.has(key) ||
      beginnings.some((beginning) => key.startsWith(beginning)) ||
      literals.has(key.replace(/_one$/, ''));
    expect(keys.filter((key) => !used(key))).toEqual([]);
  });

  test('that are asked for by name exist', () => {
    const asked = [...code.matchAll(/\btn?\(\s*['"]([\w.-]+)['"]/g)].map((found) => found[1] as string);
    expect(asked.length).toBeGreaterThan(100);
    expect(asked.filter((key) => !(key in en))).toEqual([]);
  });
});

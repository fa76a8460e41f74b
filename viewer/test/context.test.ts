import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import type { Graph, GraphNode, Result } from '../src/api';
import { asking, Data, keywordOf, methodWords, verdictWords } from '../src/context';
import { setLanguage } from '../src/i18n';
import { START } from '../src/state';

beforeAll(() => vi.stubGlobal('document', { documentElement: {} }));
afterEach(() => setLanguage('en'));
afterAll(() => vi.unstubAllGlobals());

test('a repository that is too small tells its patients and the cases that were searched', () => {
  const data = new Data();
  const reason = '12 patients in the repository; a statement needs 20';
  const nodes = [{ rank: 0 }, { rank: 1, modality: 'CT' }] as GraphNode[];
  data.result = {
    verdict: 'repository-too-small',
    reason,
    searched: 22,
    k: 1,
    query: { modality: 'CT', slices: 1 },
  } as Result;
  data.graph = { verdict: 'repository-too-small', reason, searched: 22, nodes } as Graph;
  expect(verdictWords(data, '')?.why).toMatch(
    /^12 patients in the repository; a statement needs 20; 22 cases searched\. So /,
  );
  setLanguage('es');
  expect(verdictWords(data, '')?.why).toMatch(
    /^12 pacientes en el repositorio; una afirmación requiere 20; 22 casos examinados\. Por eso /,
  );
});

test('where the model learnt from nothing like the study, that is said in every verdict', () => {
  const data = new Data();
  const untaught = { taught: [{ modality: 'CT', region: 'CHEST' }], shows: { modality: 'MR', region: 'ABDOMEN/TOE' } };
  const nodes = [{ rank: 0 }, { rank: 1, modality: 'CT/MR' }] as GraphNode[];
  for (const verdict of ['similar', 'none'] as const) {
    data.result = { verdict, searched: 22, k: 1, query: { modality: 'MR', slices: 1, untaught } } as Result;
    data.graph = { verdict, searched: 22, nodes } as Graph;
    setLanguage('en');
    expect(verdictWords(data, '')?.why).toMatch(
      /\. Caution: the model learnt from CT \(chest\) and was not taught MR \(abdomen and pelvis, TOE\)\.$/,
    );
    expect(verdictWords(data, '')?.why).not.toContain('none of the cases');
    setLanguage('es');
    expect(verdictWords(data, '')?.why).toMatch(
      /\. Atención: el modelo aprendió de CT \(tórax\) y no se le enseñó MR \(abdomen y pelvis, TOE\)\.$/,
    );
  }
});

test('where a keyword chose the cases, the verdict of the whole repository is not said of them', () => {
  const data = new Data();
  const nodes = [{ rank: 0 }, { rank: 1, modality: 'CT' }] as GraphNode[];
  const query = { modality: 'CT', slices: 1 };
  const told = (text: string, ofUpload: string, live: boolean, verdict = 'similar') => {
    data.result = { verdict, searched: 22, k: 1, query, text: ofUpload } as Result;
    data.graph = { verdict, searched: 3, nodes, live } as Graph;
    const said = verdictWords(data, text);
    return `${said?.title} | ${said?.why}`;
  };
  const chosen =
    'Cases with this keyword: 1 | Only cases with "covid" among their findings, ranked by the likeness of their images. How near they are is not judged.';
  expect(told('covid', '', true)).toBe(chosen);
  expect(told('', 'covid', false)).toBe(chosen);
  expect(told('covid', '', true, 'none')).toMatch(
    /^No similar case .* Only cases with "covid" .* the whole repository, not about these cases\.$/,
  );
  // asked again without a keyword: all cases
  for (const said of [told('', '', false), told('', 'covid', true)]) expect(said).toMatch(/^A similar case was found/);
  setLanguage('es');
  expect(told('covid', '', true)).toMatch(/^Casos con esta palabra clave: 1 \| Solo casos con «covid» /);
});

test('of a plain picture it is not said that cases of its patient are left out', () => {
  const of = (modality: string) => ({ query: { modality, slices: 1 } }) as Result;
  expect(methodWords(of('CT'))).toContain('cases of the same patient are left out');
  expect(methodWords(of(''))).toContain('the same patient may be among the cases');
  expect(methodWords(of(''))).not.toContain('left out');
  setLanguage('es');
  expect(methodWords(of('MR'))).toContain('se excluyen los del mismo paciente');
  expect(methodWords(of(''))).toContain('el mismo paciente puede estar entre los casos');
});

test('the keyword that an upload brought stays while other things are changed', () => {
  const brought = { k: 20, text: 'covid' } as Result;
  const plain = { k: 20, text: '' } as Result;
  expect(keywordOf(brought, START)).toBe('covid');
  expect(keywordOf(plain, START)).toBe('');
  const more = asking(brought, START, { k: 50 });
  expect(more).toEqual({ k: 50, text: 'covid' });
  expect(asking(plain, START, { k: 50 })).toEqual({ k: 50, text: '' });
  const without = asking(brought, START, { text: '' });
  expect(without).toEqual({ k: 20, text: '' });
  expect(keywordOf(brought, { ...START, ...without })).toBe(''); // dropped by who looks: not put back
  const few = { k: 3, text: '' } as Result;
  expect(asking(few, START, { text: 'covid' })).toEqual({ k: 5, text: 'covid' });
});

test('the stored answer is shown again where it is what is asked for', () => {
  const brought = { k: 20, text: 'covid' } as Result;
  const stored = { k: null, text: '' };
  expect(asking(brought, { ...START, k: 50, text: 'covid' }, { k: 20 })).toEqual(stored);
  expect(asking(brought, { ...START, k: 20 }, { text: 'covid' })).toEqual(stored);
  expect(asking({ k: 20, text: '' } as Result, { ...START, k: 20, text: 'covid' }, { text: '' })).toEqual(stored);
  const fromACase = { ...START, from: 'c', k: 50, text: 'covid' };
  expect(asking(brought, fromACase, { k: 20 })).toEqual({ k: 20, text: 'covid' });
  expect(asking(null, START, { text: 'covid' })).toEqual({ k: null, text: 'covid' });
});

import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import type { Graph, GraphNode, Result } from '../src/api';
import { Data, methodWords, verdictWords } from '../src/context';
import { setLanguage } from '../src/i18n';

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

test('where a keyword chose the cases, the verdict is said to be about the whole repository', () => {
  const data = new Data();
  const nodes = [{ rank: 0 }, { rank: 1, modality: 'CT' }] as GraphNode[];
  const query = { modality: 'CT', slices: 1 };
  const why = (text: string, ofUpload: string, live: boolean) => {
    data.result = { verdict: 'similar', searched: 22, k: 1, query, text: ofUpload } as Result;
    data.graph = { verdict: 'similar', searched: 3, nodes, live } as Graph;
    return verdictWords(data, text)?.why ?? '';
  };
  const told =
    / Only cases with "covid" among their findings are shown\. .* the whole repository, not about these cases\.$/;
  expect(why('covid', '', true)).toMatch(told);
  expect(why('', 'covid', false)).toMatch(told);
  // asked again without a keyword: all cases
  for (const said of [why('', '', false), why('', 'covid', true)]) expect(said).not.toContain('whole repository');
  setLanguage('es');
  expect(why('covid', '', true)).toMatch(
    / Solo se muestran casos con «covid» .* todo el repositorio, no a estos casos\.$/,
  );
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

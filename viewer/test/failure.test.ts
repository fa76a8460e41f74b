import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { ApiError } from '../src/api';
import { failure } from '../src/failure';
import { setLanguage } from '../src/i18n';

beforeAll(() => vi.stubGlobal('document', { documentElement: {} }));
afterEach(() => setLanguage('en'));
afterAll(() => vi.unstubAllGlobals());

test.each([
  ['several-studies', 'these are images of 2 studies', '2 studies: send one', '2 estudios: envíe uno'],
  ['several-pictures', 'these are 3 pictures', '3 pictures: send one', '3 imágenes sueltas: envíe una'],
  ['mixed-patients', 'images of one study carry different patients', 'more than one patient', 'más de un paciente'],
])('%s: says what to do, not that a file cannot be read', (code, detail, english, spanish) => {
  const error = new ApiError(422, code, detail);
  expect(failure(error).words).toContain(english);
  expect(failure(error)).toMatchObject({ title: 'Nothing was searched yet', detail: '' });
  setLanguage('es');
  expect(failure(error).words).toContain(spanish);
});

test('what cannot be read is said so, with the line of the node', () => {
  expect(failure(new ApiError(422, 'truncated', 'the file ends early'))).toEqual({
    title: 'The search did not work',
    words: 'The file could not be read.',
    detail: 'the file ends early',
  });
  expect(failure(new ApiError(429, 'busy', '', 7)).words).toContain('wait 7 s');
  expect(failure(new ApiError(410, 'expired', '')).words).toContain('no longer there');
});

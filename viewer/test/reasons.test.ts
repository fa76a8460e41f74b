import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { setLanguage } from '../src/i18n';
import { reason } from '../src/i18n/reasons';

const PICTURE = 'The image is no CT or MR slice: it looks like a photograph or drawing.';

beforeAll(() => vi.stubGlobal('document', { documentElement: {} }));
afterEach(() => setLanguage('en'));
afterAll(() => vi.unstubAllGlobals());

test('a reason of the node is said in the language of the page', () => {
  expect(reason(PICTURE)).toBe(PICTURE);
  setLanguage('es');
  expect(reason(PICTURE)).toBe('La imagen no es un corte de TC ni de RM: parece una fotografía o un dibujo.');
  expect(reason('Most images of the study are no CT or MR slices.')).toBe(
    'La mayoría de las imágenes del estudio no son cortes de TC ni de RM.',
  );
});

test('of a repository that is too small it tells the patients in both languages', () => {
  const few = '12 patients in the repository; a statement needs 20';
  expect(reason(few)).toBe(few);
  setLanguage('es');
  expect(reason(few)).toBe('12 pacientes en el repositorio; una afirmación requiere 20');
  expect(reason('1 patient in the repository; a statement needs 20')).toBe(
    '1 paciente en el repositorio; una afirmación requiere 20',
  );
});

test('a sentence that is not known stays as it is', () => {
  setLanguage('es');
  expect(reason('no slice could be read')).toBe('no slice could be read');
  expect(reason('The study holds no images, or so it seems.')).toBe('The study holds no images, or so it seems.');
});

/* Why an image could not be searched, or no statement made: the node's sentences (dicomnode/domain.py) in the language of the page. */

import { language } from './index';

const PARTS: [string, string][] = [
  ['The image is no CT or MR slice', 'La imagen no es un corte de TC ni de RM'],
  [
    'Most images of the study are no CT or MR slices',
    'La mayoría de las imágenes del estudio no son cortes de TC ni de RM',
  ],
  [': it looks like a photograph or drawing', ': parece una fotografía o un dibujo'],
  [': it looks like a page, chart or screen', ': parece una página, un gráfico o una pantalla'],
  [': it looks like a radiograph', ': parece una radiografía'],
  [': it looks like ultrasound', ': parece una ecografía'],
  [': it looks like noise or a pattern', ': parece ruido o un patrón'],
  [': it looks like an empty image', ': parece una imagen vacía'],
  [': it looks like a picture in colour', ': parece una imagen en color'],
  ['The study holds no images', 'El estudio no contiene imágenes'],
  ['No file of the study can be read as DICOM', 'Ningún archivo del estudio puede leerse como DICOM'],
  [
    'The study holds no CT or MR slices, only other images (other modalities, localizers, captures, dose screens)',
    'El estudio no contiene cortes de TC ni de RM, solo otras imágenes (otras modalidades, localizadores, capturas, pantallas de dosis)',
  ],
];

const TOO_FEW = /^(\d+) patients? in the repository; a statement needs (\d+)$/;

/** The node's reason in the language of the page; a sentence that is not known here stays as it is. */
export function reason(said: string): string {
  if (language() === 'en') return said;
  const few = TOO_FEW.exec(said);
  if (few) {
    const patients = few[1] === '1' ? 'paciente' : 'pacientes';
    return `${few[1]} ${patients} en el repositorio; una afirmación requiere ${few[2]}`;
  }
  let rest = said.replace(/\.$/, '');
  const words: string[] = [];
  for (const [english, spanish] of PARTS) {
    if (rest.startsWith(english)) {
      words.push(spanish);
      rest = rest.slice(english.length);
    }
  }
  return rest === '' && words.length > 0 ? `${words.join('')}.` : said;
}

/* From stored values to grey, and from effects to colours: tables, so that a slice costs one look-up a pixel. */

const VALUES = 65536;
const OFFSET = 32768;

/** Window centre and width, as in DICOM PS3.3 C.11.2.1.2 (linear). */
export interface Window {
  center: number;
  width: number;
}

/** One RGBA word for each int16 value; `inverted` for MONOCHROME1. */
export function greys(window: Window, inverted: boolean): Uint32Array {
  const table = new Uint32Array(VALUES);
  const width = Math.max(1, window.width);
  const low = window.center - 0.5 - (width - 1) / 2;
  const high = low + width - 1;
  for (let i = 0; i < VALUES; i++) {
    const value = i - OFFSET;
    let grey = value <= low ? 0 : value > high ? 255 : Math.round((255 * (value - low)) / (width - 1));
    if (inverted) grey = 255 - grey;
    table[i] = (0xff000000 | (grey << 16) | (grey << 8) | grey) >>> 0;
  }
  return table;
}

/** Paint a frame: `out` has as many words as the frame has values. */
export function paint(frame: Int16Array, table: Uint32Array, out: Uint32Array): void {
  const n = Math.min(frame.length, out.length);
  for (let i = 0; i < n; i++) out[i] = table[(frame[i] as number) + OFFSET] as number;
}

// Viridis (Smith, van der Walt; matplotlib), at nine places: even in lightness, readable without colour vision.
const VIRIDIS: [number, number, number][] = [
  [68, 1, 84],
  [71, 44, 122],
  [59, 81, 139],
  [44, 113, 142],
  [33, 144, 141],
  [39, 173, 129],
  [92, 200, 99],
  [170, 220, 50],
  [253, 231, 37],
];

/** Colour of a share 0..1. */
export function viridis(share: number): [number, number, number] {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const i = Math.min(VIRIDIS.length - 2, Math.floor(place));
  const from = VIRIDIS[i] as [number, number, number];
  const to = VIRIDIS[i + 1] as [number, number, number];
  const rest = place - i;
  return [0, 1, 2].map((c) => Math.round((from[c] as number) + rest * ((to[c] as number) - (from[c] as number)))) as [
    number,
    number,
    number,
  ];
}

/** The effects as an image, a pixel a region; what has no effect or raises the similarity is see-through. */
export function heat(effects: number[][], highest: number): ImageData {
  const rows = effects.length;
  const columns = effects[0]?.length ?? 0;
  const image = new ImageData(Math.max(1, columns), Math.max(1, rows));
  effects.forEach((row, y) => {
    row.forEach((effect, x) => {
      const share = highest > 0 ? Math.max(0, effect) / highest : 0;
      const [red, green, blue] = viridis(share);
      image.data.set([red, green, blue, Math.round(255 * Math.min(1, share * 1.6))], 4 * (y * columns + x));
    });
  });
  return image;
}

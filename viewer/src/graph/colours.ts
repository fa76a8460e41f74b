/* The graph's colours: told apart by the colour-blind too (Okabe and Ito 2008), and never the only sign of a meaning. */

export const BACKGROUND = '#0b0d10';
/** What each ring inwards adds to the background's red, green and blue. */
export const BAND = [4, 5, 5] as const;
export const RING = '#2b3641';
export const RING_TEXT = '#a9b6c4';
export const EDGE = '#303c48';
export const EDGE_NEAR = '#465666';
export const QUERY = '#f0e442';
export const PRESENT = '#ff7a45';
export const NONE = '#8391a0';
export const UNKNOWN = '#a3afbc';
export const SELECTION = '#56b4e9';
export const EMPTY = '#1a222b';
export const TEXT = '#e8edf2';

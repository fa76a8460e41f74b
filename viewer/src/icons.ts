/* The page's own drawings, as SVG elements: 24 units square, one stroke width. */

import type { Status } from './api';
import { svg } from './dom';

const PATHS = {
  search: 'M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14M16 16l5 5',
  close: 'M6 6l12 12M18 6L6 18',
  plus: 'M12 5v14M5 12h14',
  minus: 'M5 12h14',
  fit: 'M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5',
  move: 'M12 3v18M3 12h18M9 6l3-3l3 3M9 18l3 3l3-3M6 9l-3 3l3 3M18 9l3 3l-3 3',
  leave: 'M14 4H5v16h9M10 12h11M17 8l4 4l-4 4',
  link: 'M10 14a4 4 0 0 0 6 .5l3-3a4 4 0 0 0-6-6l-1.5 1.5M14 10a4 4 0 0 0-6-.5l-3 3a4 4 0 0 0 6 6l1.5-1.5',
  help: 'M9 9a3 3 0 1 1 4 2.8c-.7.3-1 .8-1 1.7V14M12 17.5v.1M12 3a9 9 0 1 0 0 18a9 9 0 0 0 0-18',
  back: 'M10 6l-6 6l6 6M4 12h16',
  previous: 'M15 5l-7 7l7 7',
  next: 'M9 5l7 7l-7 7',
  upload: 'M12 16V4M7 9l5-5l5 5M4 16v4h16v-4',
  file: 'M6 3h8l5 5v13H6zM14 3v5h5',
  folder: 'M3 6h6l2 2h10v11H3z',
  download: 'M12 4v12M7 11l5 5l5-5M4 20h16',
  warning: 'M12 3L1.8 20.5h20.4zM12 10v5M12 17.8v.1',
  sliders: 'M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4',
  check: 'M5 12.5l5 5L19 7',
  graph: 'M12 10a2 2 0 1 0 0 4a2 2 0 0 0 0-4M5 4v.1M19 6v.1M18 19v.1M6.5 6l4 4.5M17.5 7.5l-4 3.5M16.7 17.7L13.5 14',
  case: 'M4 5h16v14H4zM4 15l5-4l4 3l3-2l4 3',
  compare: 'M3 5h8v14H3zM13 5h8v14h-8z',
  list: 'M8 6h12M8 12h12M8 18h12M4 6v.1M4 12v.1M4 18v.1',
  query: 'M4 5h16v11H9l-5 4z',
  heat: 'M12 3c1 4 5 5 5 10a5 5 0 0 1-10 0c0-2 1-3 2-4c0 2 1 3 2 3c1-2-1-5 1-9',
  outline:
    'M8 4C5 6 3 11 3.5 16c.2 2.5 1.5 3.5 3.5 3c2-.5 3-2 3-5V7c0-2-.7-4-2-3M16 4c3 2 5 7 4.5 12c-.2 2.5-1.5 3.5-3.5 3c-2-.5-3-2-3-5V7c0-2 .7-4 2-3',
  shield: 'M12 3l8 3v6c0 5-3.5 8-8 9c-4.5-1-8-4-8-9V6zM8.5 12l2.5 2.5l4.5-5',
} as const;

export type Icon = keyof typeof PATHS;

export function icon(name: Icon, size = 18): SVGElement {
  return svg(
    'svg',
    { viewBox: '0 0 24 24', width: size, height: size, class: 'icon', 'aria-hidden': 'true', focusable: 'false' },
    svg('path', { d: PATHS[name] }),
  );
}

export function brandMark(): SVGElement {
  return svg(
    'svg',
    { viewBox: '0 0 24 24', width: 26, height: 26, class: 'brand-mark', 'aria-hidden': 'true', focusable: 'false' },
    svg('circle', { cx: 12, cy: 12, r: 9.5, class: 'brand-ring' }),
    svg('circle', { cx: 12, cy: 12, r: 3.6, class: 'brand-query' }),
    svg('circle', { cx: 20, cy: 7.2, r: 2.3, class: 'brand-case' }),
    svg('circle', { cx: 4.6, cy: 16.8, r: 2.3, class: 'brand-case' }),
  );
}

/** The graph's symbols, as the canvas draws them. */
export function symbol(kind: Status | 'query' | 'selected'): SVGElement {
  const parts: Record<typeof kind, SVGElement[]> = {
    query: [svg('rect', { x: 4, y: 4, width: 16, height: 16, class: 'symbol-query' })],
    selected: [svg('rect', { x: 4, y: 4, width: 16, height: 16, class: 'symbol-selected' })],
    present: [
      svg('rect', { x: 4, y: 4, width: 16, height: 16, class: 'symbol-present' }),
      svg('path', { d: 'M12 4h8v8z', class: 'symbol-corner' }),
    ],
    none: [svg('rect', { x: 4, y: 4, width: 16, height: 16, class: 'symbol-none' })],
    unknown: [
      svg('rect', { x: 4, y: 4, width: 16, height: 16, class: 'symbol-unknown' }),
      svg('path', { d: 'M10 10.3a2.1 2.1 0 1 1 2.9 1.9c-.6.3-.9.7-.9 1.3M12 15.8v.1', class: 'symbol-mark' }),
    ],
  };
  return svg(
    'svg',
    { viewBox: '0 0 24 24', width: 20, height: 20, class: 'symbol', 'aria-hidden': 'true', focusable: 'false' },
    ...parts[kind],
  );
}

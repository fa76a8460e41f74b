import { describe, expect, test } from 'vitest';
import { format, parse, START, type View } from '../src/state';

describe('the address', () => {
  test('of the first view is empty', () => {
    expect(format(START)).toBe('');
    expect(parse('')).toEqual(START);
  });

  test('opens the same view', () => {
    const view: View = {
      layout: 'force',
      k: 50,
      text: 'neumonía & "C34.1" #1',
      hidden: ['none', 'unknown'],
      findings: ['SCT 233604007', 'I10C J84.10, unspecified'],
      from: 'aB_-9',
      selected: 'query',
      tab: 'compare',
      place: { series: 1, frame: 20, querySeries: 0, queryFrame: 3 },
      why: true,
      outlines: ['lungs', 'infection'],
      language: 'es',
    };
    expect(parse(format(view))).toEqual(view);
  });

  test.each([
    ['#k=1', { k: 5 }],
    ['#k=100000', { k: 200 }],
    ['#k=many', { k: null }],
    ['#tab=admin&layout=3d&lang=xx', {}],
    ['#case=../../etc&from=<script>', {}],
    ['#hide=present,everything', { hidden: ['present'] }],
    ['#at=1.2.3', {}],
    ['#outline=infection,heart,lungs', { outlines: ['lungs', 'infection'] }],
    ['#at=-1.0.0.0', {}],
    ['#%E0%A4%A', {}],
  ])('with what it cannot mean is taken as far as it can: %s', (hash, expected) => {
    expect(parse(hash)).toEqual({ ...START, ...expected });
  });
});

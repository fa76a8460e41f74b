import { describe, expect, test } from 'vitest';
import { cell, csv } from '../src/csv';

describe('the list as a file', () => {
  test.each(['=1+1', '+1', '-1', '@SUM(A1)', '\t=1', ' =HYPERLINK("x")', '\r=1', '\n@x'])(
    'holds no formula: %j',
    (text) => {
      expect(cell(text).startsWith('"\'')).toBe(true);
    },
  );

  test('keeps commas, quotes and lines within their cell', () => {
    expect(csv([['a,b', 'say "x"', 'two\nlines', 0.5]])).toBe('\ufeff"a,b","say ""x""","two\nlines",0.5\r\n');
  });
});

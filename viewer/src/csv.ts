/* The list as a file for spreadsheets, which take a cell that begins like a formula for one: those get an apostrophe. */

const FORMULA = /^[\s]*[=+\-@\t\r]/;

export function cell(value: string | number): string {
  if (typeof value === 'number') return String(value);
  const safe = FORMULA.test(value) ? `'${value}` : value;
  return `"${safe.replaceAll('"', '""')}"`;
}

/** RFC 4180, with the mark by which spreadsheets know UTF-8. */
export function csv(rows: (string | number)[][]): string {
  return `\ufeff${rows.map((row) => row.map(cell).join(',')).join('\r\n')}\r\n`;
}

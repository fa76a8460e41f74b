/* Two series in step: when one moves, the other moves by the same share of its length, from where both were aligned. */

export interface Pair {
  query: number;
  case: number;
}

export type Side = keyof Pair;

export class Follow {
  /** How much farther through its series (as a share) the case stands than the query. */
  private offset = 0;
  together = true;
  at: Pair = { query: 0, case: 0 };

  constructor(private totals: Pair = { query: 1, case: 1 }) {}

  /** Begin with these series at these frames, which from now on belong together. */
  align(totals: Pair, at: Pair): void {
    this.totals = totals;
    this.at = { query: clamp(at.query, totals.query), case: clamp(at.case, totals.case) };
    this.offset = share(this.at.case, totals.case) - share(this.at.query, totals.query);
  }

  /** Move one to a frame; the other follows. */
  move(side: Side, frame: number): void {
    const other: Side = side === 'query' ? 'case' : 'query';
    this.at[side] = clamp(frame, this.totals[side]);
    if (!this.together) return;
    const through = share(this.at[side], this.totals[side]) + (side === 'query' ? this.offset : -this.offset);
    this.at[other] = clamp(Math.round(through * (this.totals[other] - 1)), this.totals[other]);
  }

  /** Follow again, from where both stand now. */
  setTogether(together: boolean): void {
    this.together = together;
    if (together) this.align(this.totals, this.at);
  }
}

function share(frame: number, total: number): number {
  return total > 1 ? frame / (total - 1) : 0;
}

function clamp(frame: number, total: number): number {
  return Math.min(Math.max(0, total - 1), Math.max(0, frame));
}

/* Ready-made tiles on one sheet: when hundreds of cases are in view each costs one copy of pixels. */

import { drawTile, margin } from './tile';
import type { GraphNode } from './types';

/** Pixels of a sheet at most; larger tiles are made smaller and drawn enlarged. */
const BUDGET = 10_000_000;

export class Sprites {
  private readonly sheet = document.createElement('canvas');
  private readonly to = this.sheet.getContext('2d')!;
  private made = new Uint8Array(0);
  private size = 0;
  private cell = 0;
  private columns = 1;

  /** Make room for `count` tiles of side `size` in device pixels; what is there stays when nothing changes. */
  prepare(count: number, size: number): void {
    const most = Math.floor(Math.sqrt(BUDGET / Math.max(1, count)));
    let side = Math.round(size);
    if (side + 2 * margin(side) > most) side = Math.max(4, Math.floor((most - 6) / 1.2));
    if (side === this.size && count === this.made.length) return;
    this.size = side;
    this.cell = side + 2 * margin(side);
    this.columns = Math.ceil(Math.sqrt(count));
    this.made = new Uint8Array(count);
    this.sheet.width = this.columns * this.cell;
    this.sheet.height = Math.ceil(count / this.columns) * this.cell;
  }

  forget(i: number): void {
    if (this.made[i]) this.made[i] = 0;
  }

  forgetAll(): void {
    this.made.fill(0);
  }

  /**
   * Draw tile `i` where it is not there yet. Make all before one is copied: the browser copies the whole sheet each time
   * that drawing on it follows drawing from it.
   */
  make(i: number, node: GraphNode, picture: ImageBitmap | undefined): void {
    if (this.made[i]) return;
    this.made[i] = 1;
    const { left, top } = this.place(i);
    this.to.clearRect(left, top, this.cell, this.cell);
    drawTile(this.to, node, picture, left + this.cell / 2, top + this.cell / 2, this.size, false);
  }

  /** Copy tile `i` to centre (x, y); all in device pixels, `size` is the side of the picture there. */
  copy(to: CanvasRenderingContext2D, i: number, x: number, y: number, size: number): void {
    const { left, top } = this.place(i);
    const side = Math.round(size) === this.size ? this.cell : (this.cell * size) / this.size;
    const [atX, atY] = [Math.round(x - side / 2), Math.round(y - side / 2)];
    to.drawImage(this.sheet, left, top, this.cell, this.cell, atX, atY, side, side);
  }

  private place(i: number): { left: number; top: number } {
    return { left: (i % this.columns) * this.cell, top: Math.floor(i / this.columns) * this.cell };
  }
}

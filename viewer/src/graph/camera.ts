/* From the layout's units to pixels of the canvas: pan and zoom, and how large a case is drawn. */
import { CENTRE, LARGER } from './radial';

/** Pictures grow slower than distances when zooming in, so that crowded cases come apart. */
const GROWTH = 0.72;
const SMALLEST = 7;
const LARGEST = 80;
const LARGEST_ZOOMED = 176;

export class Camera {
  width = 0;
  height = 0;
  ratio = 1;
  k = 1;
  x = 0;
  y = 0;
  /** Side of a case's square in layout units at no zoom. */
  unit = 0.11;

  /** Pixels of the outer ring's radius at no zoom; outside it there is room for half a picture and its label. */
  get scale(): number {
    const half = Math.min(this.width, this.height) / 2;
    return Math.max(10, (half - Math.min(16, half / 16)) / (1 + this.unit / 2));
  }

  get size(): number {
    const still = Math.min(LARGEST, Math.max(SMALLEST, this.unit * this.scale));
    return Math.min(LARGEST_ZOOMED, still * this.k ** GROWTH);
  }

  /** The query's picture: larger than the cases, yet inside the innermost ring. */
  get centreSize(): number {
    const still = Math.min(
      LARGEST * LARGER,
      Math.max(this.unit * this.scale * LARGER, Math.min(46, this.scale * CENTRE)),
    );
    return Math.min(LARGEST_ZOOMED * 1.2, still * this.k ** GROWTH);
  }

  sizeOf(i: number): number {
    return i ? this.size : this.centreSize;
  }

  px(x: number): number {
    return (this.width / 2 + this.scale * x) * this.k + this.x;
  }

  py(y: number): number {
    return (this.height / 2 + this.scale * y) * this.k + this.y;
  }

  /** To whole device pixels: sharp, and drawn faster. */
  snap(v: number): number {
    return Math.round(v * this.ratio) / this.ratio;
  }
}

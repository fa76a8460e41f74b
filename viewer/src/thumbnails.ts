/* Small pictures of the cases: fetched as sheets of up to 64, cut into bitmaps, told one by one as they come. */

import { type Api, isAbort } from './api';

const SHEET = 64;
const ACROSS = 8;
const KEPT = 1200;
/** Sheets fetched at once: one is cut here while the node makes the next. */
const LANES = 3;
/** With so few nodes their tiles are drawn larger than 64 pixels. */
const FEW = 41;

export class Thumbnails {
  private bitmaps = new Map<string, ImageBitmap>();
  private stop = new AbortController();

  constructor(
    private readonly api: Api,
    private readonly come: (id: string, bitmap: ImageBitmap) => void,
  ) {}

  get(id: string): ImageBitmap | undefined {
    return this.bitmaps.get(id);
  }

  /** Fetch what is not here yet, in the order given; what was being fetched for an earlier view is given up. */
  async load(ids: string[]): Promise<void> {
    this.stop.abort();
    this.stop = new AbortController();
    const { signal } = this.stop;
    const size = ids.length <= FEW || devicePixelRatio > 1.25 ? 128 : 64;
    const wanted = ids.filter((id) => (this.bitmaps.get(id)?.width ?? 0) < size);
    try {
      let start = 0;
      const lane = async () => {
        while (start < wanted.length) {
          const ids = wanted.slice(start, start + SHEET);
          start += SHEET;
          await this.sheet(ids, size, signal);
        }
      };
      await Promise.all(Array.from({ length: LANES }, lane));
    } catch (error) {
      if (!isAbort(error) && !signal.aborted) console.warn('pictures could not be loaded', String(error));
    }
    this.trim(new Set(ids));
  }

  private async sheet(ids: string[], size: number, signal: AbortSignal): Promise<void> {
    const atlas = await this.api.atlas(ids, size, signal);
    const cut = await Promise.all(
      ids.map((_, i) => createImageBitmap(atlas, (i % ACROSS) * size, Math.floor(i / ACROSS) * size, size, size)),
    );
    atlas.close();
    ids.forEach((id, i) => {
      const bitmap = cut[i] as ImageBitmap;
      this.bitmaps.set(id, bitmap);
      this.come(id, bitmap);
    });
  }

  private trim(wanted: Set<string>): void {
    for (const [id, bitmap] of this.bitmaps) {
      if (this.bitmaps.size <= KEPT) return;
      if (wanted.has(id)) continue;
      bitmap.close();
      this.bitmaps.delete(id);
    }
  }
}

/* Small pictures of the cases: fetched as sheets of up to 64, cut into bitmaps, told one by one as they come. */

import { type Api, isAbort } from './api';

const SHEET = 64;
const ACROSS = 8;
const KEPT = 1200;
/** Sheets fetched at once: one is cut here while the node makes the next. */
const LANES = 3;

export class Thumbnails {
  private bitmaps = new Map<string, ImageBitmap>();
  private stop = new AbortController();
  readonly size = devicePixelRatio > 1.25 ? 128 : 64;

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
    const wanted = ids.filter((id) => !this.bitmaps.has(id));
    try {
      let start = 0;
      const lane = async () => {
        while (start < wanted.length) {
          const ids = wanted.slice(start, start + SHEET);
          start += SHEET;
          await this.sheet(ids, signal);
        }
      };
      await Promise.all(Array.from({ length: LANES }, lane));
    } catch (error) {
      if (!isAbort(error) && !signal.aborted) console.warn('pictures could not be loaded', String(error));
    }
    this.trim(new Set(ids));
  }

  private async sheet(ids: string[], signal: AbortSignal): Promise<void> {
    const atlas = await this.api.atlas(ids, this.size, signal);
    const { size } = this;
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

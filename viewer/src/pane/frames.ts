/* Frames of the node, kept by bytes: the least recently shown go first. */

import type { Api } from '../api';

const LIMIT_BYTES = 160 * 2 ** 20; // some 300 frames of 512 x 512
const AHEAD = 4;

interface Entry {
  frame: Int16Array | null;
  loading: Promise<Int16Array>;
}

export class Frames {
  private entries = new Map<string, Entry>();
  private bytes = 0;

  constructor(private readonly api: Api) {}

  /** A frame that is here already, else null. */
  have(id: string, series: number, frame: number): Int16Array | null {
    const key = name(id, series, frame);
    const entry = this.entries.get(key);
    if (!entry?.frame) return null;
    this.entries.delete(key);
    this.entries.set(key, entry);
    return entry.frame;
  }

  get(id: string, series: number, frame: number): Promise<Int16Array> {
    const key = name(id, series, frame);
    const known = this.entries.get(key);
    if (known) return known.loading;
    const entry: Entry = { frame: null, loading: this.api.frame(id, series, frame) };
    this.entries.set(key, entry);
    entry.loading = entry.loading.then(
      (values) => {
        entry.frame = values;
        this.bytes += values.byteLength;
        this.trim();
        return values;
      },
      (error: unknown) => {
        this.entries.delete(key);
        throw error;
      },
    );
    return entry.loading;
  }

  /** Fetch the neighbours, those in the direction of travel first. */
  ahead(id: string, series: number, frame: number, total: number, direction: number): void {
    const forward = direction < 0 ? -1 : 1;
    for (let step = 1; step <= AHEAD; step++) {
      for (const n of [frame + step * forward, frame - step * forward]) {
        if (n >= 0 && n < total) this.get(id, series, n).catch(() => undefined); // asked again when it is shown
      }
    }
  }

  private trim(): void {
    for (const [key, entry] of this.entries) {
      if (this.bytes <= LIMIT_BYTES) return;
      if (entry.frame === null) continue;
      this.bytes -= entry.frame.byteLength;
      this.entries.delete(key);
    }
  }
}

function name(id: string, series: number, frame: number): string {
  return `${id}/${series}/${frame}`;
}

/* The slices of the image in question by themselves: one picture to scroll, window and zoom. */

import type { Api, CaseDetail, Series } from '../api';
import { h } from '../dom';
import { t } from '../i18n';
import { Frames } from '../pane/frames';
import { Pane } from '../pane/pane';
import { WHOLE } from '../pane/zoom';

const AROUND = 0; // nothing is fetched ahead before the first scroll

export class Slices {
  readonly root: HTMLElement;
  private readonly pane: Pane;
  private readonly series: Series;
  private n: number;

  /** For a case that has a series with slices. */
  constructor(
    private readonly frames: Frames,
    private readonly detail: CaseDetail,
    name: string,
  ) {
    this.series = detail.series[0] as Series;
    this.n = Math.floor(this.series.frames / 2);
    this.pane = new Pane(name, h('div', {}), {
      move: (frame) => this.show(frame),
      window: (window) => this.pane.setWindow(window),
      reset: () => this.reset(),
      zoom: (zoom) => this.pane.setZoom(zoom),
    });
    this.root = this.pane.root;
    this.root.classList.add('slices');
    this.pane.setSeries(this.series);
    this.reset();
    this.show(this.n, AROUND);
  }

  private reset(): void {
    const [center, width] = this.series.window;
    this.pane.setWindow({ center, width });
    this.pane.setZoom(WHOLE);
  }

  private show(frame: number, direction = Math.sign(frame - this.n)): void {
    const { id } = this.detail;
    const { series, frames, pane } = this;
    const n = Math.min(series.frames - 1, Math.max(0, frame));
    this.n = n;
    pane.setPlace(n);
    frames.get(id, series.index, n).then(
      (values) => {
        if (this.n !== n) return;
        pane.setFrame(values);
        if (direction !== AROUND) frames.ahead(id, series.index, n, series.frames, direction);
      },
      () => this.n === n && pane.say(t('compare.failed')),
    );
  }
}

/** The slices of a case, null where the node has none to show. */
export function slices(api: Api, detail: CaseDetail, name: string): HTMLElement | null {
  const first = detail.series[0];
  return first && first.frames > 0 ? new Slices(new Frames(api), detail, name).root : null;
}

/* What part of a picture is in view: how much larger, and how far moved in shares of the stage. Pure arithmetic. */

export interface Zoom {
  /** 1: the whole picture. */
  scale: number;
  x: number;
  y: number;
}

export const WHOLE: Zoom = { scale: 1, x: 0, y: 0 };
export const ZOOM_STEP = 1.25;
const MOST = 12;

/** Larger or smaller by a factor; the place (px, py), in shares of the stage from its middle, stays under the pointer. */
export function zoomed(from: Zoom, factor: number, px = 0, py = 0): Zoom {
  const scale = Math.min(MOST, Math.max(1, from.scale * factor));
  const by = scale / from.scale;
  return held({ scale, x: px - (px - from.x) * by, y: py - (py - from.y) * by });
}

/** Moved by shares of the stage. */
export function moved(from: Zoom, dx: number, dy: number): Zoom {
  return held({ scale: from.scale, x: from.x + dx, y: from.y + dy });
}

/** The picture's edge never comes inside the stage: nothing can be lost out of sight. */
function held(zoom: Zoom): Zoom {
  const most = (zoom.scale - 1) / 2;
  const within = (value: number) => (most === 0 ? 0 : Math.min(most, Math.max(-most, value)));
  return { scale: zoom.scale, x: within(zoom.x), y: within(zoom.y) };
}

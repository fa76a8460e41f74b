/* One case's picture with its frame. A meaning is always a shape as well as a colour. */
import { BACKGROUND, EMPTY, NONE, PRESENT, QUERY, TEXT, UNKNOWN } from './colours';
import type { GraphNode } from './types';

const FONT = 'system-ui, sans-serif';
/** Below this side in pixels letters cannot be read. */
const LEGIBLE = 18;

export const font = (px: number, weight = 400): string => `${weight} ${px}px ${FONT}`;

/** How far a tile reaches beyond its picture. */
export const margin = (size: number): number => Math.ceil(3 + size * 0.09);

/** Draw a case with its picture's centre at (x, y). */
export function drawTile(
  to: CanvasRenderingContext2D,
  node: GraphNode,
  picture: ImageBitmap | undefined,
  x: number,
  y: number,
  size: number,
  centre: boolean,
): void {
  const h = size / 2;
  const border = centre
    ? Math.max(3, Math.min(5, size * 0.08))
    : node.status === 'present'
      ? size < 16
        ? 1.5
        : 2.5
      : 1;
  const square = (colour: string, out: number) => {
    to.fillStyle = colour;
    to.fillRect(x - h - out, y - h - out, size + 2 * out, size + 2 * out);
  };
  square(BACKGROUND, border + 1);
  if (centre) square(QUERY, border);
  else if (node.status === 'present') square(PRESENT, border);
  else if (node.status === 'none') square(NONE, border);
  square(picture ? '#000' : EMPTY, 0);
  if (picture) to.drawImage(picture, x - h, y - h, size, size);
  else absent(to, x, y, size);
  if (centre) return;
  if (node.status === 'present') corner(to, x + h + border, y - h - border, Math.max(5, Math.min(15, size * 0.34)));
  if (node.status === 'unknown') dashed(to, x, y, size);
}

/** There is no picture: a struck-out frame. */
function absent(to: CanvasRenderingContext2D, x: number, y: number, size: number): void {
  const h = size * 0.22;
  to.strokeStyle = '#4a5867';
  to.lineWidth = Math.max(1, size * 0.035);
  to.strokeRect(x - h, y - h * 0.8, 2 * h, 1.6 * h);
  to.beginPath();
  to.moveTo(x - h * 1.25, y + h * 1.25);
  to.lineTo(x + h * 1.25, y - h * 1.25);
  to.stroke();
}

function corner(to: CanvasRenderingContext2D, x: number, y: number, side: number): void {
  to.fillStyle = PRESENT;
  to.beginPath();
  to.moveTo(x, y);
  to.lineTo(x, y + side);
  to.lineTo(x - side, y);
  to.fill();
}

function dashed(to: CanvasRenderingContext2D, x: number, y: number, size: number): void {
  const h = size / 2 + 0.5;
  to.strokeStyle = UNKNOWN;
  to.lineWidth = size < 16 ? 1 : 1.5;
  // A whole number of dashes on each side, so that all corners look the same.
  const dash = (2 * h) / (2 * Math.max(1, Math.round(h / 4)) + 1);
  to.setLineDash([dash, dash]);
  for (const [ax, ay, bx, by] of [
    [-h, -h, h, -h],
    [h, -h, h, h],
    [h, h, -h, h],
    [-h, h, -h, -h],
  ] as const) {
    to.beginPath();
    to.moveTo(x + ax, y + ay);
    to.lineTo(x + bx, y + by);
    to.stroke();
  }
  to.setLineDash([]);
  if (size < LEGIBLE) return;
  const r = Math.max(5.5, Math.min(9, size * 0.17));
  to.fillStyle = BACKGROUND;
  to.beginPath();
  to.arc(x + h - r * 0.35, y - h + r * 0.35, r + 1, 0, 7);
  to.fill();
  to.fillStyle = UNKNOWN;
  to.beginPath();
  to.arc(x + h - r * 0.35, y - h + r * 0.35, r, 0, 7);
  to.fill();
  write(to, '?', x + h - r * 0.35, y - h + r * 0.35 + 0.5, r * 1.6, BACKGROUND, 700);
}

function write(
  to: CanvasRenderingContext2D,
  text: string,
  x: number,
  y: number,
  px: number,
  colour = TEXT,
  weight = 600,
) {
  to.font = font(px, weight);
  to.textAlign = 'center';
  to.textBaseline = 'middle';
  to.fillStyle = colour;
  to.fillText(text, x, y);
}

/* The graph alone, with generated cases: ?n=50&layout=force&equal&bare (no pictures). */
import { GraphView } from '../src/graph';
import { answer, picture } from './generated';

const asked = new URLSearchParams(location.search);
const view = new GraphView(document.querySelector('canvas')!, {
  onSelect() {},
  onOpen() {},
  describe: (i) => `case ${i}`,
});
const n = Number(asked.get('n') ?? 50);
const data = answer(n, Number(asked.get('seed') ?? 1), asked.has('equal'));
const began = performance.now();
Object.assign(window, { view, answer, data });
if (asked.has('layout')) await view.setLayout(asked.get('layout') as 'force');
const placed = view.setData(data);
if (!asked.has('bare')) {
  const made = await Promise.all(data.nodes.map((_, i) => picture(i)));
  data.nodes.forEach((node, i) => {
    if (i % 17 !== 5) view.setThumbnail(node.id, made[i]!);
  });
}
await placed;
Object.assign(window, { stableMs: performance.now() - began });

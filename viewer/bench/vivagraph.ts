/* The same answer drawn by VivaGraph as its documentation shows it: images on SVG, its own force layout. */
import Viva from 'vivagraphjs';
import { picture } from './generated';

interface Answer {
  nodes: { distance: number }[];
  edges: [number, number, number][];
}

const SIDE = 24;

async function address(i: number): Promise<string> {
  const bitmap = await picture(i);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext('2d')!.drawImage(bitmap, 0, 0);
  return URL.createObjectURL(await canvas.convertToBlob({ type: 'image/png' }));
}

/** Milliseconds until its layout says it is stable, frames drawn, and true distances' order from the query; or how far it came. */
async function start({ nodes, edges }: Answer, limitMs: number) {
  const pictures = await Promise.all(nodes.map((_, i) => address(i)));
  const graph = Viva.Graph.graph();
  nodes.forEach((_, i) => {
    graph.addNode(i);
  });
  for (let i = 1; i < nodes.length; i++) graph.addLink(0, i);
  for (const [a, b] of edges) graph.addLink(a, b);
  const graphics = Viva.Graph.View.svgGraphics()
    .node(({ id }) => {
      const image = Viva.Graph.svg('image');
      image.setAttribute('width', String(SIDE));
      image.setAttribute('height', String(SIDE));
      image.setAttributeNS('http://www.w3.org/1999/xlink', 'href', pictures[id]!);
      return image;
    })
    .placeNode((ui, at) => {
      ui.setAttribute('x', String(at.x - SIDE / 2));
      ui.setAttribute('y', String(at.y - SIDE / 2));
    });
  const layout = Viva.Graph.Layout.forceDirected(graph);
  const step = layout.step.bind(layout);
  let steps = 0;
  let stable = false;
  layout.step = () => {
    steps++;
    stable = step();
    return stable;
  };
  const began = performance.now();
  Viva.Graph.View.renderer(graph, { layout, graphics, container: document.body }).run();
  while (!stable && performance.now() - began < limitMs) await new Promise((next) => setTimeout(next, 20));
  const ms = performance.now() - began;
  const at = nodes.flatMap((_, i) => {
    const { x, y } = layout.getNodePosition(i);
    return [x, y];
  });
  return { ms, stable, steps, at };
}

Object.assign(window, { start });

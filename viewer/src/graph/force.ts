/*
 * ForceAtlas2 (Jacomy et al. 2014) in a worker. It groups cases that are alike; how far a case is drawn from the query
 * says little about its distance, so the page says "distances approximate" beside it.
 */
import type { Layout } from './radial';
import type { GraphData } from './types';

export interface ForceTask {
  task: number;
  start: Float64Array;
  distances: Float64Array;
  edges: [number, number, number][];
  /** Side of a case's square in layout units. */
  size: number;
}

export interface ForceDone {
  task: number;
  at: Float64Array;
}

export class ForceLayout {
  private worker: Worker | undefined;
  private waiting = new Map<number, { resolve(at: Float64Array): void; reject(e: Error): void }>();
  private tasks = 0;

  /** Positions in units of the drawing's radius, node 0 at the centre; they begin where the radial layout has them. */
  run(data: GraphData, { at: start, size }: Layout): Promise<Float64Array> {
    if (data.nodes.length < 3) return Promise.resolve(start.slice());
    this.worker ??= this.open();
    const { worker } = this;
    const task = ++this.tasks;
    const distances = Float64Array.from(data.nodes, (n) => n.distance);
    return new Promise((resolve, reject) => {
      this.waiting.set(task, { resolve, reject });
      worker.postMessage({ task, start, distances, edges: data.edges, size } satisfies ForceTask);
    });
  }

  private open(): Worker {
    const worker = new Worker(new URL('./worker.ts', import.meta.url), { type: 'module' });
    worker.onmessage = ({ data }: MessageEvent<ForceDone>) => {
      this.waiting.get(data.task)?.resolve(data.at);
      this.waiting.delete(data.task);
    };
    worker.onerror = (event) => this.fail(new Error(event.message || 'the layout worker did not start'));
    return worker;
  }

  private fail(error: Error): void {
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
    this.worker?.terminate();
    this.worker = undefined;
  }

  destroy(): void {
    this.fail(new Error('the graph was closed'));
  }
}

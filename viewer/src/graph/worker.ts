import { forceLayout } from './atlas2';
import type { ForceDone, ForceTask } from './force';

self.onmessage = ({ data }: MessageEvent<ForceTask>) => {
  const done: ForceDone = { task: data.task, at: forceLayout(data.start, data.distances, data.edges, data.size) };
  self.postMessage(done);
};

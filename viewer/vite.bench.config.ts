import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/* Pages of the benchmarks and of development: never part of the product's bundle. */
export default defineConfig({
  root: here('bench'),
  base: './',
  build: {
    outDir: here('../.cache/viewer-bench'),
    emptyOutDir: true,
    target: 'es2022',
    rolldownOptions: { input: [here('bench/graph.html'), here('bench/vivagraph.html')] },
  },
  worker: { format: 'es' },
});

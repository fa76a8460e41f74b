import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

/** A running node, for `npm run dev`. */
const node = process.env.DICOMNODE_URL ?? 'http://127.0.0.1:8080';

/* The bundle is served below /v/ under a policy without inline script, inline style or data: addresses. */
export default defineConfig({
  base: '/v/',
  build: {
    outDir: fileURLToPath(new URL('../dicomnode/web/viewer', import.meta.url)),
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: 'es2022',
  },
  worker: { format: 'es' },
  server: { proxy: { '/api': node, '/sign-in': node } },
  preview: { proxy: { '/api': node, '/sign-in': node } },
});

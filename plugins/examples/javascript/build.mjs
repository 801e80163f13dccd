// Makes the component `dist/next-best.wasm` out of `strategy.js`.
import { mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { componentize } from '@bytecodealliance/componentize-js';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const { component } = await componentize({
  sourcePath: here('strategy.js'),
  witPath: here('wit'),
  worldName: 'strategy',
  // A strategy gets no network, and its clock, chance and log are the contract's own.
  disableFeatures: ['random', 'stdio', 'clocks', 'http', 'fetch-event'],
});
await mkdir(here('dist'), { recursive: true });
await writeFile(here('dist/next-best.wasm'), component);

/** A worker: what takes long, off the thread that draws. */

import { bestMatches } from "./matching.js";
import { principalComponents } from "./pca.js";
import { parseSafetensors } from "./tensors.js";
import { normalized, norms } from "./vectors.js";

/** Job -> its result. The names and arguments are those of compute.js. */
const JOBS = {
  parse: parseSafetensors,
  components: principalComponents,
  normalized,
  norms,
  bestMatches,
};

/** @typedef {typeof JOBS} Jobs */

self.onmessage = ({ data: { id, job, inputs } }) => {
  try {
    const result = /** @type {(...inputs: any[]) => unknown} */ (JOBS[/** @type {keyof Jobs} */ (job)])(...inputs);
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
};

/** The worker's jobs as functions that answer later. */

/**
 * @import {Tensors} from "./tensors.js"
 * @import {Jobs} from "./worker.js"
 */

let last = 0;
/** @type {Map<number, {resolve: (result: any) => void, reject: (error: Error) => void}>} */
const waiting = new Map();
/** Begun with the page: it is ready when the first answer comes. */
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
worker.onmessage = ({ data: { id, result, error } }) => {
  const waiter = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) waiter?.resolve(result);
  else waiter?.reject(new Error(error));
};

/**
 * @template {keyof Jobs} J
 * @param {J} job
 * @param {Parameters<Jobs[J]>} inputs
 * @param {Transferable[]} [transfer] are handed over, not copied
 * @returns {Promise<ReturnType<Jobs[J]>>}
 */
export function compute(job, inputs, transfer = []) {
  const id = ++last;
  const result = new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
  worker.postMessage({ id, job, inputs }, transfer);
  return /** @type {Promise<ReturnType<Jobs[J]>>} */ (result);
}

/** The tensors of an answer. @param {Response} response @returns {Promise<Tensors>} */
export async function tensorsOf(response) {
  const buffer = await response.arrayBuffer();
  return compute("parse", [buffer], [buffer]);
}

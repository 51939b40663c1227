/** Predicted memory: rows of /vram, and the batches that fit beside what else a card holds. */

import { resolutionOf } from "../numbers/geometry.js";
import { jsonOf, send } from "./call.js";

/**
 * @import {Call} from "./call.js"
 * @import {Model, Pair} from "./models.js"
 *
 * @typedef {Object} Row a forward, as /vram predicts it
 * @property {Pair} resolution
 * @property {Pair} grid
 * @property {number} batch
 * @property {number} weights_bytes
 * @property {number} io_bytes
 * @property {number} activation_bytes
 * @property {number} overhead_bytes
 * @property {number} total_bytes
 * @property {number} tokens of all images
 * @property {number} flops of all images
 * @property {number} max_batch under the server's budget
 *
 * @typedef {{device: string, budget_bytes: number, rows: Row[]}} Forecast
 */

/** The largest batch that /vram takes. */
export const LARGEST_BATCH = 100_000;
/** Asked about always: from them and those that are shown, `largestBatch` works out all others. */
const ANCHORS = [1, 2, LARGEST_BATCH];

/**
 * The request for the forecast at all of these sizes and batches.
 *
 * @param {Model} model
 * @param {Pair[]} sizes
 * @param {number[]} batches
 * @returns {Call}
 */
export function forecastCall(model, sizes, batches) {
  const asked = [...new Set([...ANCHORS, ...batches])].sort((a, b) => a - b);
  const query = { model: model.id, resolution: sizes.map(resolutionOf).join(","), batch: asked.join(",") };
  return { method: "GET", path: "vram", query };
}

/** @param {Call} call @param {AbortSignal} signal @returns {Promise<Forecast>} */
export async function forecastOf(call, signal) {
  const { device, budget_bytes, data } = await jsonOf(await send(call, { signal }));
  return { device, budget_bytes, rows: data };
}

/**
 * The largest batch that is sure to fit.
 *
 * Bytes of tensors are the greatest of straight lines over the batch (encoders/contract/cost.py), so between two batches
 * they lie on or under the line through them. What comes on top grows with the batch.
 *
 * @param {Row[]} rows of one size
 * @param {number} room bytes for the encoder: weights, context and forward together
 * @returns {number} 0 if not even one image fits; LARGEST_BATCH means that many or more
 */
export function largestBatch(rows, room) {
  const byBatch = [...rows].sort((a, b) => a.batch - b.batch);
  const over = byBatch.findIndex(({ total_bytes }) => total_bytes > room);
  if (over < 0) return LARGEST_BATCH;
  if (over === 0) return 0;
  const [fits, next] = [byBatch[over - 1], byBatch[over]];
  const tensors = (/** @type {Row} */ row) => row.total_bytes - row.overhead_bytes;
  const step = (tensors(next) - tensors(fits)) / (next.batch - fits.batch);
  const overhead = Math.max(fits.overhead_bytes, next.overhead_bytes);
  const more = Math.floor((room - overhead - tensors(fits)) / step);
  return fits.batch + Math.min(Math.max(more, 0), next.batch - fits.batch - 1);
}

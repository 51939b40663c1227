/** The served encoders, as /models describes them. */

import { send } from "./api.js";

/**
 * @typedef {[number, number]} Pair [height, width], or [rows, columns]
 *
 * @typedef {Object} Model the members that this page reads
 * @property {string} id
 * @property {string} family
 * @property {Pair} image_size
 * @property {Pair} patch_size
 * @property {Pair} grid
 * @property {number} prefix_tokens
 * @property {number} hidden_size
 * @property {number | null} embed_dim
 * @property {number} layers
 * @property {boolean} has_text
 * @property {boolean} dense whether it offers heat maps
 * @property {{multiple: Pair, minimum: Pair, maximum: Pair, only: Pair | null}} resolutions
 * @property {{resize: string, crop_pct: number}} preprocessing
 * @property {string | null} trained_on what it knows, if that is not photographs
 * @property {string} dtype what it computes in
 * @property {string} device
 * @property {number} parameters
 * @property {number} weights_bytes
 * @property {string} state
 *
 * @typedef {{id: string, purpose: string, download_bytes: number}} Recommended an encoder that knows photographs
 * @typedef {{models: Model[], recommended: Recommended[]}} Served
 */

/** The request for them. @type {import("./api.js").Call} */
export const MODELS_CALL = { method: "GET", path: "models" };

/** @param {AbortSignal} [signal] @returns {Promise<Served>} */
export async function served(signal) {
  const { data, recommended } = await (await send(MODELS_CALL, { signal })).json();
  return { models: data, recommended: recommended ?? [] };
}

/** @param {number} bytes as people write it: "605 MB" */
export function inBytes(bytes) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  const power = bytes < 1000 ? 0 : Math.min(Math.floor(Math.log10(bytes) / 3), units.length - 1);
  const value = bytes / 1000 ** power;
  return `${power === 0 || value >= 100 ? Math.round(value) : value.toPrecision(2)} ${units[power]}`;
}

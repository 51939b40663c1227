/** The served encoders, as /models describes them. */

import { jsonOf, send } from "./call.js";

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
 * @property {string} pooling "class": by the class token, the first of the prefix
 * @property {number} hidden_size
 * @property {number | null} embed_dim
 * @property {number} layers
 * @property {boolean} has_text
 * @property {number | null} context_length tokens of a text that it reads
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

/** @returns {Promise<Served>} the default first */
export async function served() {
  const { data, recommended } = await jsonOf(await send({ method: "GET", path: "models" }));
  return { models: data, recommended: recommended ?? [] };
}

/**
 * The encoder with this id; the first if there is none.
 *
 * @param {Model[]} models
 * @param {string | null} id
 */
export function modelOf(models, id) {
  return models.find((model) => model.id === id) ?? models[0];
}

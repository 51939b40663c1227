/** Vectors of pictures and of texts, kept for each encoder: another query costs one small request, and going back none. */

import { tensorsOf } from "../numbers/compute.js";
import { Problem, jsonOf, send } from "./call.js";
import { vectorsCall } from "./embed.js";

/**
 * @import {Model} from "./models.js"
 * @import {Picture} from "../pictures/picture.js"
 *
 * @typedef {Object} Kept of an encoder
 * @property {Map<string, Float32Array>} pictures by id
 * @property {Map<string, string>} problems by a picture's id: the server's sentence on it
 * @property {Map<string, Float32Array>} texts
 */

/** Of a request: few enough that progress is seen, many enough that the server has batches. */
const MOST_PICTURES = 8;
const MOST_BYTES = 16 * 2 ** 20;

/** @type {Map<string, Kept>} */
const kept = new Map();

/** Forget all: the server may have other weights now. */
export function forgetVectors() {
  kept.clear();
}

/** What is known, to be read only. @param {Model} model @returns {Kept} */
export function vectorsOf({ id }) {
  let known = kept.get(id);
  if (!known) kept.set(id, (known = { pictures: new Map(), problems: new Map(), texts: new Map() }));
  return known;
}

/**
 * The pictures of each request.
 *
 * @param {Picture[]} pictures
 * @returns {Picture[][]}
 */
export function batchesOf(pictures) {
  /** @type {Picture[][]} */
  const batches = [];
  let bytes = Infinity;
  for (const picture of pictures) {
    const { size } = picture.upload.blob;
    const last = batches.at(-1);
    if (last && last.length < MOST_PICTURES && bytes + size <= MOST_BYTES) {
      last.push(picture);
      bytes += size;
    } else {
      batches.push([picture]);
      bytes = size;
    }
  }
  return batches;
}

/** Those of which neither a vector nor a problem is known. @param {Model} model @param {Picture[]} pictures */
export function unknownOf(model, pictures) {
  const known = vectorsOf(model);
  return pictures.filter(({ id }) => !known.pictures.has(id) && !known.problems.has(id));
}

/**
 * Ask for the vectors of these pictures, some in each request. A bad picture has its problem, and the others go on.
 *
 * @param {Model} model
 * @param {Picture[]} pictures
 * @param {AbortSignal} signal
 * @param {(done: number) => void} onsome this many are known
 */
export async function embedPictures(model, pictures, signal, onsome) {
  let done = 0;
  for (const batch of batchesOf(pictures)) {
    await embedBatch(model, batch, signal);
    onsome((done += batch.length));
  }
}

/** @param {Model} model @param {Picture[]} batch @param {AbortSignal} signal @returns {Promise<void>} */
async function embedBatch(model, batch, signal) {
  const known = vectorsOf(model);
  const fail = (/** @type {number} */ index, /** @type {string} */ sentence) =>
    known.problems.set(batch[index].id, sentence);
  let response;
  try {
    response = await send(vectorsCall(model, { pictures: batch }), { signal });
  } catch (error) {
    if (!(error instanceof Problem) || !error.isOfPicture) throw error;
    if (batch.length === 1) {
      fail(0, error.message);
    } else if (error.status === 413) {
      const half = batch.length >> 1; // the server's limits are tighter than ours
      await embedBatch(model, batch.slice(0, half), signal);
      await embedBatch(model, batch.slice(half), signal);
    } else {
      throw error;
    }
    return;
  }
  if (response.headers.get("content-type")?.startsWith("application/json")) {
    for (const { index, error } of (await jsonOf(response)).data) fail(index, error.detail); // none was read
    return;
  }
  const { tensors, metadata } = await tensorsOf(response);
  const indices = metadata.index.split(",").map(Number);
  const { values, shape } = tensors.pooled;
  const width = shape[1];
  indices.forEach((index, row) => known.pictures.set(batch[index].id, values.slice(row * width, (row + 1) * width)));
  for (const { index, error } of JSON.parse(metadata.errors)) fail(index, error.detail);
}

/**
 * A text's vector.
 *
 * @param {Model} model with texts
 * @param {string} text
 * @param {AbortSignal} signal
 * @returns {Promise<void>} from when it is known
 */
export async function embedText(model, text, signal) {
  const { texts } = vectorsOf(model);
  if (texts.has(text)) return;
  const { tensors } = await tensorsOf(await send(vectorsCall(model, { texts: [text] }), { signal }));
  texts.set(text, tensors.texts.values);
}

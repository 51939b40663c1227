/** Tokens and vectors from /embed, kept while there is room, so that going back costs no request. */

import { compute, tensorsOf } from "../numbers/compute.js";
import { Problem, send } from "./call.js";

/**
 * @import {Call, Upload} from "./call.js"
 * @import {Model} from "./models.js"
 * @import {Picture} from "../pictures/picture.js"
 *
 * @typedef {Object} Asked
 * @property {Model} model
 * @property {number | null} [layer] null: the final tokens
 * @property {string | null} [resolution] as the API has it; null: native
 *
 * @typedef {Object} Tokens
 * @property {number} rows
 * @property {number} cols
 * @property {number} width numbers a token
 * @property {string} dtype of the numbers as they came, "float16"
 * @property {number} prefix class and register tokens
 * @property {Float32Array} values [prefix + rows * cols, width], prefix first
 * @property {Float32Array} unit the same, each token of length 1
 * @property {Float32Array} lengths of each token
 */

const MOST_BYTES = 384 * 2 ** 20;

/** In order of use, the latest last. @type {Map<string, Tokens>} */
const kept = new Map();
let keptBytes = 0;

/** Forget all: the server may have other weights now. */
export function forgetTokens() {
  kept.clear();
  keptBytes = 0;
}

/** 16 bits a number on the wire: in the type that the model computes in nothing is lost. @param {Model} model */
function wireType(model) {
  return model.dtype === "bfloat16" ? "bfloat16" : "float16";
}

/**
 * The request for a picture's tokens.
 *
 * @param {Picture} picture
 * @param {Asked} asked
 * @returns {Call}
 */
export function tokensCall(picture, { model, layer = null, resolution = null }) {
  /** @type {NonNullable<Call["query"]>} */
  const query = { model: model.id, prefix: true, dtype: wireType(model) };
  if (layer !== null) query.layer = layer;
  if (resolution !== null) query.resolution = resolution;
  return {
    method: "POST",
    path: "embed",
    query,
    form: [["image", picture.upload]],
    accept: "application/vnd.safetensors",
  };
}

/**
 * A picture's tokens. Throws a Problem that names the picture if it may be about it.
 *
 * @param {Picture} picture
 * @param {Asked} asked
 * @param {AbortSignal} signal
 * @returns {Promise<Tokens>}
 */
export async function tokensOf(picture, asked, signal) {
  const key = JSON.stringify([picture.id, asked.model.id, asked.layer ?? null, asked.resolution ?? null]);
  const known = kept.get(key);
  if (known) {
    kept.delete(key);
    kept.set(key, known);
    return known;
  }
  const response = await send(tokensCall(picture, asked), { signal }).catch((error) => {
    if (!(error instanceof Problem && error.isOfPicture)) throw error;
    throw new Problem(error.status, `${picture.name}: ${error.message}`, error.facts);
  });
  const { tensors, metadata } = await tensorsOf(response);
  const { shape, values } = tensors.tokens;
  const width = shape[2];
  const [rows, cols] = metadata.grid.split(",").map(Number);
  const [unit, lengths] = await Promise.all([
    compute("normalized", [values, width]),
    compute("norms", [values, width]),
  ]);
  const prefix = Number(metadata.prefix_tokens);
  const tokens = { rows, cols, width, dtype: wireType(asked.model), prefix, values, unit, lengths };
  kept.set(key, tokens);
  keptBytes += bytesOf(tokens);
  for (const [oldest, each] of kept) {
    if (keptBytes <= MOST_BYTES || oldest === key) break;
    kept.delete(oldest);
    keptBytes -= bytesOf(each);
  }
  return tokens;
}

/** @param {Tokens} tokens */
function bytesOf({ values, unit, lengths }) {
  return values.byteLength + unit.byteLength + lengths.byteLength;
}

/** The patch tokens, without the prefix; a view. @param {Tokens} tokens @param {"values" | "unit"} [which] */
export function patchesOf(tokens, which = "values") {
  return tokens[which].subarray(tokens.prefix * tokens.width);
}

/**
 * The request for vectors of length 1 in the joint space: of pictures, or of texts.
 *
 * @param {Model} model
 * @param {{pictures?: Picture[], texts?: string[]}} items
 * @returns {Call}
 */
export function vectorsCall(model, { pictures = [], texts = [] }) {
  /** @type {Array<[string, string | Upload]>} */
  const form = [
    ...pictures.map((picture) => /** @type {[string, Upload]} */ (["image", picture.upload])),
    ...texts.map((text) => /** @type {[string, string]} */ (["text", text])),
  ];
  const query = { model: model.id, output: "pooled", normalize: true };
  return { method: "POST", path: "embed", query, form, accept: "application/vnd.safetensors" };
}

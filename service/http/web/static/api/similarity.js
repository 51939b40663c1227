/** Pictures against texts: the request to /similarity, and its answer. */

/**
 * @import {Call, Upload} from "./call.js"
 * @import {Model} from "./models.js"
 * @import {Picture} from "../pictures/picture.js"
 *
 * @typedef {Object} Question
 * @property {Model} model
 * @property {string | null} [resolution] null: native
 * @property {Picture[]} pictures
 * @property {string[]} texts
 * @property {string | string[]} [templates] each has {} for the text, or the name of the server's own; none: the texts
 *   as they are
 * @property {boolean} hasMaps whether heat maps are asked for
 *
 * @typedef {Object} Answer lists of a picture each; null if it failed, and then named in `errors`
 * @property {Array<number[] | null>} probabilities of each text
 * @property {Array<number[] | null>} cosine
 * @property {Array<number[] | null>} logits
 * @property {number} logit_scale
 * @property {number} logit_bias
 * @property {"softmax" | "sigmoid"} activation
 * @property {number[]} truncated indices of the texts that were cut
 * @property {Array<number[][][] | null>} [heatmap] of each text rows of cosines
 * @property {Array<{index: number, error: {detail: string}}>} [errors]
 *
 * @typedef {"probabilities" | "cosine" | "logits"} ScoreKind
 */

/** @param {Question} question @returns {Call} */
export function similarityCall({ model, resolution = null, pictures, texts, templates = [], hasMaps }) {
  /** @type {NonNullable<Call["query"]>} */
  const query = { model: model.id };
  if (resolution !== null) query.resolution = resolution;
  if (hasMaps) query.heatmap = true;
  if (typeof templates === "string") query.templates = templates;
  /** @type {Array<[string, string | Upload]>} */
  const form = pictures.map((picture) => ["image", picture.upload]);
  for (const text of texts) form.push(["text", text]);
  for (const template of typeof templates === "string" ? [] : templates) form.push(["template", template]);
  return { method: "POST", path: "similarity", query, form, accept: "application/json" };
}

/** What the scores mean. @param {Answer} answer */
export function scoringSentence({ activation, logit_scale: scale, logit_bias: bias }) {
  const sum = bias === 0 ? "" : bias < 0 ? ` − ${-bias}` : ` + ${bias}`;
  const logit = `logit = ${Number(scale.toPrecision(5))} × cosine${sum}`;
  return activation === "softmax"
    ? `softmax: the probabilities add up to 100 %, as if exactly one of these texts were right. ${logit}.`
    : `sigmoid: each text has a probability of its own, and several texts may be right. ${logit}.`;
}

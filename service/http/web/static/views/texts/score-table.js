/** The scores of a picture, a row and a bar for each text. */

import { asCosine } from "../../numbers/units.js";
import { argmax } from "../../numbers/vectors.js";
import { el } from "../../parts/dom.js";

/**
 * @import {ScoreKind} from "../../api/similarity.js"
 *
 * @typedef {Record<ScoreKind, number[]>} Scores of each text
 */

/** In the order of the columns. @type {Array<{kind: ScoreKind, name: string, write: (value: number) => string}>} */
export const SCORE_KINDS = [
  { kind: "probabilities", name: "probability", write: percent },
  { kind: "cosine", name: "cosine", write: asCosine },
  { kind: "logits", name: "logit", write: (value) => value.toFixed(2) },
];

/**
 * @param {string} caption for a screen reader
 * @param {string[]} texts
 * @param {Scores} scores
 * @param {ScoreKind} drawn which the bars show
 * @param {[number, number]} range of the bars; they begin at 0
 */
export function scoreTable(caption, texts, scores, drawn, range) {
  const best = argmax(scores[drawn]);
  const heads = SCORE_KINDS.map(({ kind, name }) =>
    el("th", { class: kind === drawn ? "number drawn" : "number", scope: "col" }, name),
  );
  const rows = texts.map((text, index) => {
    const numbers = SCORE_KINDS.map(({ kind, write }) =>
      el("td", { class: kind === drawn ? "number drawn" : "number" }, write(scores[kind][index])),
    );
    const head = el("th", { scope: "row" }, el("span", { class: "text" }, text), bar(scores[drawn][index], range));
    return el("tr", { class: index === best ? "best" : "" }, head, ...numbers);
  });
  return el(
    "table",
    { class: "scores" },
    el("caption", { class: "visually-hidden" }, caption),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "text"), ...heads)),
    el("tbody", {}, ...rows),
  );
}

/** From 0 to the value. @param {number} value @param {[number, number]} range */
function bar(value, [low, high]) {
  const share = 100 / (high - low || 1);
  const filled = el("span");
  filled.style.left = `${(Math.min(value, 0) - low) * share}%`;
  filled.style.width = `${Math.abs(value) * share}%`;
  return el("span", { class: "score-bar", "aria-hidden": "true" }, filled);
}

/** @param {number} probability */
function percent(probability) {
  const value = probability * 100;
  if (value === 0 || value >= 0.1) return `${value.toFixed(1)} %`;
  return value < 1e-4 ? "< 0.0001 %" : `${Number(value.toPrecision(1))} %`;
}

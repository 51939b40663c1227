/** Shows an answer of the server: status, headers, and the body as what it is. */

import { problemOf } from "../api/call.js";
import { inMB } from "../numbers/units.js";
import { button, download, el } from "../parts/dom.js";
import { cell, head, table } from "../parts/table.js";
import { layOut } from "./json.js";

const MOST = { items: 12, characters: 300 };
const MOST_TEXT = 50_000;

/**
 * @param {Response} response whose body nobody has read
 * @param {{started: number, name: string}} request by the clock of `performance`; the name of a file to save
 * @returns {Promise<{facts: HTMLElement[], body: HTMLElement[]}>} when the whole answer is here
 */
export async function answerOf(response, { started, name }) {
  const refused = response.ok ? null : response.clone();
  const blob = await response.blob();
  const took = performance.now() - started;
  const media = (response.headers.get("Content-Type") ?? "").split(";")[0];
  const status = `${response.status} ${response.statusText}`.trim();
  const facts = [`${took.toFixed(0)} ms`, media, inMB(blob.size)].map((fact) => el("span", {}, fact));
  return {
    facts: [
      el("p", { class: "facts" }, el("strong", { class: response.ok ? "good" : "bad" }, status), ...facts),
      ...(refused ? [el("p", { class: "problem" }, (await problemOf(refused)).message)] : []),
    ],
    body: [
      el("details", {}, el("summary", {}, "Headers"), codeTable(["header", "value"], [...response.headers])),
      ...(await bodyOf(blob, media)),
      button(`Save the whole body (${inMB(blob.size)})`, () => download(blob, `${name}.${endingOf(media)}`)),
    ],
  };
}

/**
 * @param {Blob} blob
 * @param {string} media
 * @returns {Promise<HTMLElement[]>}
 */
async function bodyOf(blob, media) {
  if (/safetensors/.test(media)) return tensors(blob);
  if (/[/+]json$/.test(media)) return [block(layOut(JSON.parse(await blob.text()), MOST))];
  if (media.startsWith("text/")) return [block(await blob.text())];
  return [];
}

/** @param {string} text */
function block(text) {
  const cut =
    text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)}\n… ${text.length - MOST_TEXT} characters more` : text;
  return el("pre", { tabindex: 0, role: "group", "aria-label": "Answer" }, cut);
}

/**
 * What a safetensors file says of its tensors: 8 bytes for the length of a JSON object, and that object.
 *
 * @param {Blob} blob
 */
async function tensors(blob) {
  const length = Number(new DataView(await blob.slice(0, 8).arrayBuffer()).getBigUint64(0, true));
  const { __metadata__: metadata = {}, ...found } = JSON.parse(await blob.slice(8, 8 + length).text());
  const rows = Object.entries(found).map(([name, { shape, dtype }]) => [name, shape.join(" × "), dtype]);
  return [codeTable(["tensor", "shape", "dtype"], rows), codeTable(["metadata", "value"], Object.entries(metadata))];
}

/** @param {string[]} heads @param {string[][]} rows */
function codeTable(heads, rows) {
  const cells = (/** @type {string[]} */ row) => row.map((text) => cell(el("code", {}, text)));
  return table(
    heads.map((name) => head(name)),
    rows.map((row) => el("tr", {}, ...cells(row))),
  );
}

/** Of a file of this media type. @param {string} media */
function endingOf(media) {
  if (/[/+]json$/.test(media)) return "json";
  if (media.startsWith("text/")) return "txt";
  return /safetensors|npy/.exec(media)?.[0] ?? "bin";
}

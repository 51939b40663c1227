/** Tables: a head, and rows of cells. */

import { el } from "./dom.js";

/**
 * @param {HTMLTableCellElement[]} heads
 * @param {HTMLTableRowElement[]} rows
 */
export function table(heads, rows) {
  return el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
}

/** The head of a column. @param {string} name @param {boolean} [isNumber] whether its cells are numbers */
export function head(name, isNumber = false) {
  return el("th", { scope: "col", class: isNumber ? "number" : null }, name);
}

/** @param {string | Node} content @param {boolean} [isNumber] */
export function cell(content, isNumber = false) {
  return el("td", { class: isNumber ? "number" : null }, content);
}

/** All sizes as a table, for people and for a sheet. */

import { resolutionOf } from "../../numbers/geometry.js";
import { grouped, inFlops, inGiB } from "../../numbers/units.js";
import { el } from "../../parts/dom.js";
import { cell, head, table } from "../../parts/table.js";
import { PARTS } from "./memory-split.js";

/**
 * @import {Row} from "../../api/forecast.js"
 *
 * @typedef {{key: string, name: string, rows: Row[], largest: number}} Size a row for each batch, and the largest batch
 *   that fits
 */

/** @param {number[]} batches @param {Size[]} sizes each a line, whose `data-size` is its key */
export function sizeTable(batches, sizes) {
  const numbers = ["Grid", "Tokens", "FLOPs", ...batches.map((batch) => `Batch ${grouped(batch)}`), "Largest batch"];
  const lines = sizes.map(({ key, name, rows, largest }) => {
    const [{ grid, tokens, flops }] = rows;
    const bytes = rows.filter(({ batch }) => batches.includes(batch)).map((row) => inGiB(row.total_bytes));
    const cells = [grid.join(" × "), grouped(tokens), inFlops(flops), ...bytes, grouped(largest)];
    return el(
      "tr",
      { "data-size": key },
      el("th", { scope: "row" }, name),
      ...cells.map((content) => cell(content, true)),
    );
  });
  return table([head("Resolution"), ...numbers.map((name) => head(name, true))], lines);
}

/** Tab-separated, with plain numbers. @param {Row[]} rows */
export function sheetOf(rows) {
  const names = ["batch", "tokens", "flops", ...PARTS.map((part) => part.key), "total_bytes", "max_batch"];
  const lines = rows.map((row) => [
    resolutionOf(row.resolution),
    row.grid.join("x"),
    ...names.map((name) => row[/** @type {keyof Row} */ (name)]),
  ]);
  return [["resolution", "grid", ...names], ...lines].map((line) => line.join("\t")).join("\n");
}

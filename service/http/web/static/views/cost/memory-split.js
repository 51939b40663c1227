/** The parts of a batch's memory. */

import { grouped, inGiB } from "../../numbers/units.js";
import { el } from "../../parts/dom.js";
import { colourKey } from "../../parts/legend.js";

/** @import {Row} from "../../api/forecast.js" */

export const PARTS = /** @type {const} */ ([
  { key: "weights_bytes", name: "weights", colour: "--plot-1" },
  { key: "activation_bytes", name: "activations", colour: "--plot-2" },
  { key: "io_bytes", name: "in and out", colour: "--plot-3" },
  { key: "overhead_bytes", name: "overhead", colour: "--plot-4" },
]);

/** What the colours of the bars mean. */
export function partKeys() {
  return el("div", { class: "keys" }, ...PARTS.map(({ name, colour }) => colourKey(name, colour)));
}

/** A bar, and the same in words. @param {Row} row */
export function memorySplit(row) {
  const bar = el("div", { class: "split", "aria-hidden": "true" });
  for (const { key, colour } of PARTS) {
    const part = el("span");
    part.style.flexGrow = String(row[key] / row.total_bytes);
    part.style.background = `var(${colour})`;
    bar.append(part);
  }
  const words = PARTS.map(({ key, name }) => `${name} ${inGiB(row[key])}`).join(", ");
  return el(
    "div",
    { class: "split-row" },
    el("div", {}, el("strong", {}, `batch ${grouped(row.batch)}: ${inGiB(row.total_bytes)}`)),
    bar,
    el("div", { class: "note" }, words),
  );
}

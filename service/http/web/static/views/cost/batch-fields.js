/** The fields for the batches that are compared. */

import { LARGEST_BATCH } from "../../api/forecast.js";
import { el } from "../../parts/dom.js";

/** Each has a box to tick; there is room for one more. */
const BATCHES = [1, 8, 32];

/** The batches of a link, such as "1,8,100", smallest first. @param {string | null} link */
export function batchesOfLink(link) {
  const batches = (link ?? "").split(",").map(Number).filter(isBatch);
  const own = ownOf(batches);
  const chosen = sorted(batches.filter((batch) => BATCHES.includes(batch) || batch === own));
  return chosen.length > 0 ? chosen : BATCHES;
}

/** @param {number[]} batches @param {(batches: number[]) => void} onchange */
export function batchFields(batches, onchange) {
  const boxes = BATCHES.map((batch) =>
    el("input", { type: "checkbox", value: batch, checked: batches.includes(batch), onchange: () => change() }),
  );
  const own = el("input", {
    type: "number",
    min: 1,
    max: LARGEST_BATCH,
    value: ownOf(batches) ?? "",
    placeholder: "own",
    "aria-label": "Another batch",
    onchange: () => change(),
  });
  const change = () => {
    if (!own.checkValidity()) own.value = "";
    const chosen = [...boxes.filter((box) => box.checked), own].map(({ value }) => Number(value)).filter(isBatch);
    if (chosen.length === 0) boxes[0].checked = true;
    onchange(chosen.length > 0 ? sorted(chosen) : [BATCHES[0]]);
  };
  return el(
    "fieldset",
    { class: "choices" },
    el("legend", {}, "Pictures in a batch"),
    ...boxes.map((box) => el("label", { class: "check" }, box, box.value)),
    own,
  );
}

/** The batch that has no box. @param {number[]} batches */
function ownOf(batches) {
  return batches.find((batch) => !BATCHES.includes(batch));
}

/** @param {number} value */
function isBatch(value) {
  return Number.isInteger(value) && value >= 1 && value <= LARGEST_BATCH;
}

/** @param {number[]} values */
function sorted(values) {
  return [...new Set(values)].sort((a, b) => a - b);
}

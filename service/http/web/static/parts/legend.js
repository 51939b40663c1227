/** What colours mean. */

import { heatColours } from "../numbers/colours.js";
import { el } from "./dom.js";

const STEPS = 256;

/** The ramp of heatColours with the values at its ends. @param {string} name empty: it is said elsewhere @param {[number, number]} range */
export function colourBar(name, [low, high]) {
  const bar = el("canvas", { class: "bar", width: STEPS, height: 1, "aria-hidden": "true" });
  const steps = heatColours([...Array(STEPS).keys()], [0, STEPS - 1]);
  bar.getContext("2d")?.putImageData(new ImageData(steps, STEPS, 1), 0, 0);
  const ends = [low, high].map((value) => el("span", {}, value.toPrecision(3)));
  return [...(name ? [el("span", {}, name)] : []), ends[0], bar, ends[1]];
}

/** A spot of a colour, beside what it stands for. @param {string} variable of the CSS: "--plot-1" */
export function swatch(variable) {
  const spot = el("span", { class: "swatch", "aria-hidden": "true" });
  spot.style.background = `var(${variable})`;
  return spot;
}

/** A colour and what it stands for. @param {string} name @param {string} variable of the CSS @param {boolean} [hidden] */
export function colourKey(name, variable, hidden = false) {
  return el("span", { class: "key", hidden }, swatch(variable), name);
}

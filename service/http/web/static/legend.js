/** What colours mean. */

import { rampColour } from "./colours.js";
import { el } from "./dom.js";

/** The ramp of heatColours with the values at its ends. @param {string} name @param {[number, number]} range */
export function colourBar(name, [low, high]) {
  const bar = el("span", { class: "bar", "aria-hidden": "true" });
  const stops = Array.from({ length: 9 }, (_, index) => rampColour(index / 8));
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  return [el("span", {}, name), el("span", {}, low.toPrecision(3)), bar, el("span", {}, high.toPrecision(3))];
}

/** A measure over the last two minutes: its plot, and its latest values in words. */

import { el } from "../../parts/dom.js";
import { swatch } from "../../parts/legend.js";
import { Plot, lineColour } from "../../parts/plot.js";

/**
 * @import {Metrics} from "../../api/metrics.js"
 * @import {Measure, Moment} from "./measures.js"
 */

/** The length of a history. */
export const SHOWN_S = 120;
/** Of more lines, those that are 0 all the time are only named. */
const MOST_LINES = 6;

export class Strip {
  /** @param {Measure} measure */
  constructor(measure) {
    this.measure = measure;
    this.plot = new Plot({
      label: `${measure.title}, the last two minutes. The latest values stand above.`,
      format: measure.format,
      base: measure.base,
      formatX: (seconds) => (seconds === 0 ? "now" : `${seconds} s`),
      range: [-SHOWN_S, 0],
      height: 150,
    });
    /** Line -> its words. @type {Map<string, HTMLElement>} */
    this.texts = new Map();
    this.list = el("dl", { class: "latest" });
    this.quiet = el("p", { class: "note quiet-lines" });
    this.element = el(
      "section",
      { class: "panel measures", "aria-label": measure.title },
      el("h3", {}, measure.title),
      this.list,
      this.quiet,
      this.plot.element,
    );
  }

  /** @param {Moment[]} history oldest first @param {Metrics} latest */
  show(history, latest) {
    const { names, value, format, text = (interval, name) => format(value(interval, name) ?? 0) } = this.measure;
    const now = history.at(-1)?.at ?? 0;
    const lines = names(latest).map((name, index) => ({
      name,
      colour: lineColour(index),
      values: history.map(({ interval }) => (interval ? value(interval, name) : null)),
    }));
    const quiet = lines.length > MOST_LINES ? lines.filter(({ values }) => !values.some(Boolean)) : [];
    const shown = lines.filter((line) => !quiet.includes(line));
    this.plot.show({ x: history.map(({ at }) => (at - now) / 1000), lines: shown });
    this.#name(shown);
    this.quiet.textContent = quiet.length > 0 ? `Quiet: ${quiet.map(({ name }) => name).join(", ")}` : "";
    for (const { name, values } of shown) {
      let last = values.length - 1;
      while (last >= 0 && values[last] === null) last--;
      const interval = history[last]?.interval;
      const words = interval ? text(interval, name, history) : "nothing yet";
      const element = /** @type {HTMLElement} */ (this.texts.get(name));
      if (element.textContent !== words) element.textContent = words;
    }
  }

  /** @param {Array<{name: string, colour: string}>} lines */
  #name(lines) {
    if (String([...this.texts.keys()]) === String(lines.map(({ name }) => name))) return;
    this.texts = new Map(lines.map(({ name }) => [name, el("dd")]));
    this.list.replaceChildren(
      ...lines.flatMap(({ name, colour }) => [
        el("dt", {}, swatch(colour), name),
        /** @type {HTMLElement} */ (this.texts.get(name)),
      ]),
    );
  }
}

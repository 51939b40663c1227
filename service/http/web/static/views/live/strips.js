/** What the server did in the last two minutes: plots over time, with the latest values in words. */

import { grouped, inGiB, inSeconds, short } from "../../numbers/units.js";
import { el, swatch } from "../../parts/dom.js";
import { Plot, lineColour } from "../../parts/plot.js";

/**
 * @import {Interval, Metrics} from "../../api/metrics.js"
 *
 * @typedef {{at: number, interval: Interval | null}} Moment at: in ms; null: the server was not asked, or did not answer
 *
 * @typedef {Object} Measure
 * @property {string} title
 * @property {(value: number) => string} format
 * @property {2 | 10} [base] of the plot's ticks
 * @property {(latest: Metrics) => string[]} names of its lines
 * @property {(interval: Interval, name: string) => number | null} value null: there was nothing to measure
 * @property {(interval: Interval, name: string, history: Moment[]) => string} [text] of the latest value that there was
 */

/** The length of a history. */
export const SHOWN_S = 120;
/** Of more lines, those that are 0 all the time are only named. */
const MOST_LINES = 6;
const STAGES = ["fetch", "decode", "preprocess", "queue", "forward", "serialize"];
const REQUESTS = "requests";
const [PREDICTED, MEASURED] = ["predicted", "measured"];

/** @type {Measure} */
export const IMAGES = {
  title: "Images and requests a second",
  format: short,
  names: (latest) => [...modelsOf(latest), REQUESTS],
  value: (interval, name) => growthOf(interval, name) / interval.seconds,
  text: (interval, name, history) => {
    const grown = history.reduce((sum, moment) => sum + (moment.interval ? growthOf(moment.interval, name) : 0), 0);
    const [one, many] = name === REQUESTS ? ["request", "requests"] : ["image", "images"];
    return `${short(growthOf(interval, name) / interval.seconds)}; ${grouped(grown)} ${grown === 1 ? one : many} in 2 min`;
  },
};

/** @type {Measure} */
export const QUEUE = {
  title: "Images in the queue",
  format: short,
  names: modelsOf,
  value: ({ after }, model) => after.sum("visiontower_queue_images", { model }),
  text: ({ after }, model) => {
    const images = after.sum("visiontower_queue_images", { model });
    return `${grouped(images)}, the oldest for ${inSeconds(after.sum("visiontower_queue_oldest_seconds", { model }))}`;
  },
};

/** @type {Measure} */
export const BATCHES = {
  title: "Images in a forward",
  format: short,
  names: modelsOf,
  value: (interval, model) => interval.mean("visiontower_batch_images", { model }),
  text: (interval, model) => {
    const name = "visiontower_batch_images";
    return `mean ${short(interval.mean(name, { model }) ?? 0)}, largest ${atMost(interval.largest(name, { model }) ?? 0)}`;
  },
};

/** @param {string} model @returns {Measure} */
export function stagesOf(model) {
  return {
    title: "Seconds in a stage, mean",
    format: inSeconds,
    names: () => STAGES,
    value: (interval, stage) => interval.mean("visiontower_stage_seconds", { model, stage }),
  };
}

/** @type {Measure} */
export const FORWARDS = {
  title: "Memory of the last forward that was measured",
  format: inGiB,
  base: 2,
  names: () => [PREDICTED, MEASURED],
  value: ({ after }, name) =>
    after.sum("visiontower_vram_bytes", { kind: `activations_${name === PREDICTED ? "predicted" : "peak"}` }) || null,
};

/** A measure's plot and words. */
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

/** @param {Metrics} latest */
function modelsOf(latest) {
  return latest.valuesOf("visiontower_model_ready", "model");
}

/** @param {Interval} interval @param {string} name a model, whose images are counted, or REQUESTS */
function growthOf(interval, name) {
  if (name !== REQUESTS) return interval.growth("visiontower_images_total", { model: name });
  const requests = "visiontower_requests_total";
  return interval.growth(requests) - interval.growth(requests, { route: "/metrics" }); // this page's own questions
}

/** A bucket's bound in words. @param {number} bound */
function atMost(bound) {
  return bound === Infinity ? "more than any bucket" : bound === 1 ? "1" : `at most ${grouped(bound)}`;
}

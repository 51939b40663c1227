/** What is shown of the server's last two minutes: lines, their values, and the latest of them in words. */

import { counted, grouped, inGiB, inSeconds, short } from "../../numbers/units.js";

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

const STAGES = ["fetch", "decode", "preprocess", "queue", "forward", "serialize"];
const REQUESTS = "requests";
const [PREDICTED, MEASURED] = ["predicted", "measured"];

/** @type {Measure} */
export const TRAFFIC = {
  title: "Pictures and requests a second",
  format: short,
  names: (latest) => [...modelsOf(latest), REQUESTS],
  value: (interval, name) => growthOf(interval, name) / interval.seconds,
  text: (interval, name, history) => {
    const grown = history.reduce((sum, moment) => sum + (moment.interval ? growthOf(moment.interval, name) : 0), 0);
    const noun = name === REQUESTS ? "request" : "picture";
    return `${short(growthOf(interval, name) / interval.seconds)}; ${counted(grown, noun)} in 2 min`;
  },
};

/** @type {Measure} */
export const QUEUE = {
  title: "Pictures in the queue",
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
  title: "Pictures in a batch",
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

/** @param {Metrics} latest */
function modelsOf(latest) {
  return latest.valuesOf("visiontower_model_ready", "model");
}

/** @param {Interval} interval @param {string} name a model, whose pictures are counted, or REQUESTS */
function growthOf(interval, name) {
  if (name !== REQUESTS) return interval.growth("visiontower_images_total", { model: name });
  const requests = "visiontower_requests_total";
  return interval.growth(requests) - interval.growth(requests, { route: "/metrics" }); // this page's own questions
}

/** A bucket's bound in words. @param {number} bound */
function atMost(bound) {
  return bound === Infinity ? "more than any bucket" : bound === 1 ? "1" : `at most ${grouped(bound)}`;
}

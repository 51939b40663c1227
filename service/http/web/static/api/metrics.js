/** What /metrics tells: Prometheus' text format 0.0.4, and what happened between two answers. */

/**
 * @typedef {Record<string, string>} Labels
 * @typedef {{name: string, labels: Labels, value: number}} Sample
 */

/** The request for them. @type {import("./call.js").Call} */
export const METRICS_CALL = { method: "GET", path: "metrics" };

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
/** @type {Record<string, string>} */
const ESCAPES = { "\\\\": "\\", '\\"': '"', "\\n": "\n" };
/** @type {Record<string, number>} */
const WORDS = { "+Inf": Infinity, "-Inf": -Infinity, NaN };

/** @param {string} text @returns {Sample[]} Throws Error for a line that is neither a sample nor a comment. */
export function parseMetrics(text) {
  const lines = text.split("\n").filter((line) => line.trim() !== "" && !line.startsWith("#"));
  return lines.map((line) => {
    const [, name, labels = "", value] = LINE.exec(line.trim()) ?? [];
    if (name === undefined) throw new Error(`This is no line of metrics: ${line}`);
    return { name, labels: parseLabels(labels), value: WORDS[value] ?? Number(value) };
  });
}

/** @param {string} text @returns {Labels} */
function parseLabels(text) {
  return Object.fromEntries(
    [...text.matchAll(LABEL)].map(([, name, value]) => [name, value.replace(/\\[\\"n]/g, (pair) => ESCAPES[pair])]),
  );
}

/** One answer of /metrics. */
export class Metrics {
  /** @param {Sample[]} samples @param {number} at when it was asked for, in ms */
  constructor(samples, at) {
    this.at = at;
    /** @type {Map<string, Sample[]>} */
    this.byName = new Map();
    for (const sample of samples) {
      const known = this.byName.get(sample.name);
      if (known) known.push(sample);
      else this.byName.set(sample.name, [sample]);
    }
  }

  /**
   * The samples that have these labels, among others.
   *
   * @param {string} name
   * @param {Labels} [labels]
   */
  samples(name, labels = {}) {
    const wanted = Object.entries(labels);
    return (this.byName.get(name) ?? []).filter((sample) =>
      wanted.every(([key, value]) => sample.labels[key] === value),
    );
  }

  /** Their sum; 0 of none. @param {string} name @param {Labels} [labels] */
  sum(name, labels) {
    return this.samples(name, labels).reduce((sum, { value }) => sum + value, 0);
  }

  /** The values of a label. @param {string} name @param {string} label @returns {string[]} */
  valuesOf(name, label) {
    return [...new Set(this.samples(name).map(({ labels }) => labels[label]))];
  }
}

/** What happened between two answers of one server. */
export class Interval {
  /** @param {Metrics} before @param {Metrics} after */
  constructor(before, after) {
    this.seconds = (after.at - before.at) / 1000;
    this.after = after;
    // A server that was started again counts from 0.
    this.before = countsFell(before, after) ? new Metrics([], before.at) : before;
  }

  /** By how much a counter grew. @param {string} name @param {Labels} [labels] */
  growth(name, labels) {
    return this.after.sum(name, labels) - this.before.sum(name, labels);
  }

  /** The mean of what a histogram observed; null if that is nothing. @param {string} name @param {Labels} [labels] */
  mean(name, labels) {
    const count = this.growth(`${name}_count`, labels);
    return count > 0 ? this.growth(`${name}_sum`, labels) / count : null;
  }

  /**
   * The upper bound of the largest value that a histogram observed, as its buckets know it; null if that is nothing.
   *
   * @param {string} name
   * @param {Labels} [labels]
   */
  largest(name, labels = {}) {
    const bounds = this.after.valuesOf(`${name}_bucket`, "le").sort((a, b) => bound(a) - bound(b));
    let largest = null;
    let below = 0;
    for (const le of bounds) {
      const upTo = this.growth(`${name}_bucket`, { ...labels, le });
      if (upTo > below) largest = bound(le);
      below = upTo;
    }
    return largest;
  }
}

/** @param {string} le */
function bound(le) {
  return WORDS[le] ?? Number(le);
}

/** Whether a count is less than it was. @param {Metrics} before @param {Metrics} after */
function countsFell(before, after) {
  const counters = [...before.byName.keys()].filter((name) => /_(total|count)$/.test(name));
  return counters.some((name) => after.sum(name) < before.sum(name));
}

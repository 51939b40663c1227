/** A plot of lines in the page's colours: uPlot, made to fit its element. Its numbers stand beside it as words or a table. */

import { el } from "./dom.js";

/**
 * @import uPlotType from "../vendor/uPlot"
 *
 * @typedef {Object} Line
 * @property {string} name
 * @property {string} colour a colour variable of the CSS, "--plot-1"
 * @property {Array<number | null>} values null: a gap
 *
 * @typedef {{value: number, name: string, colour: string}} Limit a horizontal line
 *
 * @typedef {Object} Data
 * @property {number[]} x
 * @property {Line[]} lines
 * @property {Limit[]} [limits]
 * @property {number | null} [room] below it the ground is shaded
 * @property {number | null} [marked] a vertical line
 *
 * @typedef {Object} Options
 * @property {string} label for a screen reader
 * @property {(value: number) => string} format of the vertical axis
 * @property {(value: number) => string} formatX
 * @property {2 | 10} [base] of the vertical axis' ticks: 2 for bytes
 * @property {boolean} [isLog] the vertical axis is logarithmic; otherwise it begins at 0
 * @property {[number, number]} [range] of x; the data's if it is left out
 * @property {number} [height] in pixels
 * @property {(index: number | null) => void} [onpoint] the pointer is nearest to this x; null: it left
 * @property {(index: number) => void} [onpick] this x was clicked
 */

/** How far a linear scale must be too large before it shrinks: a scale that follows each value would flicker. */
const TOO_LARGE = 4;
const MOST_TICKS = 6;
const POWERS_OF_2 = Array.from({ length: 50 }, (_, power) => 2 ** power);
const FONT = "12px system-ui, sans-serif";

/** uPlot's script makes a global; only the views that plot load it. */
await new Promise((resolve, reject) => {
  const src = String(new URL("../vendor/uPlot.iife.min.js", import.meta.url));
  document.head.append(el("script", { src, onload: resolve, onerror: reject }));
});

/** The colours of the lines of a plot, in turn. @param {number} index */
export function lineColour(index) {
  return `--plot-${(index % 6) + 1}`;
}

export class Plot {
  /** @param {Options} options */
  constructor(options) {
    this.options = options;
    /** @type {Data} */
    this.data = { x: [], lines: [] };
    /** The upper end of a linear scale. */
    this.top = 0;
    /** @type {uPlotType | null} */
    this.drawn = null;
    this.element = el("div", { class: "plot", role: "img", "aria-label": options.label });
    new ResizeObserver(() => this.#fit()).observe(this.element);
    window.addEventListener("themechange", () => this.#draw());
  }

  /** @param {Data} data */
  show(data) {
    const isAlike = sameLines(this.data.lines, data.lines);
    this.data = data;
    if (this.drawn === null || !isAlike) this.#draw();
    else this.drawn.setData(this.#columns());
  }

  /** Another vertical line. @param {number | null} marked */
  mark(marked) {
    this.data.marked = marked;
    this.drawn?.redraw(false);
  }

  #columns() {
    return /** @type {uPlotType.AlignedData} */ ([this.data.x, ...this.data.lines.map(({ values }) => values)]);
  }

  #size() {
    return { width: this.element.clientWidth, height: this.options.height ?? 180 };
  }

  #fit() {
    const size = this.#size();
    if (size.width === 0) return; // it is not on the page
    if (this.drawn === null) this.#draw();
    else if (this.drawn.width !== size.width) this.drawn.setSize(size);
  }

  #draw() {
    this.drawn?.destroy();
    this.drawn = null;
    const size = this.#size();
    if (size.width === 0) return;
    const { base = 10, isLog = false, onpoint = () => {}, onpick = () => {} } = this.options;
    const { uPlot } = /** @type {{uPlot: typeof uPlotType}} */ (/** @type {unknown} */ (window));
    const axis = {
      stroke: this.#colour("--muted"),
      grid: { stroke: this.#colour("--line"), width: 1 },
      ticks: { show: false },
      font: FONT,
    };
    /** @type {uPlotType.Options} */
    const options = {
      ...size,
      legend: { show: false },
      cursor: { show: this.options.onpoint !== undefined, drag: { x: false, y: false }, y: false },
      scales: {
        x: {
          time: false,
          range: (_, low, high) => this.options.range ?? (low < high ? [low, high] : [low - 1, low + 1]),
        },
        y: { distr: isLog ? 3 : 1, log: base, range: () => this.#range() },
      },
      axes: [
        { ...axis, size: 28, space: 56, values: (_, values) => values.map(this.options.formatX) },
        {
          ...axis,
          size: 72,
          values: (_, values) => values.map((value) => (value === null ? "" : this.options.format(value))),
          ...(isLog ? { splits: (_, __, low, high) => powers(base, low, high), filter: (_, values) => values } : {}),
          ...(!isLog && base === 2 ? { incrs: POWERS_OF_2 } : {}),
        },
      ],
      series: [
        {},
        ...this.data.lines.map(({ name, colour }) => ({
          label: name,
          stroke: this.#colour(colour),
          width: 2,
          points: { show: true, size: 5, fill: this.#colour(colour) },
        })),
      ],
      hooks: {
        drawClear: [(plot) => this.#shade(plot)],
        draw: [(plot) => this.#rule(plot)],
        setCursor: [(plot) => onpoint((plot.cursor.left ?? -1) < 0 ? null : (plot.cursor.idx ?? null))],
      },
    };
    this.drawn = new uPlot(options, this.#columns(), this.element);
    this.drawn.over.addEventListener("click", () => {
      const index = this.drawn?.cursor.idx;
      if (index != null) onpick(index);
    });
  }

  /** Of the vertical scale. @returns {[number, number]} */
  #range() {
    const { lines, limits = [] } = this.data;
    const values = [...lines.flatMap((line) => line.values), ...limits.map(({ value }) => value)];
    const shown = values.filter((value) => value !== null && value > 0).map(Number);
    const most = Math.max(...shown, 0);
    if (this.options.isLog) return shown.length > 0 ? [Math.min(...shown) / 1.6, most * 1.6] : [1, 10];
    if (most > this.top || most * TOO_LARGE < this.top) this.top = round(most, this.options.base ?? 10);
    return [0, this.top || 1];
  }

  /** The ground under the lines. @param {uPlotType} plot */
  #shade(plot) {
    const { room } = this.data;
    if (room == null) return;
    const { ctx, bbox } = plot;
    const top =
      room > 0
        ? Math.min(Math.max(plot.valToPos(room, "y", true), bbox.top), bbox.top + bbox.height)
        : bbox.top + bbox.height;
    ctx.save();
    ctx.fillStyle = this.#colour("--plot-room");
    ctx.fillRect(bbox.left, top, bbox.width, bbox.top + bbox.height - top);
    ctx.restore();
  }

  /** The limits, and the marked x. @param {uPlotType} plot */
  #rule(plot) {
    const { ctx, bbox } = plot;
    const { limits = [], marked } = this.data;
    const pixel = devicePixelRatio;
    ctx.save();
    ctx.lineWidth = 1.5 * pixel;
    ctx.font = FONT.replace("12", String(12 * pixel));
    ctx.textAlign = "right";
    ctx.textBaseline = "alphabetic";
    for (const { value, name, colour } of limits) {
      const y = plot.valToPos(value, "y", true);
      if (!(y >= bbox.top && y <= bbox.top + bbox.height)) continue;
      ctx.strokeStyle = ctx.fillStyle = this.#colour(colour);
      ctx.setLineDash([6 * pixel, 4 * pixel]);
      line(ctx, bbox.left, y, bbox.left + bbox.width, y);
      const isLow = y - bbox.top < 18 * pixel || value < Math.max(...limits.map((limit) => limit.value));
      ctx.fillText(name, bbox.left + bbox.width - 4 * pixel, isLow ? y + 14 * pixel : y - 5 * pixel, bbox.width);
    }
    if (marked != null) {
      ctx.strokeStyle = this.#colour("--accent");
      ctx.setLineDash([]);
      const x = plot.valToPos(marked, "x", true);
      line(ctx, x, bbox.top, x, bbox.top + bbox.height);
    }
    ctx.restore();
  }

  /** A canvas knows no variables. @param {string} variable */
  #colour(variable) {
    this.element.style.color = `var(${variable})`;
    const { color } = getComputedStyle(this.element);
    this.element.style.color = "";
    return color;
  }
}

/** @param {CanvasRenderingContext2D} context @param {number} fromX @param {number} fromY @param {number} toX @param {number} toY */
function line(context, fromX, fromY, toX, toY) {
  context.beginPath();
  context.moveTo(fromX, fromY);
  context.lineTo(toX, toY);
  context.stroke();
}

/** A little over a value: 1, 2 or 5 times a power of 10, or a power of 2. @param {number} value @param {2 | 10} base */
function round(value, base) {
  if (value <= 0) return 0;
  const power = base ** Math.floor(Math.log(value * 1.05) / Math.log(base));
  return [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= value * 1.05) ?? 10 * power;
}

/**
 * Powers of a base in a range; of many each second or third, of few 2 and 5 times them too.
 *
 * @param {number} base
 * @param {number} low
 * @param {number} high
 */
function powers(base, low, high) {
  const first = Math.ceil(Math.log(low) / Math.log(base));
  const last = Math.floor(Math.log(high) / Math.log(base));
  const step = Math.max(1, Math.ceil((last - first + 1) / MOST_TICKS));
  const found = [];
  for (let power = Math.floor(first / step) * step - step; power <= last; power += step) found.push(base ** power);
  const isFew = base === 10 && last - first < 2;
  return found
    .flatMap((power) => (isFew ? [power, 2 * power, 5 * power] : [power]))
    .filter((tick) => tick >= low && tick <= high);
}

/** @param {Line[]} a @param {Line[]} b */
function sameLines(a, b) {
  return (
    a.length === b.length && a.every(({ name, colour }, index) => name === b[index].name && colour === b[index].colour)
  );
}

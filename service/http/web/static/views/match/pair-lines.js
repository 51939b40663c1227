/** Lines between patches of two maps, drawn over both. */

import { rampColour } from "../../numbers/colours.js";
import { el } from "../../parts/dom.js";

/**
 * @import {Pair} from "../../numbers/matching.js"
 * @import {TokenMap} from "../../parts/token-map.js"
 */

export class PairLines {
  /**
   * @param {HTMLElement} frame holds both maps; the lines lie over it
   * @param {TokenMap} left
   * @param {TokenMap} right
   */
  constructor(frame, left, right) {
    this.frame = frame;
    this.left = left;
    this.right = right;
    /** @type {Pair[]} */
    this.pairs = [];
    /** @type {[number, number]} */
    this.range = [0, 1];
    this.canvas = el("canvas", { class: "pair-lines", "aria-hidden": "true" });
    frame.append(this.canvas);
    new ResizeObserver(() => this.#draw()).observe(frame);
  }

  /** @param {Pair[]} pairs the most alike first, which are drawn on top @param {[number, number]} range of the colours */
  show(pairs, range) {
    this.pairs = pairs;
    this.range = range;
    this.#draw();
  }

  #draw() {
    const { left: x0, top: y0, width, height } = this.frame.getBoundingClientRect();
    const scale = window.devicePixelRatio;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const context = this.canvas.getContext("2d");
    if (context === null) return;
    context.scale(scale, scale);
    context.translate(-x0, -y0);
    const [low, high] = this.range;
    for (const { left, right, cosine } of [...this.pairs].reverse()) {
      const ends = [this.left.placeOf(left), this.right.placeOf(right)];
      const colour = rampColour(high > low ? (cosine - low) / (high - low) : 1); // brightest without a range
      // the rim sets each colour of the ramp off from pictures and both themes
      for (const [line, style] of /** @type {Array<[number, string]>} */ ([
        [4, "rgb(128 128 128 / 70%)"],
        [2, colour],
      ])) {
        context.lineWidth = line;
        context.strokeStyle = context.fillStyle = style;
        context.beginPath();
        context.moveTo(ends[0].x, ends[0].y);
        context.lineTo(ends[1].x, ends[1].y);
        context.stroke();
        for (const { x, y } of ends) {
          context.beginPath();
          context.arc(x, y, line / 2 + 2, 0, 2 * Math.PI);
          context.fill();
        }
      }
    }
  }
}

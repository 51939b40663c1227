/** A picture as an encoder sees it, with a colour for every patch over it, and a cursor that goes from patch to patch. */

import { el } from "./dom.js";

/**
 * @import {Box} from "../numbers/geometry.js"
 * @import {Picture} from "../pictures/picture.js"
 *
 * @typedef {{x: number, y: number}} Point in the picture's pixels
 */

/** The longest side of what is drawn, unless it is smaller. */
const DRAWN_SIDE = 900;

export class TokenMap {
  /**
   * @param {Object} handlers
   * @param {(index: number | null, point: Point | null) => void} [handlers.onpoint] the pointer, a finger or the arrow
   *   keys are at this patch; null: they left. At most once a frame
   * @param {(index: number) => void} [handlers.onpick] a patch was clicked, or Enter pressed on it
   * @param {Object} [options]
   * @param {boolean} [options.hasKeys] whether the keyboard stops here; not if another map moves this one's cursor
   * @param {number} [options.side] the longest side of what is drawn, in pixels
   */
  constructor({ onpoint = () => {}, onpick } = {}, { hasKeys = true, side = DRAWN_SIDE } = {}) {
    this.onpoint = onpoint;
    this.onpick = onpick;
    this.hasKeys = hasKeys;
    this.side = side;
    this.grid = { rows: 1, cols: 1 };
    /** @type {Box} */
    this.box = { left: 0, top: 0, width: 1, height: 1 };
    /** The patch of the cursor. @type {number | null} */
    this.at = null;
    this.picture = el("canvas", { class: "picture" });
    this.colours = el("canvas", { class: "colours" });
    this.lines = el("div", { class: "lines" });
    this.cursor = el("div", { class: "cursor", hidden: true });
    this.match = el("div", { class: "match", hidden: true });
    this.stage = el(
      "div",
      {
        class: "stage",
        tabindex: hasKeys ? "0" : null,
        role: hasKeys ? "application" : "img",
        "aria-roledescription": hasKeys ? "patch grid" : null,
        onpointermove: (event) => this.#point(event),
        onpointerdown: (event) => this.#point(event),
        onpointerleave: () => this.#leave(),
        onclick: (event) => this.#pick(event),
        onkeydown: (event) => this.#key(event),
        onblur: () => this.#leave(),
      },
      this.picture,
      this.colours,
      this.lines,
      this.match,
      this.cursor,
    );
    this.caption = el("figcaption");
    this.told = el("span", { class: "visually-hidden", role: "status" });
    this.element = el("figure", { class: "token-map" }, this.stage, this.caption, this.told);
  }

  /**
   * Show the part of a picture that the encoder sees.
   *
   * @param {Picture} picture
   * @param {Box} box
   * @param {string} label for a screen reader
   */
  show(picture, box, label) {
    this.box = box;
    const keys = `. Arrow keys go from patch to patch${this.onpick ? ", Enter pins one" : ""}.`;
    this.stage.setAttribute("aria-label", `${label}${this.hasKeys ? keys : ""}`);
    const scale = Math.min(1, this.side / Math.max(box.width, box.height));
    this.picture.width = Math.max(1, Math.round(box.width * scale));
    this.picture.height = Math.max(1, Math.round(box.height * scale));
    this.stage.style.aspectRatio = `${box.width} / ${box.height}`;
    this.stage.style.setProperty("--ratio", String(box.width / box.height));
    const context = this.picture.getContext("2d");
    if (!context || !picture.image) return;
    const [x, y] = [this.picture.width / box.width, this.picture.height / box.height];
    context.drawImage(picture.image, -box.left * x, -box.top * y, picture.width * x, picture.height * y);
  }

  /** @param {{rows: number, cols: number}} grid */
  setGrid({ rows, cols }) {
    if (this.grid.rows !== rows || this.grid.cols !== cols) this.at = null;
    this.grid = { rows, cols };
    this.colours.width = cols;
    this.colours.height = rows;
    this.lines.style.setProperty("--rows", String(rows));
    this.lines.style.setProperty("--cols", String(cols));
  }

  /**
   * Colour the patches.
   *
   * @param {Uint8ClampedArray<ArrayBuffer> | null} rgba [rows * cols, 4]; null: none, the picture alone
   */
  paint(rgba) {
    this.colours.hidden = rgba === null;
    if (rgba === null) return;
    this.colours.getContext("2d")?.putImageData(new ImageData(rgba, this.grid.cols, this.grid.rows), 0, 0);
  }

  /**
   * Frame a patch: `cursor` where the user points, `match` the patch that answers it.
   *
   * @param {"cursor" | "match"} frame
   * @param {number | null} index null: none
   */
  mark(frame, index) {
    const element = this[frame];
    element.hidden = index === null;
    if (index === null) return;
    const { rows, cols } = this.grid;
    element.style.left = `${((index % cols) / cols) * 100}%`;
    element.style.top = `${(Math.floor(index / cols) / rows) * 100}%`;
    element.style.width = `${100 / cols}%`;
    element.style.height = `${100 / rows}%`;
  }

  /** Say a sentence to a screen reader. @param {string} sentence */
  tell(sentence) {
    this.told.textContent = sentence;
  }

  /** The patch over a point of the picture; null if the encoder does not see it. @param {Point} point @returns {number | null} */
  indexAt({ x, y }) {
    const { rows, cols } = this.grid;
    const col = Math.floor(((x - this.box.left) / this.box.width) * cols);
    const row = Math.floor(((y - this.box.top) / this.box.height) * rows);
    return row >= 0 && row < rows && col >= 0 && col < cols ? row * cols + col : null;
  }

  /** The middle of a patch, in the picture's pixels. @param {number} index @returns {Point} */
  pointOf(index) {
    const { rows, cols } = this.grid;
    return {
      x: this.box.left + (((index % cols) + 0.5) / cols) * this.box.width,
      y: this.box.top + ((Math.floor(index / cols) + 0.5) / rows) * this.box.height,
    };
  }

  /** The middle of a patch, in the window's pixels. @param {number} index @returns {Point} */
  placeOf(index) {
    const { rows, cols } = this.grid;
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    return {
      x: left + (((index % cols) + 0.5) / cols) * width,
      y: top + ((Math.floor(index / cols) + 0.5) / rows) * height,
    };
  }

  /** In words. @param {number} index */
  nameOf(index) {
    return `row ${Math.floor(index / this.grid.cols) + 1}, column ${(index % this.grid.cols) + 1}`;
  }

  /** @param {PointerEvent} event */
  #point(event) {
    const { left, top, width, height } = this.stage.getBoundingClientRect();
    const point = {
      x: this.box.left + ((event.clientX - left) / width) * this.box.width,
      y: this.box.top + ((event.clientY - top) / height) * this.box.height,
    };
    const index = this.indexAt(point);
    if (index === this.at) return;
    this.#moveTo(index);
  }

  /** @param {number | null} index */
  #moveTo(index) {
    this.at = index;
    cancelAnimationFrame(this.frame ?? 0);
    this.frame = requestAnimationFrame(() => this.onpoint(index, index === null ? null : this.pointOf(index)));
  }

  #leave() {
    if (this.at !== null) this.#moveTo(null);
  }

  /** @param {PointerEvent} event */
  #pick(event) {
    this.#point(event);
    if (this.at !== null) this.onpick?.(this.at);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { rows, cols } = this.grid;
    const at = this.at ?? Math.floor(rows / 2) * cols + Math.floor(cols / 2);
    const [row, col] = [Math.floor(at / cols), at % cols];
    /** @type {Record<string, number>} */
    const moves = {
      ArrowLeft: row * cols + Math.max(col - 1, 0),
      ArrowRight: row * cols + Math.min(col + 1, cols - 1),
      ArrowUp: Math.max(row - 1, 0) * cols + col,
      ArrowDown: Math.min(row + 1, rows - 1) * cols + col,
    };
    if (event.key in moves) this.#moveTo(this.at === null ? at : moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.onpick?.(at);
    else if (event.key === "Escape") this.#leave();
    else return;
    event.preventDefault();
  }
}

/**
 * Tokens: the patch grid over each picture, coloured by the tokens' principal components or lengths; under the pointer,
 * by their cosine with the token there. Up to three panels of encoder, layer and resolution side by side, whose pointers
 * are linked.
 */

import { patchesOf, tokensCall, tokensOf } from "../../api/embed.js";
import { componentColours, heatColours } from "../../numbers/colours.js";
import { compute } from "../../numbers/compute.js";
import { boxSeen } from "../../numbers/geometry.js";
import { argmax, products, rangeOf, rowOf } from "../../numbers/vectors.js";
import { button, choice, el, labelled } from "../../parts/dom.js";
import { EncoderFields, askedInLink, askedOfLink } from "../../parts/encoder-fields.js";
import { colourBar } from "../../parts/legend.js";
import { TokenMap } from "../../parts/token-map.js";
import { View } from "../view.js";

/**
 * @import {Asked, Tokens} from "../../api/embed.js"
 * @import {Model} from "../../api/models.js"
 * @import {Picture} from "../../pictures/pictures.js"
 * @import {Point} from "../../parts/token-map.js"
 * @import {Page} from "../view.js"
 *
 * @typedef {{picture: Picture, index: number, isPrefix: boolean}} Place a token of a picture; index among its kind
 */

const MOST_PANELS = 3;
const MOST_PICTURES = 6;
const COLOURINGS = [
  {
    value: "components",
    text: "principal components",
    meaning:
      "Colours: the three directions in which the tokens differ most (principal components), as red, green and blue. " +
      "Patches of one colour are alike to the encoder.",
  },
  { value: "lengths", text: "lengths (norms)", meaning: "Colours: how long each token is, as a vector." },
  { value: "none", text: "none: the picture", meaning: "" },
];

export class TokensView extends View {
  static key = "tokens";
  static title = "Tokens";
  static intro =
    "What does an encoder see? It divides a picture into patches and describes each by a token, a list of numbers. Point at " +
    "a patch: the others take the colour of their likeness to it. Click it to read its numbers.";
  static words = /** @type {const} */ ([
    "encoder",
    "token",
    "prefix token",
    "layer",
    "resolution",
    "principal components",
    "cosine",
  ]);

  /** @param {Page} page */
  constructor(page) {
    super(page);
    this.colouring = "components";
    this.isJoint = false;
    this.opacity = 0.75;
    /** @type {Panel[]} */
    this.panels = [];
    this.controls = el("div", { class: "row controls" });
    this.meaning = el("p", { class: "note meaning" });
    this.place = el("div", { class: "panels" });
    this.numbers = el("div", { class: "numbers", "aria-live": "polite" });
    this.element.append(this.controls, this.meaning, this.place, this.numbers);
  }

  /** @param {URLSearchParams} parameters */
  restore(parameters) {
    const { models } = this.page;
    const colouring = parameters.get("colours");
    this.colouring = COLOURINGS.find(({ value }) => value === colouring)?.value ?? "components";
    this.isJoint = parameters.has("joint");
    this.opacity = Number(parameters.get("opacity") ?? 0.75) || 0;
    const links = parameters.getAll("panel").slice(0, MOST_PANELS);
    for (const panel of this.panels) panel.fields.stop();
    this.panels = (links.length > 0 ? links : oneOfEach(models)).map(
      (link) => new Panel(this, askedOfLink(models, link)),
    );
    this.#drawControls();
  }

  parameters() {
    const parameters = new URLSearchParams();
    for (const panel of this.panels) parameters.append("panel", askedInLink(panel.asked));
    if (this.colouring !== "components") parameters.set("colours", this.colouring);
    if (this.isJoint) parameters.set("joint", "");
    if (this.opacity !== 0.75) parameters.set("opacity", String(this.opacity));
    return parameters;
  }

  calls() {
    return this.panels.flatMap((panel) => this.pictures().map((picture) => tokensCall(picture, panel.asked)));
  }

  models() {
    return this.panels.map((panel) => panel.asked.model);
  }

  /** @returns {Picture[]} */
  pictures() {
    return this.page.pictures.chosen.slice(0, MOST_PICTURES);
  }

  leave() {
    for (const panel of this.panels) panel.fields.stop();
  }

  /** @returns {Promise<boolean>} whether all is shown */
  async update() {
    for (const panel of this.panels) panel.refresh(this.page.models);
    this.place.replaceChildren(...this.panels.map((panel) => panel.element));
    this.place.style.setProperty("--panels", String(this.panels.length));
    this.page.changed();
    const pictures = this.pictures();
    if (pictures.length === 0) {
      for (const panel of this.panels) panel.empty();
      this.page.say("Choose a picture.");
      return false;
    }
    const left = this.page.pictures.chosen.length - pictures.length;
    const total = pictures.length * this.panels.length;
    const what = `Embedding ${total} ${total === 1 ? "picture" : "pictures"}`;
    const isDone = await this.page.work(what, async ({ signal, progress }) => {
      let done = 0;
      for (const panel of this.panels) {
        await panel.load(pictures, signal, () => progress(++done, total));
      }
    });
    if (isDone && left > 0) this.page.say(`The first ${MOST_PICTURES} pictures are shown; ${left} more are chosen.`);
    return isDone;
  }

  #drawControls() {
    const explain = () => {
      this.meaning.textContent = COLOURINGS.find(({ value }) => value === this.colouring)?.meaning ?? "";
    };
    const recolour = () => {
      explain();
      this.page.changed();
      for (const panel of this.panels) panel.recolour();
    };
    const colouring = choice(COLOURINGS, this.colouring, (value) => {
      this.colouring = value;
      recolour();
    });
    const joint = el("input", {
      type: "checkbox",
      checked: this.isJoint,
      onchange: () => {
        this.isJoint = joint.checked;
        recolour();
      },
    });
    const opacity = el("input", {
      type: "range",
      min: 0,
      max: 1,
      step: 0.05,
      value: this.opacity,
      oninput: () => {
        this.opacity = Number(opacity.value);
        this.place.style.setProperty("--opacity", opacity.value);
      },
      onchange: () => this.page.changed(),
    });
    this.place.style.setProperty("--opacity", String(this.opacity));
    explain();
    const beside = button("Compare with another", () => {
      const last = this.panels[this.panels.length - 1].asked;
      const others = this.page.models.filter((model) => !this.models().includes(model));
      this.panels.push(new Panel(this, others.length > 0 ? { model: others[0] } : { ...last }));
      this.#drawControls();
      this.update();
    });
    beside.title = "Another encoder, layer or resolution beside it";
    beside.disabled = this.panels.length >= MOST_PANELS;
    this.controls.replaceChildren(
      labelled("Colours", colouring),
      labelled("Colours over the picture", opacity),
      el("label", { class: "check" }, joint, " one set of colours for all pictures"),
      beside,
    );
  }

  /** @param {Panel} panel */
  remove(panel) {
    panel.fields.stop();
    this.panels = this.panels.filter((each) => each !== panel);
    this.#drawControls();
    this.update();
  }

  /**
   * The pointer is over a place of a picture, in one of the panels: all panels answer it.
   *
   * @param {Picture} picture
   * @param {Point | null} point null: it left
   */
  point(picture, point) {
    cancelAnimationFrame(this.frame ?? 0);
    this.frame = requestAnimationFrame(() => {
      for (const panel of this.panels) panel.point(picture, point);
    });
  }

  /** @param {Panel} panel @param {Place} place */
  pick(panel, { picture, index, isPrefix }) {
    const shown = panel.shownOf(picture);
    if (!shown?.tokens) return;
    const { tokens, map } = shown;
    const row = isPrefix ? index : tokens.prefix + index;
    const numbers = rowOf(tokens.values, tokens.width, row);
    const [low, high] = rangeOf(numbers);
    const text = Array.from(numbers, (value) => value.toPrecision(5)).join(", ");
    const name = isPrefix ? prefixName(index) : `token at ${map.nameOf(index)}`;
    this.numbers.replaceChildren(
      el("h3", {}, `${panel.asked.model.id}, ${picture.name}: ${name}`),
      el(
        "p",
        { class: "note" },
        `shape [${tokens.width}], ${tokens.dtype}; row ${row} of [${tokens.prefix + tokens.rows * tokens.cols}, ${tokens.width}]` +
          `; length ${tokens.lengths[row].toPrecision(4)}, from ${low.toPrecision(4)} to ${high.toPrecision(4)}`,
      ),
      el("pre", { tabindex: "0" }, text),
      button("Close", () => this.numbers.replaceChildren()),
    );
    this.numbers.scrollIntoView({ block: "nearest" });
  }
}

/** The first two families served, such as a ViT beside a CNN: ids. @param {Model[]} models */
function oneOfEach(models) {
  const families = new Map([...models].reverse().map(({ family, id }) => [family, id]));
  return models
    .filter(({ family, id }) => families.get(family) === id)
    .map(({ id }) => id)
    .slice(0, 2);
}

/** An encoder, a layer and a resolution, with the pictures as they see them. */
class Panel {
  /** @param {TokensView} view @param {Asked} asked */
  constructor(view, asked) {
    this.view = view;
    this.fields = new EncoderFields(view.page.models, asked, () => view.update());
    /** @type {Shown[]} */
    this.shown = [];
    /** Counts what was asked for, so that late colours are dropped. */
    this.turn = 0;
    this.about = el("p", { class: "note about" });
    this.place = el("div", { class: "maps" });
    this.element = el(
      "section",
      { class: "panel", "aria-label": asked.model.id },
      this.fields.element,
      this.about,
      this.place,
    );
  }

  get asked() {
    return this.fields.asked;
  }

  /** The server's encoders may be others now. @param {import("../../api/models.js").Model[]} models */
  refresh(models) {
    this.fields.refresh(models);
    const { panels } = this.view;
    this.element.setAttribute("aria-label", this.asked.model.id);
    this.element.querySelector(".close")?.remove();
    if (panels.length > 1) {
      const close = button("×", () => this.view.remove(this), {
        class: "quiet close",
        "aria-label": "Remove this panel",
      });
      this.element.append(close);
    }
  }

  empty() {
    this.shown = [];
    this.about.textContent = "";
    this.place.replaceChildren(el("p", { class: "note" }, "Drop a picture on this page, or take a sample."));
  }

  /** @param {Picture} picture */
  shownOf(picture) {
    return this.shown.find((each) => each.picture === picture);
  }

  /**
   * @param {Picture[]} pictures
   * @param {AbortSignal} signal
   * @param {() => void} onone one of them is there
   */
  async load(pictures, signal, onone) {
    this.turn++;
    const { asked } = this;
    /** @type {Tokens[]} */
    const loaded = [];
    for (const picture of pictures) {
      loaded.push(await tokensOf(picture, asked, signal));
      signal.throwIfAborted();
      onone();
    }
    const old = this.shown;
    this.shown = pictures.map((picture, index) => {
      const shown = old.find((each) => each.picture === picture) ?? new Shown(this, picture);
      shown.show(asked, loaded[index]);
      return shown;
    });
    const elements = this.shown.map((shown) => shown.element);
    if (!same(elements, [...this.place.children])) this.place.replaceChildren(...elements);
    const [{ tokens }] = this.shown;
    if (tokens) {
      const { rows, cols, width, prefix, dtype } = tokens;
      const ahead = prefix > 0 ? ` and ${prefix} prefix ${prefix === 1 ? "token" : "tokens"}` : "";
      this.about.textContent = `${rows} × ${cols} = ${rows * cols} tokens${ahead}, each ${width} numbers (${dtype})`;
    }
    await this.recolour();
  }

  /** The colours at rest. */
  async recolour() {
    const turn = ++this.turn;
    const { colouring, isJoint } = this.view;
    const shown = this.shown.filter((each) => each.tokens !== null);
    if (colouring === "components") {
      const groups = isJoint ? [shown] : shown.map((each) => [each]);
      for (const group of groups) {
        if (group.length === 0) continue;
        const rows = joined(group.map(({ tokens }) => patchesOf(/** @type {Tokens} */ (tokens))));
        const width = /** @type {Tokens} */ (group[0].tokens).width;
        const colours = componentColours(await compute("components", [rows, width]));
        if (turn !== this.turn) return;
        let at = 0;
        for (const each of group) {
          const bytes = each.count * 4;
          each.rest(colours.slice(at, at + bytes), null);
          at += bytes;
        }
      }
    } else if (colouring === "lengths") {
      const range = rangeOf(shown.flatMap((each) => [...each.patchLengths()]));
      for (const each of shown) {
        const own = isJoint ? range : rangeOf(each.patchLengths());
        each.rest(heatColours(each.patchLengths(), own), { name: "length", range: own });
      }
    } else {
      for (const each of shown) each.rest(null, null);
    }
  }

  /** @param {Picture} picture @param {Point | null} point */
  point(picture, point) {
    const from = this.shownOf(picture);
    const index = point && from ? from.map.indexAt(point) : null;
    if (!from?.tokens || index === null) {
      for (const each of this.shown) each.unpoint();
      return;
    }
    this.compare(from, rowOf(from.tokens.unit, from.tokens.width, from.tokens.prefix + index), index);
  }

  /**
   * Colour every patch by its cosine with a token.
   *
   * @param {Shown} from the picture that it belongs to
   * @param {Float32Array} token of length 1
   * @param {number | null} index of the patch; null for a prefix token
   */
  compare(from, token, index) {
    for (const each of this.shown) {
      if (each.tokens) each.compare(token, each === from ? index : null, each === from && index !== null);
    }
  }
}

/** A picture in a panel. */
class Shown {
  /** @param {Panel} panel @param {Picture} picture */
  constructor(panel, picture) {
    this.panel = panel;
    this.picture = picture;
    /** @type {Tokens | null} */
    this.tokens = null;
    const { view } = panel;
    this.map = new TokenMap({
      onpoint: (_, point) => view.point(picture, point),
      onpick: (index) => view.pick(panel, { picture, index, isPrefix: false }),
    });
    /** @type {Uint8ClampedArray<ArrayBuffer> | null} */
    this.colours = null;
    /** @type {{name: string, range: [number, number]} | null} */
    this.scale = null;
    this.about = el("div", { class: "name" });
    this.legend = el("div", { class: "legend" });
    this.prefix = el("div", { class: "prefix", role: "group", "aria-label": "Prefix tokens" });
    this.map.caption.append(this.about, this.legend, this.prefix);
    this.element = this.map.element;
  }

  get count() {
    return this.tokens ? this.tokens.rows * this.tokens.cols : 0;
  }

  patchLengths() {
    return this.tokens ? this.tokens.lengths.subarray(this.tokens.prefix) : new Float32Array(0);
  }

  /** @param {Asked} asked @param {Tokens} tokens */
  show(asked, tokens) {
    const { picture } = this;
    const box = boxSeen(picture, asked);
    this.map.show(picture, box, `${picture.name} as ${asked.model.id} sees it`);
    this.map.setGrid(tokens);
    this.about.textContent = cropSentence(picture, box);
    if (this.tokens !== tokens) this.map.paint(null);
    this.tokens = tokens;
    this.prefix.replaceChildren(
      ...Array.from({ length: tokens.prefix }, (_, index) => {
        const { view } = this.panel;
        const token = () => rowOf(tokens.unit, tokens.width, index);
        const compare = () => this.panel.compare(this, token(), null);
        const leave = () => view.point(picture, null);
        return el(
          "button",
          {
            type: "button",
            class: "token",
            title:
              "It belongs to no patch. Point: the patches take the colour of their cosine with it. Click: its numbers.",
            onpointerenter: compare,
            onfocus: compare,
            onpointerleave: leave,
            onblur: leave,
            onclick: () => view.pick(this.panel, { picture, index, isPrefix: true }),
          },
          prefixName(index),
        );
      }),
    );
  }

  /** The colours that are shown while nobody points. @param {Uint8ClampedArray<ArrayBuffer> | null} colours @param {{name: string, range: [number, number]} | null} scale */
  rest(colours, scale) {
    this.colours = colours;
    this.scale = scale;
    this.unpoint();
  }

  unpoint() {
    this.map.paint(this.colours);
    this.map.mark("cursor", null);
    this.map.mark("match", null);
    this.map.tell("");
    this.legend.replaceChildren(...(this.scale ? colourBar(this.scale.name, this.scale.range) : []));
  }

  /**
   * @param {Float32Array} token
   * @param {number | null} cursor the patch that it is of
   * @param {boolean} isOwn it is of this picture, so that its best match is itself
   */
  compare(token, cursor, isOwn) {
    const tokens = /** @type {Tokens} */ (this.tokens);
    const cosines = products(patchesOf(tokens, "unit"), token);
    const range = rangeOf(cosines);
    this.map.paint(heatColours(cosines, range));
    this.map.mark("cursor", cursor);
    this.map.mark("match", isOwn ? null : argmax(cosines));
    this.legend.replaceChildren(...colourBar("cosine", range));
    if (cursor === null) return;
    cosines[cursor] = -Infinity;
    const nearest = argmax(cosines);
    const other = nearest < 0 ? "" : `; most alike ${this.map.nameOf(nearest)}, cosine ${cosines[nearest].toFixed(2)}`;
    this.map.tell(`${this.map.nameOf(cursor)}${other}`);
  }
}

/** @param {number} index among the prefix tokens */
function prefixName(index) {
  return index === 0 ? "class token" : `register ${index}`;
}

/** @param {Picture} picture @param {import("../../numbers/geometry.js").Box} box */
function cropSentence(picture, box) {
  const { image, width, height, name } = picture;
  if (image === null) return "This browser cannot draw this picture; the server reads it.";
  const [w, h] = [box.width, box.height].map(Math.round);
  const isWhole = Math.abs(w - width) <= 1 && Math.abs(h - height) <= 1;
  return isWhole ? `${name}: ${width} × ${height}` : `${name}: the encoder sees ${w} × ${h} of ${width} × ${height}`;
}

/** @param {Float32Array[]} arrays */
function joined(arrays) {
  const all = new Float32Array(arrays.reduce((sum, each) => sum + each.length, 0));
  let at = 0;
  for (const each of arrays) {
    all.set(each, at);
    at += each.length;
  }
  return all;
}

/** @param {Element[]} a @param {Element[]} b */
function same(a, b) {
  return a.length === b.length && a.every((each, index) => each === b[index]);
}

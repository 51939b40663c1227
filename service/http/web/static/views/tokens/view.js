/**
 * Tokens: the patch grid over each picture, coloured by the tokens' principal components or lengths; under the pointer,
 * by their cosine with the token there. Up to three panels of encoder, layer and resolution side by side, whose pointers
 * are linked.
 */

import { tokensCall } from "../../api/embed.js";
import { counted } from "../../numbers/units.js";
import { rangeOf, rowOf } from "../../numbers/vectors.js";
import { button, choice, el, labelled, put } from "../../parts/dom.js";
import { askedInLink, askedOfLink } from "../../parts/encoder-fields.js";
import { View, leftOut } from "../view.js";
import { Panel } from "./panel.js";
import { prefixName } from "./picture-tokens.js";

/**
 * @import {Model} from "../../api/models.js"
 * @import {Picture} from "../../pictures/picture.js"
 * @import {Point} from "../../parts/token-map.js"
 * @import {Page} from "../view.js"
 *
 * @typedef {{picture: Picture, index: number, isPrefix: boolean}} Place a token of a picture; index among its kind
 */

const MOST_PANELS = 3;
const MOST_PICTURES = 6;
/** Of the colours over the picture. */
const OPACITY = 0.75;
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
    this.opacity = OPACITY;
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
    const opacity = Number(parameters.get("opacity") ?? NaN);
    this.opacity = opacity >= 0 && opacity <= 1 ? opacity : OPACITY;
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
    if (this.opacity !== OPACITY) parameters.set("opacity", String(this.opacity));
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
    put(this.place, ...this.panels.map((panel) => panel.element));
    this.numbers.replaceChildren(); // they are of other tokens
    this.place.style.setProperty("--panels", String(this.panels.length));
    this.page.changed();
    const pictures = this.pictures();
    if (pictures.length === 0) {
      for (const panel of this.panels) panel.empty();
      this.page.say("Choose a picture.");
      return false;
    }
    const total = pictures.length * this.panels.length;
    const what = `Embedding ${counted(total, "picture")}`;
    const outcome = await this.page.work(what, async ({ signal, progress }) => {
      let done = 0;
      await Promise.all(this.panels.map((panel) => panel.load(pictures, signal, () => progress(++done, total))));
    });
    if (outcome === "ended") for (const panel of this.panels) panel.hideOld();
    if (outcome === "done") this.page.say(leftOut(this.page.pictures.chosen, MOST_PICTURES));
    return outcome === "done";
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
    put(
      this.controls,
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
    for (const panel of this.panels) panel.point(picture, point);
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
    const name = isPrefix ? prefixName(index, panel.asked.model) : `token at ${map.nameOf(index)}`;
    this.numbers.replaceChildren(
      el("h3", {}, `${panel.asked.model.id}, ${picture.name}: ${name}`),
      el(
        "p",
        { class: "note" },
        `shape [${tokens.width}], ${tokens.dtype}; row ${row} of [${tokens.prefix + tokens.rows * tokens.cols}, ${tokens.width}]` +
          `; length ${tokens.lengths[row].toPrecision(4)}, from ${low.toPrecision(4)} to ${high.toPrecision(4)}`,
      ),
      el("pre", { tabindex: "0", "aria-live": "off" }, text),
      button("Close", () => {
        this.numbers.replaceChildren();
        map.stage.focus();
      }),
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

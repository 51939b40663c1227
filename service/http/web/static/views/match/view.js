/**
 * Match: two pictures against each other, patch by patch. Under the pointer, the cosine of every patch of the other
 * picture with the one there; at rest, lines between the patches that are each other's best match.
 */

import { patchesOf, tokensCall, tokensOf } from "../../api/embed.js";
import { meanCosine } from "../../numbers/matching.js";
import { asCosine, counted, grouped } from "../../numbers/units.js";
import { products, rangeOf, rowOf } from "../../numbers/vectors.js";
import { button, el } from "../../parts/dom.js";
import { EncoderFields, askedInLink, askedOfLink } from "../../parts/encoder-fields.js";
import { colourBar } from "../../parts/legend.js";
import { Slider } from "../../parts/slider.js";
import { cell, head, table } from "../../parts/table.js";
import { View } from "../view.js";
import { matchesOf } from "./matches.js";
import { PairLines } from "./pair-lines.js";
import { Side } from "./side.js";

/**
 * @import {Picture} from "../../pictures/picture.js"
 * @import {Page} from "../view.js"
 * @import {Matches} from "./matches.js"
 */

const FEW_LINES = 30;

export class MatchView extends View {
  static intro =
    "Which parts of two pictures are alike? A line joins two patches that are each other's best match: the brighter, " +
    "the more alike. Point at a patch to see how alike each patch of the other picture is.";
  static words = /** @type {const} */ (["encoder", "token", "layer", "resolution", "cosine"]);

  /** @param {Page} page */
  constructor(page) {
    super(page);
    this.most = FEW_LINES;
    /** @type {Matches | null} */
    this.matches = null;
    this.fields = this.#fieldsOf("");
    this.encoder = el("div", {}, this.fields.element);
    this.swap = button("Swap the pictures", () => {
      const [first, second, ...others] = this.page.pictures.chosenIds;
      this.page.pictures.choose([second, first, ...others]);
    });
    this.slider = new Slider("Lines", {
      say: (value) => `${value} of ${counted(this.matches?.pairs.length ?? 0, "pair")}`,
      oninput: (value) => {
        this.most = value;
        this.#rest();
      },
      onchange: () => this.page.changed(),
    });
    this.controls = el("div", { class: "row controls" }, this.encoder, this.slider.element, this.swap);
    this.missing = el("div", { class: "panel" });
    this.about = el("div", { class: "about" });
    this.legend = el("div", { class: "legend" });
    this.sides = [new Side(this, 0), new Side(this, 1)];
    this.place = el("div", { class: "match-pair" }, ...this.sides.map(({ element }) => element));
    this.lines = new PairLines(this.place, this.sides[0].map, this.sides[1].map);
    this.table = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Pairs" });
    this.details = el(
      "details",
      { ontoggle: () => this.#list() },
      el("summary", {}, "The pairs as a table"),
      this.table,
    );
    this.shown = el(
      "div",
      { class: "panel match-panel", hidden: true },
      this.about,
      this.legend,
      this.place,
      this.details,
    );
    this.element.append(this.controls, this.missing, this.shown);
  }

  /** @param {URLSearchParams} parameters */
  restore(parameters) {
    const most = Number(parameters.get("lines") ?? FEW_LINES);
    this.most = Number.isInteger(most) && most >= 0 ? most : FEW_LINES;
    this.fields.stop();
    this.fields = this.#fieldsOf(parameters.get("encoder") ?? "");
    this.encoder.replaceChildren(this.fields.element);
  }

  parameters() {
    const parameters = new URLSearchParams({ encoder: askedInLink(this.fields.asked) });
    if (this.most !== FEW_LINES) parameters.set("lines", String(this.most));
    return parameters;
  }

  calls() {
    return this.#pictures().map((picture) => tokensCall(picture, this.fields.asked));
  }

  models() {
    return [this.fields.asked.model];
  }

  leave() {
    this.fields.stop();
  }

  async update() {
    this.fields.refresh(this.page.models);
    this.page.changed();
    const pictures = this.#pictures();
    this.swap.disabled = this.slider.input.disabled = pictures.length < 2;
    this.missing.hidden = pictures.length === 2;
    this.shown.hidden = this.shown.hidden || pictures.length < 2;
    if (pictures.length < 2) {
      this.#askForTwo(pictures.length);
      return false;
    }
    const { asked } = this.fields;
    const outcome = await this.page.work("Matching 2 pictures", async (task) => {
      const left = await tokensOf(pictures[0], asked, task.signal);
      const right = await tokensOf(pictures[1], asked, task.signal);
      const isKnown = this.matches?.tokens[0] === left && this.matches.tokens[1] === right;
      if (!isKnown) this.matches = await matchesOf(left, right, task);
      this.sides[0].show(pictures[0], asked, left);
      this.sides[1].show(pictures[1], asked, right);
      this.shown.hidden = false;
      this.#say(pictures);
      this.#rest();
    });
    if (outcome === "ended") this.shown.hidden = true;
    return outcome === "done";
  }

  /** @param {string} link @returns {EncoderFields} */
  #fieldsOf(link) {
    const { models } = this.page;
    return new EncoderFields(models, askedOfLink(models, link), () => this.update());
  }

  #pictures() {
    return this.page.pictures.chosen.slice(0, 2);
  }

  /** @param {number} count of the pictures that are chosen */
  #askForTwo(count) {
    const { pictures } = this.page;
    const advice = "This view compares two pictures. Tick a second one above, or drop one and tick both.";
    this.missing.replaceChildren(el("p", {}, count === 0 ? advice.replace("a second one", "two") : advice));
    const sample = pictures.samples.find(({ file }) => !pictures.chosenIds.includes(`sample:${file}`));
    if (count === 1 && sample) {
      this.missing.append(button(`Take the sample “${sample.name}”`, () => pictures.chooseSample(sample, true)));
    }
  }

  /** @param {Picture[]} pictures */
  #say([left, right]) {
    if (this.matches === null) return;
    const { forth, back, pairs } = this.matches;
    const means = [meanCosine(forth), meanCosine(back)];
    const total = (means[0] + means[1]) / 2;
    const sentence =
      `: the cosine of a patch with its best match in the other picture, averaged over all patches ` +
      `(${left.name} ${asCosine(means[0])}, ${right.name} ${asCosine(means[1])}). ` +
      `${pairs.length === 1 ? "1 pair of patches is" : `${grouped(pairs.length)} pairs of patches are`} each other's best match.`;
    this.about.replaceChildren(el("p", {}, "Best-match score ", el("strong", {}, asCosine(total)), sentence));
  }

  /** Nobody points: the lines. */
  #rest() {
    if (this.matches === null) return;
    const { pairs } = this.matches;
    const drawn = Math.min(this.most, pairs.length);
    this.slider.show(drawn, pairs.length);
    for (const side of this.sides) side.rest();
    this.lines.show(pairs.slice(0, drawn), this.#lineRange());
    this.legend.replaceChildren(...colourBar("lines: cosine", this.#lineRange()));
    this.#list();
  }

  /** @returns {[number, number]} */
  #lineRange() {
    return rangeOf((this.matches?.pairs ?? []).map(({ cosine }) => cosine));
  }

  /** The drawn pairs as a table, if it is open. */
  #list() {
    if (!this.details.open || this.matches === null) return;
    const names = this.sides.map(({ map }) => map);
    const rows = this.lines.pairs.map((pair, index) =>
      el(
        "tr",
        { onpointerenter: () => this.#point(0, pair.left), onpointerleave: () => this.#leave() },
        cell(String(index + 1), true),
        cell(names[0].nameOf(pair.left)),
        cell(names[1].nameOf(pair.right)),
        cell(asCosine(pair.cosine), true),
      ),
    );
    const heads = [
      head("pair", true),
      ...this.sides.map(({ picture }) => head(picture?.name ?? "")),
      head("cosine", true),
    ];
    this.table.replaceChildren(table(heads, rows));
  }

  /**
   * The pointer is at a patch of one picture: the other answers.
   *
   * @param {number} which picture: 0 or 1
   * @param {number | null} patch null: it left
   */
  point(which, patch) {
    if (patch === null) this.#leave();
    else this.#point(which, patch);
  }

  #leave() {
    if (this.matches === null) return;
    const { pairs } = this.matches;
    for (const side of this.sides) side.rest();
    this.lines.show(pairs.slice(0, this.most), this.#lineRange());
  }

  /** @param {number} which @param {number} patch */
  #point(which, patch) {
    if (this.matches === null) return;
    const { tokens, forth, back } = this.matches;
    const [own, other] = [this.sides[which], this.sides[1 - which]];
    const token = rowOf(patchesOf(tokens[which], "unit"), tokens[which].width, patch);
    const cosines = products(patchesOf(tokens[1 - which], "unit"), token);
    const [there, again] = which === 0 ? [forth, back] : [back, forth];
    const best = there.index[patch];
    const isMutual = again.index[best] === patch;
    own.cursorAt(
      patch,
      `${own.map.nameOf(patch)}: best match ${other.map.nameOf(best)}, cosine ${asCosine(cosines[best])}, ` +
        (isMutual ? "mutual" : "not mutual"),
    );
    other.answer(cosines, best);
    const [left, right] = which === 0 ? [patch, best] : [best, patch];
    this.lines.show([{ left, right, cosine: cosines[best] }], [0, 0]);
  }
}

/** An encoder, a layer and a resolution, with the pictures as they see them. */

import { Problem } from "../../api/call.js";
import { patchesOf, tokensOf } from "../../api/embed.js";
import { componentColours, heatColours } from "../../numbers/colours.js";
import { compute } from "../../numbers/compute.js";
import { rangeOf, rowOf } from "../../numbers/vectors.js";
import { button, el, put } from "../../parts/dom.js";
import { EncoderFields } from "../../parts/encoder-fields.js";
import { PictureTokens } from "./picture-tokens.js";

/**
 * @import {Asked, Tokens} from "../../api/embed.js"
 * @import {Model} from "../../api/models.js"
 * @import {Point} from "../../parts/token-map.js"
 * @import {Picture} from "../../pictures/picture.js"
 * @import {TokensView} from "./view.js"
 */

export class Panel {
  /** @param {TokensView} view @param {Asked} asked */
  constructor(view, asked) {
    this.view = view;
    this.fields = new EncoderFields(view.page.models, asked, () => view.update());
    /** @type {PictureTokens[]} */
    this.shown = [];
    /** Counts what was asked for, so that late colours are dropped. */
    this.turn = 0;
    this.isLoaded = false;
    /** The components that are being found. @type {Promise<Float32Array> | null} */
    this.computing = null;
    this.about = el("p", { class: "note about" });
    this.place = el("div", { class: "maps" });
    this.close = button("×", () => view.remove(this), { class: "quiet close", "aria-label": "Remove this panel" });
    this.element = el("section", { class: "panel" }, this.fields.element, this.about, this.place, this.close);
  }

  get asked() {
    return this.fields.asked;
  }

  /** The server's encoders may be others now. @param {Model[]} models */
  refresh(models) {
    this.fields.refresh(models);
    this.element.setAttribute("aria-label", this.asked.model.id);
    this.close.hidden = this.view.panels.length === 1;
  }

  empty() {
    this.shown = [];
    this.about.textContent = "";
    this.place.hidden = false;
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
    this.isLoaded = false;
    const { asked } = this;
    /** @type {Array<Tokens | Problem>} */
    const loaded = [];
    for (const picture of pictures) {
      loaded.push(await tokensOf(picture, asked, signal).catch(onlyOfPicture));
      signal.throwIfAborted();
      onone();
    }
    const [tokens] = loaded.flatMap((each) => (each instanceof Problem ? [] : [each]));
    if (tokens === undefined) throw loaded[0];
    this.isLoaded = true;
    this.place.hidden = false;
    const old = this.shown;
    this.shown = pictures.map((picture, index) => {
      const shown = old.find((each) => each.picture === picture) ?? new PictureTokens(this, picture);
      const one = loaded[index];
      if (one instanceof Problem) shown.refuse(one.message);
      else shown.show(asked, one);
      return shown;
    });
    put(this.place, ...this.shown.map((shown) => shown.element));
    const { rows, cols, width, prefix, dtype } = tokens;
    const ahead = prefix > 0 ? ` and ${prefix} prefix ${prefix === 1 ? "token" : "tokens"}` : "";
    this.about.textContent = `${rows} × ${cols} = ${rows * cols} tokens${ahead}, each ${width} numbers (${dtype})`;
    await this.recolour();
  }

  /** What was asked for did not come: tokens that were asked for before must not be taken for it. */
  hideOld() {
    if (this.isLoaded) return;
    this.place.hidden = true;
    this.about.textContent = "";
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
        await this.computing?.catch(() => {}); // one at a time: a slider asks faster than they are found, and only the last counts
        if (turn !== this.turn) return;
        const rows = joined(group.map(({ tokens }) => patchesOf(/** @type {Tokens} */ (tokens))));
        const width = /** @type {Tokens} */ (group[0].tokens).width;
        this.computing = compute("components", [rows, width]);
        const colours = componentColours(await this.computing);
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
   * @param {PictureTokens} from the picture that it belongs to
   * @param {Float32Array} token of length 1
   * @param {number | null} index of the patch; null for a prefix token
   */
  compare(from, token, index) {
    for (const each of this.shown) {
      if (each.tokens) each.compare(token, each === from ? index : null, each === from && index !== null);
    }
  }
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

/** A problem of one picture, for its place; others are thrown. @param {unknown} error @returns {Problem} */
function onlyOfPicture(error) {
  if (error instanceof Problem && error.isOfPicture) return error;
  throw error;
}

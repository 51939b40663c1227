/** A picture in a panel, with its tokens as colours. */

import { patchesOf } from "../../api/embed.js";
import { heatColours } from "../../numbers/colours.js";
import { boxSeen } from "../../numbers/geometry.js";
import { asCosine } from "../../numbers/units.js";
import { argmax, products, rangeOf, rowOf } from "../../numbers/vectors.js";
import { el, put } from "../../parts/dom.js";
import { colourBar } from "../../parts/legend.js";
import { TokenMap } from "../../parts/token-map.js";

/**
 * @import {Asked, Tokens} from "../../api/embed.js"
 * @import {Model} from "../../api/models.js"
 * @import {Box} from "../../numbers/geometry.js"
 * @import {Picture} from "../../pictures/picture.js"
 * @import {Panel} from "./panel.js"
 */

export class PictureTokens {
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

  /** The server does not read it. @param {string} sentence */
  refuse(sentence) {
    this.tokens = null;
    this.map.stage.hidden = true;
    this.about.textContent = sentence;
    this.prefix.replaceChildren();
    this.rest(null, null);
  }

  /** @param {Asked} asked @param {Tokens} tokens */
  show(asked, tokens) {
    const { picture } = this;
    const box = boxSeen(picture, asked);
    this.map.show(picture, box, `${picture.name} as ${asked.model.id} sees it`);
    this.map.stage.hidden = false;
    this.map.setGrid(tokens);
    this.about.textContent = cropSentence(picture, box);
    if (this.tokens !== tokens) this.map.paint(null);
    this.tokens = tokens;
    put(
      this.prefix,
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
          prefixName(index, asked.model),
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
    const other = nearest < 0 ? "" : `; most alike ${this.map.nameOf(nearest)}, cosine ${asCosine(cosines[nearest])}`;
    this.map.tell(`${this.map.nameOf(cursor)}${other}`);
  }
}

/** Its kind, if that is known: pooling by the class token says that there is one. @param {number} index @param {Model} model */
export function prefixName(index, { pooling }) {
  if (pooling !== "class") return `prefix token ${index + 1}`;
  return index === 0 ? "class token" : `register ${index}`;
}

/** @param {Picture} picture @param {Box} box */
function cropSentence(picture, box) {
  const { image, width, height, name } = picture;
  if (image === null) return "This browser cannot draw this picture; the server reads it.";
  const [w, h] = [box.width, box.height].map(Math.round);
  const isWhole = Math.abs(w - width) <= 1 && Math.abs(h - height) <= 1;
  return isWhole ? `${name}: ${width} × ${height}` : `${name}: the encoder sees ${w} × ${h} of ${width} × ${height}`;
}

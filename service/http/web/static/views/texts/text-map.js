/** A text's heat map over a picture. */

import { heatColours } from "../../numbers/colours.js";
import { boxSeen } from "../../numbers/geometry.js";
import { asCosine } from "../../numbers/units.js";
import { argmax } from "../../numbers/vectors.js";
import { el } from "../../parts/dom.js";
import { colourBar } from "../../parts/legend.js";
import { TokenMap } from "../../parts/token-map.js";

/** @import {Result} from "./result.js" */

/** The longest side of the picture, in pixels. */
const MAP_SIDE = 400;

export class TextMap {
  /** @param {Result} result @param {string} text @param {number[][]} rows of cosines @param {boolean} isFirst */
  constructor(result, text, rows, isFirst) {
    this.text = text;
    this.cosines = Float32Array.from(rows.flat());
    this.best = argmax(this.cosines);
    this.map = new TokenMap({ onpoint: (patch) => result.point(patch) }, { hasKeys: isFirst, side: MAP_SIDE });
    this.said = el("span", { class: "said" });
    this.legend = el("div", { class: "legend" });
    this.map.caption.append(el("span", { class: "text" }, text), this.said, this.legend);
    const { picture, question } = result;
    this.map.setGrid({ rows: rows.length, cols: rows[0].length });
    const peak = `highest, ${this.#cosine(this.best)}, at ${this.map.nameOf(this.best)}`;
    this.map.show(
      picture,
      boxSeen(picture, question),
      `Cosine of “${text}” with each patch of ${picture.name}: ${peak}`,
    );
  }

  get element() {
    return this.map.element;
  }

  /** @param {[number, number]} range of the colours @param {boolean} isShared with others, whose legend is elsewhere */
  draw(range, isShared) {
    this.map.paint(heatColours(this.cosines, range));
    this.map.mark("match", this.best);
    this.legend.hidden = isShared;
    this.legend.replaceChildren(...(isShared ? [] : colourBar("", range)));
    this.point(null);
  }

  /** @param {number | null} patch */
  point(patch) {
    this.map.mark("cursor", patch);
    this.said.textContent =
      patch === null ? `highest cosine ${this.#cosine(this.best)}` : `cosine here ${this.#cosine(patch)}`;
  }

  /** @param {number} patch */
  #cosine(patch) {
    return asCosine(this.cosines[patch]);
  }
}

/** One of the two pictures that are matched. */

import { heatColours } from "../../numbers/colours.js";
import { boxSeen } from "../../numbers/geometry.js";
import { rangeOf } from "../../numbers/vectors.js";
import { el } from "../../parts/dom.js";
import { colourBar } from "../../parts/legend.js";
import { TokenMap } from "../../parts/token-map.js";

/**
 * @import {Asked, Tokens} from "../../api/embed.js"
 * @import {Picture} from "../../pictures/picture.js"
 * @import {MatchView} from "./view.js"
 */

export class Side {
  /** @param {MatchView} view @param {number} which */
  constructor(view, which) {
    /** @type {Picture | null} */
    this.picture = null;
    this.map = new TokenMap({ onpoint: (patch) => view.point(which, patch) });
    this.name = el("span", { class: "text" });
    this.legend = el("div", { class: "legend" });
    this.map.caption.append(this.name, this.legend);
    this.element = this.map.element;
  }

  /** @param {Picture} picture @param {Asked} asked @param {Tokens} tokens */
  show(picture, asked, tokens) {
    this.picture = picture;
    this.map.show(picture, boxSeen(picture, asked), `${picture.name} as ${asked.model.id} sees it`);
    this.map.setGrid(tokens);
    this.name.textContent = `${picture.name}: ${tokens.rows} × ${tokens.cols} patches`;
  }

  rest() {
    this.map.paint(null);
    this.map.mark("cursor", null);
    this.map.mark("match", null);
    this.map.tell("");
    this.legend.replaceChildren();
  }

  /** @param {number} patch @param {string} sentence about it */
  cursorAt(patch, sentence) {
    this.rest();
    this.map.mark("cursor", patch);
    this.map.tell(sentence);
    this.legend.replaceChildren(sentence);
  }

  /** @param {Float32Array} cosines of each patch with the one that is pointed at @param {number} best */
  answer(cosines, best) {
    const range = rangeOf(cosines);
    this.map.paint(heatColours(cosines, range));
    this.map.mark("cursor", null);
    this.map.mark("match", best);
    this.legend.replaceChildren(...colourBar("cosine", range));
  }
}

/** What resolution buys: a picture as coarse as the encoder sees it, under its patch grid. */

import { seenBox } from "../../numbers/geometry.js";
import { short } from "../../numbers/units.js";
import { el } from "../../parts/dom.js";
import { TokenMap } from "../../parts/token-map.js";
import { resized } from "../../pictures/drawing.js";

/**
 * @import {Model, Pair} from "../../api/models.js"
 * @import {Picture} from "../../pictures/picture.js"
 */

export class CoarsePicture {
  constructor() {
    this.map = new TokenMap({ onpoint: (index) => this.map.mark("cursor", index) });
    this.element = el("section", { class: "panel", "aria-label": "The picture at this resolution" }, this.map.element);
  }

  /** @param {Picture | undefined} picture @param {Model} model @param {Pair} size @param {Pair} grid */
  show(picture, model, [height, width], [rows, cols]) {
    this.element.hidden = !picture?.image;
    if (!picture?.image) return;
    const box = seenBox(picture, model.preprocessing, { width, height });
    this.map.show(
      coarse(picture, width / box.width, height / box.height),
      box,
      `${picture.name} at ${width} × ${height} pixels`,
    );
    this.map.setGrid({ rows, cols });
    this.map.paint(null);
    const patch = [box.width / cols, box.height / rows].map((side) => short(side)).join(" × ");
    this.map.caption.textContent =
      `${picture.name} at ${height} × ${width}, in ${rows} × ${cols} tokens. ` +
      `A token has ${patch} pixels of the picture, of ${picture.width} × ${picture.height}.`;
  }
}

/** The picture at this scale. @param {Picture} picture @param {number} scaleX @param {number} scaleY @returns {Picture} */
function coarse(picture, scaleX, scaleY) {
  const { image, width, height } = picture;
  if (image === null) return picture;
  return {
    ...picture,
    image: resized(image, Math.min(width * scaleX, image.width), Math.min(height * scaleY, image.height)),
  };
}

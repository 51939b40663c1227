/** A picture with its scores and heat maps. */

import { asCosine } from "../../numbers/units.js";
import { rangeOf } from "../../numbers/vectors.js";
import { el } from "../../parts/dom.js";
import { colourBar } from "../../parts/legend.js";
import { thumbnail } from "../../pictures/drawing.js";
import { scoreTable } from "./score-table.js";
import { TextMap } from "./text-map.js";

/**
 * @import {ScoreKind} from "../../api/similarity.js"
 * @import {Answered} from "./view.js"
 */

/** Of a picture. */
export const MOST_MAPS = 40;
/** Texts whose cosines a screen reader is told, the highest. */
const MOST_TOLD = 3;

export class Result {
  /** @param {Answered} answered @param {number} index of the picture */
  constructor({ question, answer }, index) {
    this.question = question;
    this.answer = answer;
    this.index = index;
    this.picture = question.pictures[index];
    const rows = answer.heatmap?.[index]?.slice(0, MOST_MAPS) ?? [];
    this.maps = rows.map((cosines, text) => new TextMap(this, question.texts[text], cosines, text === 0));
  }

  /** @param {ScoreKind} drawn @param {[number, number]} range of the bars @param {boolean} isShared */
  draw(drawn, range, isShared) {
    const { name } = this.picture;
    const head = el("div", { class: "head-of-result" }, thumbnail(this.picture), el("h3", {}, name));
    const element = el("section", { class: "panel result", "aria-label": name });
    const { probabilities, cosine, logits } = this.answer;
    const row = { probabilities: probabilities[this.index], cosine: cosine[this.index], logits: logits[this.index] };
    if (row.probabilities === null || row.cosine === null || row.logits === null) {
      const error = this.answer.errors?.find(({ index }) => index === this.index)?.error;
      element.append(head, el("p", { class: "problem" }, error?.detail ?? "This picture has no scores."));
      return element;
    }
    const scores = { probabilities: row.probabilities, cosine: row.cosine, logits: row.logits };
    const table = scoreTable(`Scores of ${name}`, this.question.texts, scores, drawn, range);
    element.append(el("div", { class: "side" }, head, table));
    if (this.maps.length > 0) element.append(this.#drawMaps(isShared));
    return element;
  }

  /** @param {boolean} isShared one colour range for all */
  #drawMaps(isShared) {
    const shared = rangeOf(this.maps.flatMap(({ cosines }) => rangeOf(cosines)));
    for (const map of this.maps) map.draw(isShared ? shared : rangeOf(map.cosines), isShared);
    const legend = el("div", { class: "legend", hidden: !isShared }, ...colourBar("cosine", shared));
    return el(
      "div",
      { class: "text-maps" },
      legend,
      el("div", { class: "maps" }, ...this.maps.map(({ element }) => element)),
    );
  }

  /** The pointer or the arrow keys are at this patch, in all maps. @param {number | null} patch null: they left */
  point(patch) {
    for (const map of this.maps) map.point(patch);
    const [first] = this.maps;
    if (patch === null) {
      first.map.tell("");
      return;
    }
    const order = [...this.maps].sort((a, b) => b.cosines[patch] - a.cosines[patch]).slice(0, MOST_TOLD);
    const best = order.map(({ text, cosines }) => `${text} ${asCosine(cosines[patch])}`).join(", ");
    first.map.tell(`${first.map.nameOf(patch)}: ${best}`);
  }
}

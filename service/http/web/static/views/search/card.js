/** A picture of the gallery. */

import { asCosine } from "../../numbers/units.js";
import { button, el } from "../../parts/dom.js";
import { thumbnail } from "../../pictures/drawing.js";
import { titleOf } from "../../pictures/picture.js";

/** @import {Picture} from "../../pictures/picture.js" */

export class Card {
  /** @param {Picture} picture @param {() => void} onlike */
  constructor(picture, onlike) {
    this.picture = picture;
    /** With the query. @type {number | null} */
    this.cosine = null;
    const title = titleOf(picture);
    this.rank = el("span", { class: "rank" });
    this.score = el("span", { class: "score" });
    this.note = el("p", { class: "note" });
    this.like = button("More like this", onlike, { class: "quiet like", "aria-label": `More like this: ${title}` });
    this.element = el(
      "li",
      { class: "card" },
      thumbnail(picture),
      el("div", { class: "ranked" }, this.rank, this.score),
      el("span", { class: "name", title: picture.name }, title),
      this.note,
      this.like,
    );
  }

  /** @param {{problem: string | null, isKnown: boolean, isQuery: boolean}} state */
  draw({ problem, isKnown, isQuery }) {
    this.element.classList.toggle("bad", problem !== null);
    this.score.textContent = this.cosine === null ? "" : asCosine(this.cosine);
    this.note.textContent = problem ?? (isKnown ? "" : "Not embedded yet.");
    this.like.hidden = problem !== null;
    this.like.setAttribute("aria-pressed", String(isQuery));
  }

  /** @param {number | null} rank */
  number(rank) {
    this.rank.textContent = rank === null ? "" : String(rank);
  }
}

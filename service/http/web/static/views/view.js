/** What every view of the page is and what it is given. */

import { el } from "../parts/dom.js";
import { meanings } from "./words.js";

/**
 * @import {Call} from "../api/call.js"
 * @import {Model, Recommended} from "../api/models.js"
 * @import {Picture} from "../pictures/picture.js"
 * @import {Pictures} from "../pictures/pictures.js"
 * @import {Work} from "../parts/work.js"
 * @import {Word} from "./words.js"
 *
 * @typedef {Object} Page what a view is given
 * @property {Model[]} models the served encoders, never empty
 * @property {Recommended[]} recommended
 * @property {Pictures} pictures
 * @property {() => void} changed the view's parameters or requests are others now: the link and the advice follow
 * @property {Work["run"]} work does a job in place of the one before, and shows its errors
 * @property {(sentence: string) => void} say tells it to people, and to screen readers
 */

/** A view: a tab of the page. */
export class View {
  /** What it shows and how to use it: a question that it answers, and two or three sentences. */
  static intro = "";
  /** The terms on it that a first-time visitor may not know. @type {readonly Word[]} */
  static words = [];

  /** @param {Page} page */
  constructor(page) {
    this.page = page;
    const { intro, words } = /** @type {typeof View} */ (this.constructor);
    this.intro = el("div", { class: "intro" }, el("p", {}, intro), meanings(words));
    this.element = el("section", { class: "view" });
  }

  /** Take over what a link says; what it does not say is the default. @param {URLSearchParams} _parameters */
  restore(_parameters) {}

  /** What a link must say. @returns {URLSearchParams} */
  parameters() {
    return new URLSearchParams();
  }

  /** The requests behind what is shown now, for a user to copy. @returns {Call[]} */
  calls() {
    return [];
  }

  /** The encoders that show their numbers now. @returns {Model[]} */
  models() {
    return [];
  }

  /** The pictures that a link must name. @returns {Picture[]} */
  linkedPictures() {
    return this.page.pictures.chosen;
  }

  /** Show what is chosen now: the view was opened, other pictures were chosen, or the server came back. */
  update() {}

  /** Another view is opened: end what runs by itself. */
  leave() {}
}

/**
 * What to say of chosen pictures that a view does not show; nothing if it shows all.
 *
 * @param {Picture[]} chosen
 * @param {number} most
 */
export function leftOut(chosen, most) {
  const left = chosen.length - most;
  return left > 0 ? `The first ${most} pictures are shown; ${left} more are chosen.` : "";
}

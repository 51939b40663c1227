/**
 * Texts: how well each text says what is on a picture, as bars; and where it is, as a heat map over the picture. Under
 * the pointer, the cosine of that patch with every text.
 */

import { jsonOf, send } from "../../api/call.js";
import { scoringSentence, similarityCall } from "../../api/similarity.js";
import { counted } from "../../numbers/units.js";
import { rangeOf } from "../../numbers/vectors.js";
import { button, choice, el, labelled, put } from "../../parts/dom.js";
import { EncoderFields, askedInLink, askedOfLink } from "../../parts/encoder-fields.js";
import { View, leftOut } from "../view.js";
import { MOST_MAPS, Result } from "./result.js";
import { SCORE_KINDS } from "./score-table.js";

/**
 * @import {Call} from "../../api/call.js"
 * @import {Answer, Question, ScoreKind} from "../../api/similarity.js"
 * @import {Page} from "../view.js"
 *
 * @typedef {{question: Question, answer: Answer}} Answered
 */

const MOST_PICTURES = 8;
/** From the last key to the request. */
const TYPING_MS = 500;
/** Of the texts that were cut. */
const MOST_NAMED = 5;
/** Suggested for a picture that is no sample. */
const MOST_SUGGESTED = 6;

const PHOTO = "a photo of a {}";
const TEMPLATES = [
  { value: "none", text: "none: the text itself" },
  { value: "photo", text: PHOTO },
  { value: "openai", text: "openai: the mean of CLIP's eighty" },
  { value: "own", text: "own, one a line" },
];

export class TextsView extends View {
  static intro =
    "Which text fits the picture, and where? Bars compare each text with the whole picture. Heat maps compare it with " +
    "each patch: the brighter, the better it fits; the frame marks the best patch. Point at a patch to read its numbers.";
  static words = /** @type {const} */ (["encoder", "resolution", "template", "cosine", "logit", "heat map"]);

  /** @param {Page} page */
  constructor(page) {
    super(page);
    /** What the user wrote; null: what is suggested. @type {string | null} */
    this.written = null;
    this.template = "none";
    /** @type {ScoreKind} */
    this.drawn = "probabilities";
    this.hasMaps = true;
    this.isShared = true;
    /** @type {EncoderFields | null} */
    this.fields = null;
    /** What is shown. @type {Answered | null} */
    this.answered = null;

    this.area = el("textarea", {
      rows: 5,
      spellcheck: "false",
      oninput: () => {
        this.written = this.area.value;
        this.suggest.hidden = false;
        this.#later();
      },
      onkeydown: (event) => this.#key(event),
    });
    this.suggest = button("Suggested texts", () => {
      this.written = null;
      this.area.focus(); // this button hides
      this.update();
    });
    this.templateArea = el("textarea", {
      rows: 3,
      spellcheck: "false",
      placeholder: "a drawing of a {}",
      oninput: () => this.#later(),
      onkeydown: (event) => this.#key(event),
    });
    this.ownTemplates = labelled("Own templates, one a line, each with {} for the text", this.templateArea);
    this.encoder = el("div");
    this.options = el("div", { class: "row" });
    this.form = el(
      "div",
      { class: "controls texts-form" },
      el(
        "div",
        { class: "written" },
        labelled("Texts, one a line", this.area),
        el("div", { class: "row" }, this.suggest, el("span", { class: "note" }, "Ctrl+Enter scores them at once.")),
      ),
      el("div", { class: "fields" }, this.encoder, this.options, this.ownTemplates),
    );
    this.about = el("div", { class: "about" });
    this.results = el("div", { class: "results" });
    this.element.append(this.form, this.about, this.results);
  }

  /** @param {URLSearchParams} parameters */
  restore(parameters) {
    this.written = parameters.has("text") ? parameters.getAll("text").join("\n") : null;
    const own = parameters.getAll("template");
    const isOwn = own.length > 0 && String(own) !== PHOTO;
    this.template = isOwn ? "own" : own.length > 0 ? "photo" : parameters.has("templates") ? "openai" : "none";
    this.templateArea.value = isOwn ? own.join("\n") : "";
    this.drawn = SCORE_KINDS.find(({ kind }) => kind === parameters.get("bars"))?.kind ?? "probabilities";
    this.hasMaps = parameters.get("maps") !== "none";
    this.isShared = parameters.get("maps") !== "apart";
    this.#setEncoder(parameters.get("encoder") ?? "");
    this.#drawOptions();
  }

  parameters() {
    const parameters = new URLSearchParams();
    if (this.fields) parameters.set("encoder", askedInLink(this.fields.asked));
    if (this.written !== null) for (const text of linesOr(this.written)) parameters.append("text", text);
    const templates = this.#templates();
    if (typeof templates === "string") parameters.set("templates", templates);
    else for (const template of templates) parameters.append("template", template);
    if (this.drawn !== "probabilities") parameters.set("bars", this.drawn);
    if (!this.hasMaps) parameters.set("maps", "none");
    else if (!this.isShared) parameters.set("maps", "apart");
    return parameters;
  }

  /** @returns {Call[]} */
  calls() {
    const question = this.#question();
    return question ? [similarityCall(question)] : [];
  }

  models() {
    return this.fields ? [this.fields.asked.model] : [];
  }

  leave() {
    clearTimeout(this.timer);
  }

  async update() {
    clearTimeout(this.timer);
    this.#refresh();
    this.page.changed();
    const question = this.#question();
    if (question === null) {
      this.answered = null;
      this.#draw();
      return false;
    }
    const [pictures, texts] = [question.pictures.length, question.texts.length];
    const what = `Comparing ${counted(pictures, "picture")} with ${counted(texts, "text")}`;
    const outcome = await this.page.work(what, async ({ signal }) => {
      const answer = await jsonOf(await send(similarityCall(question), { signal }));
      this.answered = { question, answer };
      this.#draw();
    });
    if (outcome === "done") this.page.say(leftOut(this.page.pictures.chosen, MOST_PICTURES));
    if (outcome === "ended") {
      this.answered = null;
      this.#draw();
    }
    return outcome === "done";
  }

  /** Take over other encoders of the server, and suggest texts if the user wrote none. */
  #refresh() {
    const { models } = this.page;
    const canRead = models.some(readsTexts);
    this.form.hidden = !canRead;
    if (!canRead) this.fields = null;
    else if (this.fields) this.fields.refresh(models);
    else this.#setEncoder("");
    const text = this.written ?? this.#suggested().join("\n");
    if (text !== this.area.value) this.area.value = text;
    this.suggest.hidden = this.written === null;
    this.ownTemplates.hidden = this.template !== "own";
  }

  /** @param {string} link as askedInLink writes it */
  #setEncoder(link) {
    const models = this.page.models.filter(readsTexts);
    if (models.length === 0) return;
    const asked = { ...askedOfLink(models, link), layer: null };
    this.fields = new EncoderFields(this.page.models, asked, () => this.update(), {
      fits: readsTexts,
      hasLayer: false,
    });
    this.encoder.replaceChildren(this.fields.element);
  }

  #drawOptions() {
    const template = choice(TEMPLATES, this.template, (value) => {
      this.template = value;
      this.update();
      if (value === "own") this.templateArea.focus();
    });
    const bars = choice(
      SCORE_KINDS.map(({ kind, name }) => ({ value: kind, text: name })),
      this.drawn,
      (value) => {
        this.drawn = /** @type {ScoreKind} */ (value);
        this.page.changed();
        this.#draw();
      },
    );
    const maps = choice(
      [
        { value: "shared", text: "one colour range a picture" },
        { value: "apart", text: "each with its own range" },
        { value: "none", text: "none" },
      ],
      this.hasMaps ? (this.isShared ? "shared" : "apart") : "none",
      (value) => {
        const hadMaps = this.hasMaps;
        this.hasMaps = value !== "none";
        this.isShared = value !== "apart";
        if (this.hasMaps === hadMaps) {
          this.page.changed();
          this.#draw();
        } else this.update();
      },
    );
    this.options.replaceChildren(
      labelled("Template", template),
      labelled("Bars show", bars),
      labelled("Heat maps", maps),
    );
  }

  /** Texts for the chosen pictures; for pictures that are no samples, those of samples that this encoder knows. */
  #suggested() {
    const { chosen, samples } = this.page.pictures;
    const ofSamples = chosen.flatMap(({ sample }) => sample?.texts ?? []);
    if (ofSamples.length > 0) return [...new Set(ofSamples)];
    const isOfDrawings = Boolean(this.fields?.asked.model.trained_on);
    const known = samples.filter(({ drawing }) => drawing === isOfDrawings).flatMap(({ texts }) => texts);
    return [...new Set(known)].slice(0, MOST_SUGGESTED);
  }

  /** As a Question has them. @returns {string | string[]} */
  #templates() {
    if (this.template === "own") return lines(this.templateArea.value);
    return { none: [], photo: [PHOTO], openai: "openai" }[this.template] ?? [];
  }

  /** What is asked now; null if something is missing. @returns {Question | null} */
  #question() {
    const pictures = this.page.pictures.chosen.slice(0, MOST_PICTURES);
    const texts = lines(this.area.value);
    if (this.fields === null || pictures.length === 0 || texts.length === 0) return null;
    const { model, resolution } = this.fields.asked;
    const hasMaps = this.hasMaps && model.dense;
    return { model, resolution, pictures, texts, templates: this.#templates(), hasMaps };
  }

  #later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.update(), TYPING_MS);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    this.update();
  }

  /** Draw the answer, or what is missing. */
  #draw() {
    if (this.answered === null) {
      this.about.replaceChildren(el("p", { class: "note" }, this.#whatIsMissing()));
      this.results.replaceChildren();
      return;
    }
    const { question, answer } = this.answered;
    this.about.replaceChildren(
      ...[scoringSentence(answer), ...this.#remarks(question, answer)].map((sentence) =>
        el("p", { class: "note" }, sentence),
      ),
    );
    const values = answer[this.drawn].flatMap((row) => row ?? []);
    const [low, high] = this.drawn === "probabilities" ? [0, 1] : rangeOf(values);
    put(
      this.results,
      ...question.pictures.map((_, index) => {
        const result = new Result({ question, answer }, index);
        return result.draw(this.drawn, [Math.min(low, 0), Math.max(high, 0)], this.isShared);
      }),
    );
  }

  #whatIsMissing() {
    if (this.fields === null) {
      return "No encoder that is served here reads texts. CLIP and SigLIP models do, such as demo:vit.";
    }
    if (this.page.pictures.chosen.length === 0) return "Choose a picture, or try a sample.";
    return lines(this.area.value).length === 0 ? "Write a text." : "There are no scores: see the message.";
  }

  /** @param {Question} question @param {Answer} answer */
  #remarks({ model, texts, hasMaps }, { truncated }) {
    const remarks = [];
    if (truncated.length > 0) {
      const cut = truncated.slice(0, MOST_NAMED).map((index) => `“${texts[index]}”`);
      const more = truncated.length > MOST_NAMED ? `, and ${truncated.length - MOST_NAMED} more` : "";
      const where = this.template === "none" ? "" : ", templates included";
      remarks.push(
        `Cut after the ${model.context_length} tokens that ${model.id} reads${where}: ${cut.join(", ")}${more}.`,
      );
    }
    if (!model.dense) remarks.push(`${model.id} has no dense features that can be compared with texts: no heat maps.`);
    else if (hasMaps && texts.length > MOST_MAPS) {
      remarks.push(`The first ${MOST_MAPS} texts have a heat map each; all have scores.`);
    }
    return remarks;
  }
}

/** @param {import("../../api/models.js").Model} model */
function readsTexts(model) {
  return model.has_text;
}

/** Without the empty ones. @param {string} text */
function lines(text) {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
}

/** One empty line, if there is none: a link must say that the user wants none. @param {string} text */
function linesOr(text) {
  const all = lines(text);
  return all.length > 0 ? all : [""];
}

/** Search: all pictures of the page as a gallery that a text, or one of them, ranks by the cosine of their vectors. */

import { vectorsCall } from "../../api/embed.js";
import { modelOf } from "../../api/models.js";
import { batchesOf, embedPictures, embedText, unknownOf, vectorsOf } from "../../api/vector-store.js";
import { asCosine, counted } from "../../numbers/units.js";
import { products } from "../../numbers/vectors.js";
import { button, choice, download, el, labelled, offer } from "../../parts/dom.js";
import { titleOf } from "../../pictures/picture.js";
import { View } from "../view.js";
import { arrange } from "./arrange.js";
import { Card } from "./card.js";

/** @import {Page} from "../view.js" */

/** With fewer pictures there is little to rank, and the samples are offered. */
const FEW = 3;

export class SearchView extends View {
  static intro =
    "Which pictures fit a text, or are like another picture? The encoder turns each picture and each text into a vector; " +
    "the nearest pictures come first. All pictures above take part, ticked or not.";
  static words = /** @type {const} */ (["encoder", "vector", "cosine"]);

  /** @param {Page} page */
  constructor(page) {
    super(page);
    this.model = page.models[0];
    /** The query: a text, */
    this.text = "";
    /** or a picture's id. @type {string | null} */
    this.like = null;
    /** By the picture's id. @type {Map<string, Card>} */
    this.cards = new Map();
    this.encoder = choice([], "", (id) => this.#take(id));
    this.field = el("input", { type: "search", placeholder: "a tree", autocomplete: "off" });
    this.submit = button("Rank", () => this.#ask({ text: this.field.value.trim() }), { class: "primary" });
    this.field.addEventListener("keydown", ({ key }) => key === "Enter" && this.submit.click());
    this.field.addEventListener("input", () => this.field.value === "" && this.text !== "" && this.#ask({}));
    this.picture = choice([], "", (id) => this.#ask({ like: id || null }));
    const text = labelled("Rank by a text", this.field);
    text.classList.add("wide");
    this.about = el("p", { class: "note" });
    this.more = button("Embed the rest", () => {
      this.picture.focus(); // this button hides
      this.update();
    });
    this.samples = button("Add all samples", () => {
      this.picture.focus(); // this button hides
      page.pictures.addSamples();
    });
    this.save = button("Save vectors", () => this.#save());
    this.list = el("ol", { class: "cards", "aria-label": "Pictures" });
    this.element.append(
      el(
        "div",
        { class: "row controls", role: "search" },
        labelled("Encoder", this.encoder),
        text,
        this.submit,
        labelled("or by a picture", this.picture),
      ),
      el("div", { class: "row standing" }, this.about, this.more, this.samples, this.save),
      this.list,
    );
    this.isEmbedding = false;
  }

  /** @param {URLSearchParams} parameters */
  restore(parameters) {
    this.model = modelOf(this.page.models, parameters.get("model"));
    this.text = parameters.get("text") ?? "";
    this.like = this.text === "" ? parameters.get("like") : null;
    this.field.value = this.text;
  }

  parameters() {
    const parameters = new URLSearchParams({ model: this.model.id });
    if (this.text !== "") parameters.set("text", this.text);
    if (this.like !== null) parameters.set("like", this.like);
    return parameters;
  }

  calls() {
    const calls = batchesOf(this.page.pictures.all).map((pictures) => vectorsCall(this.model, { pictures }));
    if (this.#hasTextQuery()) calls.push(vectorsCall(this.model, { texts: [this.text] }));
    return calls;
  }

  models() {
    return [this.model];
  }

  linkedPictures() {
    return this.page.pictures.all;
  }

  async update() {
    const { page } = this;
    const pictures = page.pictures.all;
    this.model = modelOf(page.models, this.model.id);
    const { model } = this;
    const unknown = unknownOf(model, pictures);
    this.isEmbedding = true;
    this.#drawControls();
    this.#drawCards();
    this.#rank();
    page.changed();
    const what = unknown.length === 0 ? "Ranking" : `Embedding ${counted(unknown.length, "picture")}`;
    const outcome = await page.work(what, async ({ signal, progress }) => {
      if (this.#hasTextQuery()) await embedText(model, this.text, signal);
      await embedPictures(model, unknown, signal, (done) => {
        this.#rank();
        progress(done, unknown.length);
      });
    });
    if (outcome === "replaced") return;
    this.isEmbedding = false;
    this.#rank();
    if (outcome === "done") page.say(this.#outcome());
  }

  #hasTextQuery() {
    return this.text !== "" && this.model.has_text;
  }

  /** The query's vector; null: there is no query; undefined: it is not known yet. */
  #query() {
    const known = vectorsOf(this.model);
    if (this.#hasTextQuery()) return known.texts.get(this.text);
    const picture = this.#likePicture();
    return picture && !known.problems.has(picture.id) ? known.pictures.get(picture.id) : null;
  }

  #likePicture() {
    return this.page.pictures.all.find(({ id }) => id === this.like);
  }

  /** @param {string} id of an encoder */
  #take(id) {
    this.model = modelOf(this.page.models, id);
    for (const card of this.cards.values()) card.cosine = null; // it was the other encoder's
    this.update();
  }

  /** @param {{text?: string, like?: string | null}} query */
  #ask({ text = "", like = null }) {
    this.text = text;
    this.like = like;
    this.field.value = text;
    this.update();
  }

  #drawControls() {
    const { models, pictures } = this.page;
    const { model } = this;
    offer(
      this.encoder,
      models.map(({ id }) => id),
      model.id,
    );
    this.field.disabled = this.submit.disabled = !model.has_text;
    const named = pictures.all.map((picture) => ({ value: picture.id, text: titleOf(picture) }));
    offer(this.picture, [{ value: "", text: "none" }, ...named], this.like ?? "");
  }

  #drawCards() {
    const { pictures } = this.page;
    const cards = pictures.all.map((picture) => {
      const known = this.cards.get(picture.id);
      return known?.picture === picture ? known : new Card(picture, () => this.#ask({ like: picture.id }));
    });
    this.cards = new Map(cards.map((card) => [card.picture.id, card]));
  }

  /** Put the cards in order, with what is known now. */
  #rank() {
    const known = vectorsOf(this.model);
    const query = this.#query();
    for (const card of this.cards.values()) {
      const { id } = card.picture;
      const vector = known.pictures.get(id);
      if (query !== undefined) card.cosine = query && vector ? products(vector, query)[0] : null;
      card.draw({ problem: known.problems.get(id) ?? null, isKnown: vector !== undefined, isQuery: id === this.like });
    }
    const cards = this.#ranked();
    cards.forEach((card, index) => card.number(card.cosine === null ? null : index + 1));
    arrange(
      this.list,
      cards.map((card) => card.element),
    );
    this.#drawAbout();
  }

  /** The best first; those without a cosine last, as they came. */
  #ranked() {
    return [...this.cards.values()].sort((a, b) => (b.cosine ?? -2) - (a.cosine ?? -2));
  }

  #drawAbout() {
    const { model } = this;
    const { all, samples } = this.page.pictures;
    const known = vectorsOf(model);
    const vectors = all.flatMap(({ id }) => known.pictures.get(id) ?? []);
    const rest = unknownOf(model, all).length;
    const sentences = [];
    if (all.length === 0) sentences.push("Drop pictures or a folder on this page.");
    if (vectors.length > 0) {
      sentences.push(`${counted(vectors.length, "picture")}, each a vector of ${vectors[0].length} numbers.`);
    }
    if (!model.has_text) sentences.push(`${model.id} has no text encoder: rank by a picture.`);
    if (this.like !== null && !this.#likePicture()) sentences.push("The picture to rank by is not here.");
    if (this.#query()) sentences.push(`Numbers are cosines with ${this.#queryName()}.`);
    this.about.textContent = sentences.join(" ");
    this.more.hidden = rest === 0 || this.isEmbedding;
    this.more.textContent = `Embed the other ${rest}`;
    this.samples.hidden = all.length >= FEW || samples.length === 0;
    this.save.hidden = vectors.length === 0;
  }

  #queryName() {
    if (this.#hasTextQuery()) return `“${this.text}”`;
    const picture = this.#likePicture();
    return picture ? titleOf(picture) : "";
  }

  /** For people who do not see the order. */
  #outcome() {
    const first = this.#ranked().find(({ picture }) => picture.id !== this.like);
    if (!first || first.cosine === null) return "";
    return `Ranked by ${this.#queryName()}. First: ${titleOf(first.picture)}, ${asCosine(first.cosine)}.`;
  }

  #save() {
    const known = vectorsOf(this.model);
    const pictures = this.page.pictures.all.flatMap(({ id, name }) => {
      const vector = known.pictures.get(id);
      // nine digits tell any two float32 apart
      return vector ? [{ name, vector: Array.from(vector, (value) => Number(value.toPrecision(9))) }] : [];
    });
    const json = JSON.stringify({ model: this.model.id, normalized: true, pictures });
    const name = this.model.id.replace(/[^\w.-]+/gu, "-");
    download(new Blob([json], { type: "application/json" }), `vectors-${name}.json`);
  }
}

/**
 * Cost: what resolution and batch cost an encoder, in tokens, FLOPs and predicted memory; and whether it fits on a card
 * beside a language model.
 */

import { LARGEST_BATCH, forecastCall, forecastOf, largestBatch } from "../../api/forecast.js";
import { modelOf } from "../../api/models.js";
import { resolutionOf, sidesOf, sizeName, sizesOf } from "../../numbers/geometry.js";
import { GIB, grouped, inFlops, inGiB, short } from "../../numbers/units.js";
import { copied, select } from "../../parts/clipboard.js";
import { button, el, labelled, put } from "../../parts/dom.js";
import { encoderChoice } from "../../parts/encoder-fields.js";
import { colourKey } from "../../parts/legend.js";
import { Plot, lineColour } from "../../parts/plot.js";
import { Slider } from "../../parts/slider.js";
import { View } from "../view.js";
import { batchFields, batchesOfLink } from "./batch-fields.js";
import { cardFields } from "./card-fields.js";
import { Card } from "./card.js";
import { CoarsePicture } from "./coarse-picture.js";
import { memorySplit, partKeys } from "./memory-split.js";
import { sheetOf, sizeTable } from "./size-table.js";

/**
 * @import {Forecast, Row} from "../../api/forecast.js"
 * @import {Model, Pair} from "../../api/models.js"
 * @import {Page} from "../view.js"
 */

const MOST_SIZES = 12;
/** The smallest and the largest size that are shown, in native ones. */
const RANGE = /** @type {[number, number]} */ ([0.5, 4]);
export class CostView extends View {
  static intro =
    "What does resolution cost, and does the encoder fit on a graphics card beside a language model? Each line is the " +
    "predicted memory of one batch, by the picture's side in pixels; in the green area it fits. Point at a plot, or move " +
    "the slider.";
  static words = /** @type {const} */ (["token", "resolution", "FLOPs", "batch", "activations", "KV cache"]);

  /** @param {Page} page */
  constructor(page) {
    super(page);
    this.model = page.models[0];
    /** The batches that are drawn, smallest first. */
    this.batches = batchesOfLink(null);
    /** As the API has it. */
    this.resolution = "";
    this.card = new Card();
    /** @type {{forecast: Forecast, of: string, models: Model[]} | null} */
    this.known = null;
    /** The size under the pointer, in place of the marked one. @type {number | null} */
    this.pointed = null;
    this.fields = el("div", { class: "row controls" });
    this.slider = new Slider("Resolution", {
      say: (index) => sizeName(this.sizes()[index], this.model),
      oninput: (index) => this.#mark(this.sizes()[index]),
    });
    this.verdict = el("p", { class: "verdict", role: "status" });
    this.about = el("p", { class: "note" });
    this.numbers = el("div", { class: "panel measures" });
    this.picture = new CoarsePicture();
    const options = {
      formatX: (/** @type {number} */ side) => String(side),
      onpoint: (/** @type {number | null} */ index) => this.#point(index),
      onpick: (/** @type {number} */ index) => this.#mark(this.sizes()[index]),
    };
    const alike = "The table below has the same numbers.";
    this.memory = new Plot({
      ...options,
      label: `Predicted memory against resolution, a line a batch. ${alike}`,
      format: inGiB,
      base: 2,
      isLog: true,
      height: 420,
    });
    this.flops = new Plot({
      ...options,
      label: `FLOPs of a picture against resolution. ${alike}`,
      format: inFlops,
      isLog: true,
    });
    this.tokens = new Plot({ ...options, label: `Tokens of a picture against resolution. ${alike}`, format: short });
    this.legend = el("div", { class: "keys" });
    this.table = el("div", { class: "scroll size-table", tabindex: "0", role: "region", "aria-label": "All numbers" });
    this.place = el(
      "div",
      { class: "cost" },
      figure("Memory by resolution (logarithmic)", this.memory, this.legend),
      this.numbers,
      figure("FLOPs of a picture by resolution (logarithmic)", this.flops),
      figure("Tokens of a picture by resolution", this.tokens),
      this.picture.element,
      el(
        "section",
        { class: "panel measures", "aria-label": "Table" },
        el(
          "div",
          { class: "row" },
          el("h3", {}, "All sizes"),
          button("Copy table", () => this.#copyTable()),
        ),
        this.table,
      ),
    );
    this.element.append(
      this.fields,
      this.verdict,
      this.about,
      el("div", { class: "size" }, this.slider.element),
      this.place,
    );
  }

  /** @param {URLSearchParams} parameters */
  restore(parameters) {
    this.model = modelOf(this.page.models, parameters.get("model"));
    this.batches = batchesOfLink(parameters.get("batches"));
    this.resolution = parameters.get("resolution") ?? "";
    this.card = new Card(parameters);
    this.#drawFields();
  }

  parameters() {
    return new URLSearchParams({
      model: this.model.id,
      resolution: resolutionOf(this.#marked()),
      batches: this.batches.join(","),
      ...this.card.parameters(),
    });
  }

  calls() {
    return [this.#call()];
  }

  /** The sizes that are shown. @returns {Pair[]} */
  sizes() {
    return sizesOf(this.model, MOST_SIZES, RANGE);
  }

  async update() {
    const model = modelOf(this.page.models, this.model.id);
    if (model !== this.model) {
      this.model = model;
      this.#drawFields();
    }
    this.page.changed();
    const call = this.#call();
    const of = JSON.stringify(call);
    if (this.known?.of !== of || this.known.models !== this.page.models) {
      const { models } = this.page;
      this.known = null;
      this.#draw();
      await this.page.work(
        `Predicting the memory of ${model.id} at ${this.sizes().length} sizes`,
        async ({ signal }) => {
          this.known = { forecast: await forecastOf(call, signal), of, models };
        },
      );
    }
    this.#draw();
  }

  #call() {
    return forecastCall(this.model, this.sizes(), this.batches);
  }

  /** @returns {Pair} */
  #marked() {
    return this.sizes().find((size) => resolutionOf(size) === this.resolution) ?? this.model.image_size;
  }

  /** @param {Pair} size */
  #mark(size) {
    this.resolution = resolutionOf(size);
    this.page.changed();
    this.#drawSlider();
    this.#drawMarked();
  }

  /** @param {number | null} index of the size under the pointer */
  #point(index) {
    if (this.pointed === index) return;
    this.pointed = index;
    this.#drawNumbers();
  }

  /** @param {Pair} size @returns {Row[]} of every batch that was asked about */
  #rowsAt(size) {
    return this.known?.forecast.rows.filter(({ resolution }) => String(resolution) === String(size)) ?? [];
  }

  /** Bytes of the card, or of this server's budget. */
  #total() {
    return this.card.isServers ? (this.known?.forecast.budget_bytes ?? 0) : this.card.gib * GIB;
  }

  /** Bytes that others hold. */
  #held() {
    const own = this.card.isServers ? this.page.models.filter((each) => each !== this.model && isLoaded(each)) : [];
    return own.reduce((sum, { weights_bytes: bytes }) => sum + bytes, this.card.besideBytes);
  }

  /** The largest batch beside the language model. @param {Row[]} rows of one size */
  #largest(rows) {
    const isServers = this.card.isServers && this.card.billions === 0;
    return isServers ? rows[0].max_batch : largestBatch(rows, this.#total() - this.#held());
  }

  #drawFields() {
    const { page } = this;
    const encoder = encoderChoice(page.models, this.model, (model) => {
      this.model = model;
      this.resolution = "";
      this.#drawFields();
      this.update();
    });
    const batches = batchFields(this.batches, (chosen) => {
      this.batches = chosen;
      this.update();
    });
    const card = cardFields(this.card, () => {
      page.changed();
      this.#draw();
    });
    put(this.fields, labelled("Encoder", encoder), batches, ...card);
    this.#drawSlider();
  }

  #drawSlider() {
    const sizes = this.sizes();
    const at = sizes.findIndex((size) => String(size) === String(this.#marked()));
    this.slider.show(at, sizes.length - 1);
  }

  #draw() {
    this.place.hidden = this.known === null;
    this.about.replaceChildren(
      ...(this.known === null ? ["There is no prediction yet: change a field to ask for one."] : this.#basis()),
    );
    if (this.known === null) {
      this.verdict.textContent = "";
      return;
    }
    const sizes = this.sizes();
    const at = (/** @type {Pair} */ size, /** @type {number} */ batch) =>
      /** @type {Row} */ (this.#rowsAt(size).find((row) => row.batch === batch));
    const x = sizes.map(([height]) => height);
    const lines = this.batches.map((batch, index) => ({
      name: `batch ${grouped(batch)}`,
      colour: lineColour(index),
      values: sizes.map((size) => at(size, batch).total_bytes),
    }));
    const total = this.#total();
    const room = total - this.#held();
    const limit = this.card.isServers ? `this server's budget: ${inGiB(total)}` : `card: ${this.card.gib} GiB`;
    const limits = [{ value: total, name: limit, colour: "--bad" }];
    if (room < total && room > 0)
      limits.push({ value: room, name: `left for the encoder: ${inGiB(room)}`, colour: "--good" });
    this.memory.show({ x, lines, limits, room, marked: null });
    const of = (/** @type {"flops" | "tokens"} */ key) => sizes.map((size) => at(size, 1)[key]);
    this.flops.show({ x, lines: [{ name: "FLOPs", colour: "--plot-5", values: of("flops") }] });
    this.tokens.show({ x, lines: [{ name: "tokens", colour: "--plot-6", values: of("tokens") }] });
    this.legend.replaceChildren(
      ...lines.map(({ name, colour }) => colourKey(name, colour)),
      colourKey("fits beside the language model", "--plot-room", this.card.billions === 0 || room <= 0),
    );
    this.#drawTable();
    this.#drawMarked();
  }

  /** What the prediction takes for granted. */
  #basis() {
    const device = this.known?.forecast.device ?? "";
    const basis = `Predicted from the encoder's code for ${device}, in ${this.model.dtype}, final tokens.`;
    if (device !== "cpu" || this.card.isServers) return [basis];
    const beside = Math.min(this.#held(), this.#total());
    const command = `visiontower vram ${this.model.id} --gpu ${this.card.gib}GiB --beside ${beside}`;
    const more =
      " CUDA takes about 0.6 GiB more, for its context and what its allocator cannot fill. This command counts it: ";
    return [basis, more, el("code", {}, command)];
  }

  #drawMarked() {
    if (this.known === null) return;
    const size = this.#marked();
    for (const plot of [this.memory, this.flops, this.tokens]) plot.mark(size[0]);
    for (const row of this.table.querySelectorAll("tbody tr")) {
      if (/** @type {HTMLElement} */ (row).dataset.size === String(size)) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    this.verdict.textContent = this.#verdict(size);
    this.#drawNumbers();
    this.picture.show(this.page.pictures.chosen[0], this.model, size, this.#rowsAt(size)[0].grid);
  }

  /** Whether the encoder fits, and in which batches. @param {Pair} size */
  #verdict(size) {
    const rows = this.#rowsAt(size);
    const { billions, besideName } = this.card;
    const card = this.card.isServers ? `this server's budget of ${inGiB(this.#total())}` : `${this.card.gib} GiB`;
    const where = billions > 0 ? `Beside ${besideName} on ${card}` : `On ${card}`;
    const room = this.#total() - this.#held();
    if (room <= 0) return `${capital(besideName)} alone does not fit on ${card}.`;
    const largest = this.#largest(rows);
    const at = sidesOf(size);
    if (largest === 0) {
      return `${where}, not even one picture at ${at} fits: it takes ${inGiB(rows[0].total_bytes)}, and ${inGiB(room)} are left.`;
    }
    if (largest === 1) return `${where}, one picture at a time at ${at} fits.`;
    const more = largest === LARGEST_BATCH && this.card.gib + billions > 0 ? " and more" : "";
    return `${where}, batches of up to ${grouped(largest)}${more} at ${at} fit.`;
  }

  /** Of the size under the pointer, or else of the marked one. */
  #drawNumbers() {
    if (this.known === null) return;
    const size = this.pointed === null ? this.#marked() : this.sizes()[this.pointed];
    const rows = this.#rowsAt(size);
    const [one] = rows;
    const [gridRows, gridCols] = one.grid;
    const facts = {
      Grid: `${gridRows} × ${gridCols}`,
      Tokens: grouped(one.tokens),
      "FLOPs of a picture": inFlops(one.flops),
      "Largest batch beside the language model": grouped(this.#largest(rows)),
      "Largest batch in this server's budget": grouped(one.max_batch),
    };
    if (this.card.billions === 0) delete (/** @type {any} */ (facts)["Largest batch beside the language model"]);
    const shown = rows.filter(({ batch }) => this.batches.includes(batch));
    this.numbers.replaceChildren(
      el("h3", {}, sizeName(size, this.model)),
      el(
        "dl",
        { class: "facts" },
        ...Object.entries(facts).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
      ),
      partKeys(),
      ...shown.map(memorySplit),
    );
  }

  #drawTable() {
    const sizes = this.sizes().map((size) => {
      const rows = this.#rowsAt(size);
      return { key: String(size), name: sizeName(size, this.model), rows, largest: this.#largest(rows) };
    });
    this.table.replaceChildren(sizeTable(this.batches, sizes));
  }

  async #copyTable() {
    const rows = (this.known?.forecast.rows ?? []).filter(({ batch }) => this.batches.includes(batch));
    if (await copied(sheetOf(rows))) {
      this.page.say(`${rows.length} rows are copied, in bytes.`);
    } else {
      select(this.table);
      this.page.say("The table is selected: copy it with the keyboard.");
    }
  }
}

/** @param {string} title @param {Plot} plot @param {...HTMLElement} more */
function figure(title, plot, ...more) {
  return el("section", { class: "panel measures", "aria-label": title }, el("h3", {}, title), ...more, plot.element);
}

/** Whether the server's budget has its weights. @param {Model} model */
function isLoaded(model) {
  return model.state !== "not loaded";
}

/** @param {string} sentence */
function capital(sentence) {
  return sentence[0].toUpperCase() + sentence.slice(1);
}
